"""Whether the engine can make a vector right now, as its last real pass showed.

Owns that memory and when a probe is due. A probe is a pass of one short row; it runs on the device's thread.
"""

import time

__all__ = ["Health"]

_PROBE_SICK_S = 1.0
_PROBE_IDLE_S = 10.0


class Health:
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
