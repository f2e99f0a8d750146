"""How long a worker's device may be silent: learned from its slowest pass, so that slow is not taken for hung.

Owns the length of leases in this process, and whether the device seems hung. A hung device must lose its claims, but a
large model on a CPU may take longer for one pass than a lease holds: its chunks would be taken back for ever.
"""

import threading
import time
from collections.abc import Callable

from config.settings import Settings

__all__ = ["Pace", "Silence"]

# A lease covers the slowest pass seen so often over.
_MARGIN = 2
_LOOK_S = 0.1


class Pace:
    """Shared by all chunks of a worker. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slowest_s = 0.0
        self._hung: Silence | None = None

    def lease_s(self, settings: Settings) -> float:
        """Return how long claims of this worker shall hold; never much longer than the watchdog waits for a pass."""
        return min(max(settings.lease_s, _MARGIN * self._slowest_s), settings.lease_s + settings.pass_timeout_s)

    def learn(self, silent_s: float) -> None:
        """Note that the device was silent for so long and then finished something."""
        with self._lock:
            self._slowest_s = max(self._slowest_s, silent_s)

    def suspect(self, silence: "Silence") -> None:
        """Note that a lease ran out while the device finished nothing."""
        with self._lock:
            self._hung = silence

    def wait_until_moving(self, progress: Callable[[], int], timeout_s: float) -> bool:
        """Return at once unless the device seems hung; else when it has moved again, or False after the time.

        Taking more chunks would hand them to a device that does nothing, and lay its silence to their charge.
        """
        until_s = time.monotonic() + timeout_s
        while (hung := self._hung) is not None:
            if hung.look(progress()):
                with self._lock:
                    self._hung = None
            elif time.monotonic() > until_s:
                return False
            else:
                time.sleep(_LOOK_S)
        return True


class Silence:
    """The time since the device last finished something, as one waiting thread sees it."""

    def __init__(self, pace: Pace, progress: int) -> None:
        self._pace = pace
        self._progress = progress
        self._since_s = time.monotonic()

    @property
    def lasts_s(self) -> float:
        """How long it has lasted."""
        return time.monotonic() - self._since_s

    def look(self, progress: int) -> bool:
        """Return whether the device has moved since the last look; if so, the pace learns from it."""
        if progress == self._progress:
            return False
        self._pace.learn(self.lasts_s)
        self._progress, self._since_s = progress, time.monotonic()
        return True
