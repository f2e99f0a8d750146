"""One child process of the stack: started, read line by line, started again when it dies, ended within a bound.

Owns the process, its process group and the thread that reads its output. Owns no policy of when the stack ends.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from config.supervisor import tied_to_parent

__all__ = ["Child", "Program"]

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 10.0
_HEALTHY_AFTER_S = 60.0
_LAST_LINES_S = 1.0

Sink = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Program:
    """What to run.

    Attributes:
        name: short name, put before each of its lines.
        command: program and arguments.
        environment: what it gets besides our own environment.
        death_signal: what the kernel sends it when the stack ends without a word.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    death_signal: signal.Signals = signal.SIGTERM


class Child:
    """Runs a program. Use it from one thread that lives as long as the child should.

    Args:
        program: what to run.
        sink: gets (name, line) for every line that it prints, from a thread of its own.
    """

    def __init__(self, program: Program, sink: Sink) -> None:
        self.program = program
        self.starts = 0
        self._sink = sink
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._started_s = 0.0
        self._start_at_s = 0.0
        self._delay_s = _FIRST_DELAY_S

    @property
    def pid(self) -> int | None:
        """Process ID while it runs."""
        return self._process.pid if self._process is not None and self.alive else None

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it."""
        process = subprocess.Popen(
            self.program.command,
            env={**os.environ, **self.program.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Its own group: Ctrl-C in a terminal reaches the stack alone, which stops its children in order.
            start_new_session=True,
            preexec_fn=tied_to_parent(self.program.death_signal),  # noqa: PLW1509 - two system calls, no locks
        )
        self._process, self._started_s = process, time.monotonic()
        self.starts += 1
        self._reader = threading.Thread(target=self._read, args=(process,), name=self.program.name, daemon=True)
        self._reader.start()

    def look(self) -> int | None:
        """Start it again when that is due; return its exit code in the moment when it is found dead, else None."""
        now_s = time.monotonic()
        if self._process is None:
            if self.starts and now_s >= self._start_at_s:
                self.start()
            return None
        code = self._process.poll()
        if code is not None:
            self._clean_up()
            if now_s - self._started_s >= _HEALTHY_AFTER_S:
                self._delay_s = _FIRST_DELAY_S
            self._start_at_s = now_s + self._delay_s
            self._delay_s = min(2 * self._delay_s, _LONGEST_DELAY_S)
        return code

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """End it and whatever it left in its group."""
        if self._process is not None:
            self._clean_up()

    def _clean_up(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if self._reader is not None:
            self._reader.join(_LAST_LINES_S)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is None:
            return
        with process.stdout:
            for line in process.stdout:
                text = line.decode("utf-8", "replace").rstrip()
                if text:
                    self._sink(self.program.name, text)
