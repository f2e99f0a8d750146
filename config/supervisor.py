"""Child processes that are kept running: started again with growing delays when they die, ended within a bound.

Owns a process, its process group and the thread that reads its output. Owns no policy: what a death means is decided by
the stack (`stack.running`) and the launcher of workers (`workers.launch`).
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from config.foreign_variables import own_environment
from config.parent_death import tied_to_parent

__all__ = ["EXIT_CONFIG", "Program", "Sink", "SupervisedProcess", "stop_all"]

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: starting it again would end the same way
_FIRST_DELAY_S = 0.5
_HEALTHY_AFTER_S = 60.0
_POLL_S = 0.05
_LAST_LINES_S = 1.0

# Gets (name, line) for every line that a process prints, from a thread of its own.
Sink = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Program:
    """What to run.

    Attributes:
        name: short name, for messages and before each of its lines.
        command: program and arguments.
        environment: what it gets besides our own environment.
        death_signal: what the kernel sends it when its parent is killed.
        before_exec: called in the child before the program begins; only system calls are safe there.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    death_signal: signal.Signals = signal.SIGTERM
    before_exec: Callable[[], None] | None = None


class SupervisedProcess:
    """Runs a program and starts it again when it dies. Use it from one thread that lives as long as the child should.

    Args:
        program: what to run.
        longest_delay_s: the delay before a restart doubles up to this; after a healthy minute it is short again.
        sink: gets what the program prints; None: it prints where we do.

    Attributes:
        starts: how often it was started.
        delay_s: the delay before the start that is due now.
        last_pid: process ID of the newest one, running or not; 0 before the first.
        given_up: it ended with `EXIT_CONFIG`, and is not started again.
    """

    def __init__(self, program: Program, *, longest_delay_s: float, sink: Sink | None = None) -> None:
        self.program = program
        self.starts = 0
        self.delay_s = 0.0
        self.given_up = False
        self._longest_delay_s = longest_delay_s
        self._sink = sink
        self.last_pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._started_s = 0.0
        self._start_at_s = 0.0

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
            env={**own_environment(os.environ), **self.program.environment},
            stdin=subprocess.DEVNULL,
            stdout=None if self._sink is None else subprocess.PIPE,
            stderr=None if self._sink is None else subprocess.STDOUT,
            # Its own group: Ctrl-C in a terminal reaches us alone, and we stop our children in order.
            start_new_session=True,
            preexec_fn=_before_exec(self.program),  # noqa: PLW1509 - a few system calls, no locks
        )
        self._process, self._started_s, self.last_pid = process, time.monotonic(), process.pid
        self.starts += 1
        if self._sink is not None:
            self._reader = threading.Thread(target=self._read, args=(process, self._sink), daemon=True)
            self._reader.start()

    def poll(self) -> int | None:
        """Start it when that is due; return its exit code at the moment when it is found dead, else None."""
        now_s = time.monotonic()
        if self._process is None:
            if now_s >= self._start_at_s and not self.given_up:
                self.start()
            return None
        code = self._process.poll()
        if code is not None:
            self._clean_up()
            self.given_up = code == EXIT_CONFIG
            healthy = now_s - self._started_s >= _HEALTHY_AFTER_S
            doubled_s = _FIRST_DELAY_S if healthy or not self.delay_s else 2 * self.delay_s
            self.delay_s = min(doubled_s, self._longest_delay_s)
            self._start_at_s = now_s + self.delay_s
        return code

    def start_after(self, delay_s: float) -> None:
        """Let its next start be due in so many seconds, instead of after `delay_s`, which stays as it is."""
        self._start_at_s = time.monotonic() + delay_s

    def try_again(self, delay_s: float) -> None:
        """Start it in so many seconds although it was given up."""
        self.given_up = False
        self.start_after(delay_s)

    def terminate(self) -> None:
        """Send it SIGTERM."""
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

    def _read(self, process: subprocess.Popen[bytes], sink: Sink) -> None:
        if process.stdout is None:
            return
        with process.stdout:
            for line in process.stdout:
                text = line.decode("utf-8", "replace").rstrip()
                if text:
                    sink(self.program.name, text)


def stop_all(
    processes: Sequence[SupervisedProcess], timeout_s: float, hurry: Callable[[], bool]
) -> Sequence[SupervisedProcess]:
    """Ask all processes to end, wait, and kill what is left; return those that had to be killed.

    Args:
        processes: the processes.
        timeout_s: how long they may take together.
        hurry: asked all the time; when it turns true, nothing is waited for any more.
    """
    for process in processes:
        process.terminate()
    deadline_s = time.monotonic() + timeout_s
    while any(process.alive for process in processes) and time.monotonic() < deadline_s and not hurry():
        time.sleep(_POLL_S)
    killed = [process for process in processes if process.alive]
    for process in processes:
        process.kill()
    return killed


def _before_exec(program: Program) -> Callable[[], None]:
    """Return what the child does first. Made before the fork: between fork and exec only bare calls are safe."""
    tie, also = tied_to_parent(program.death_signal), program.before_exec
    if also is None:
        return tie

    def run() -> None:
        tie()
        also()

    return run
