"""Whether the device works: a watchdog over the running pass, and what the last pass showed.

Owns the clock of the current pass: a pass that never ends ends the process, so that a launcher can start a fresh one,
since nothing inside a process can stop a hung device call. Owns when a probe is due too; a probe is a pass of one short
row, which the device's thread runs.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["EXIT_STATUS", "DeviceHealth", "Watchdog", "end_process"]

log = logging.getLogger(__name__)

# EX_SOFTWARE of sysexits.h: the launcher can tell it from a crash.
EXIT_STATUS = 70
_PROBE_SICK_S = 1.0
_PROBE_IDLE_S = 10.0


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


class DeviceHealth:
    """Remembers the last pass that said something about the device. Written by one thread, read by any."""

    def __init__(self) -> None:
        self._well = True
        self._seen_s = self._well_s = time.monotonic()

    @property
    def well(self) -> bool:
        """Whether the last pass or probe gave a vector."""
        return self._well

    def note(self, *, well: bool) -> None:
        """Take note of how a pass or a probe ended."""
        self._well = well
        self._seen_s = time.monotonic()
        if well:
            self._well_s = self._seen_s

    def sick_s(self) -> float:
        """Return for how long no pass and no probe gave a vector; 0 if the last one did."""
        return 0.0 if self._well else time.monotonic() - self._well_s

    def probe_due_s(self) -> float:
        """Return in how many seconds a probe is due: soon after a failure, seldom while nothing happens."""
        wait_s = _PROBE_IDLE_S if self._well else _PROBE_SICK_S
        return max(0.0, self._seen_s + wait_s - time.monotonic())
