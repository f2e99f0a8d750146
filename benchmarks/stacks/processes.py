"""Programs that a benchmark starts, each held to its cores, watched by its memory and ended with all it started.

Owns the processes of one run and their logs. What runs in them is the caller's.
"""

import contextlib
import http.client
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from stack.embedded_redis import die_with_parent

__all__ = ["BUILD", "Program", "answers", "hold_to_cores", "wait_until"]

BUILD = Path("build/bench")
_STOP_TIMEOUT_S = 15.0
_REST_LOOK_S, _REST_SHARE = 1.0, 0.1


class Program:
    """One program and its children, held to some cores from its first instruction on.

    Args:
        name: names the log file, `build/bench/logs/<name>.log`.
        command: the program and its arguments.
        cores: cores that it and its children may use.
        env: variables on top of our own environment.
        pipes: connect its input and output to us instead of the log.
        folder: its working folder; ours by default.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        cores: Sequence[int],
        env: Mapping[str, str] | None = None,
        *,
        pipes: bool = False,
        folder: Path | None = None,
    ) -> None:
        self.log = BUILD / "logs" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        pipe = subprocess.PIPE if pipes else None
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                list(command),
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or log,
                stderr=log,
                cwd=folder,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **(env or {})},
                start_new_session=True,
                preexec_fn=_held_to(cores),  # noqa: PLW1509 - two system calls, no Python locks taken
            )

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self.process.pid

    def family(self) -> list[psutil.Process]:
        """Return the program and all that it started and that still lives."""
        try:
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def sleeps_within(self, timeout_s: float) -> bool:
        """Wait until the program uses next to no processor time; return whether that came in time."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            before_s = self._used_s()
            time.sleep(_REST_LOOK_S)
            if self._used_s() - before_s < _REST_SHARE * _REST_LOOK_S:
                return True
        return False

    def _used_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.family())

    def find(self, *words: str) -> list[psutil.Process]:
        """Return those of the family whose command line has all the words."""
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if all(word in line for word in words):
                    found.append(process)
        return found

    def tail(self) -> str:
        """Return the end of its log."""
        return self.log.read_text("utf-8", "replace")[-3000:]

    def stop(self) -> None:
        """End it as a person would, then, after a while, with all that is left of it."""
        family = self.family()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_TIMEOUT_S)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def hold_to_cores(pid: int, cores: Sequence[int]) -> None:
    """Hold a running program to some cores, with all the threads that it has."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def answers(port: int, path: str) -> bool:
    """Return whether that path answers 200 on that port."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_until(ready: Callable[[], bool], program: Program, timeout_s: float = 180.0, every_s: float = 0.05) -> None:
    """Wait until a program is ready.

    Raises:
        RuntimeError: it ended, or took too long; the message holds the end of its log.
    """
    deadline_s = time.monotonic() + timeout_s
    while not ready():
        if program.process.poll() is not None or time.monotonic() > deadline_s:
            program.stop()
            raise RuntimeError(f"{program.log.stem} did not get ready; the end of its log:\n{program.tail()}")
        time.sleep(every_s)


def _held_to(cores: Sequence[int]) -> Callable[[], None]:
    def hold() -> None:
        die_with_parent()
        os.sched_setaffinity(0, cores)

    return hold
