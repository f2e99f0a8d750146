"""A pass that never ends takes the whole process with it, so that a launcher can start a fresh one.

Owns the clock of the current pass. Nothing inside a process can stop a hung device call; only its end can.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["EXIT_STATUS", "Watchdog", "end_process"]

log = logging.getLogger(__name__)

# EX_SOFTWARE of sysexits.h: the launcher can tell it from a crash.
EXIT_STATUS = 70


def end_process(reason: str) -> None:
    """End the process at once, for a launcher to start a fresh one."""
    log.critical("%s: ending", reason)
    logging.shutdown()
    # Not sys.exit: a hung thread holds whatever an orderly end would wait for.
    os._exit(EXIT_STATUS)


class Watchdog:
    """Ends the process when a pass takes longer than its limit."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._started_s: float | None = None
        self._stop = threading.Event()
        threading.Thread(target=self._watch, name="engine-watchdog", daemon=True).start()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch one pass."""
        self._started_s = time.monotonic()
        try:
            yield
        finally:
            self._started_s = None

    def running_s(self) -> float:
        """Return how long the current pass has been running; 0 without one."""
        started_s = self._started_s
        return 0.0 if started_s is None else time.monotonic() - started_s

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._limit_s / 4)):
            if self.running_s() > self._limit_s:
                end_process(f"a forward pass has run for {self.running_s():.1f} s (limit {self._limit_s:.1f} s)")
