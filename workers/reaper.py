"""Once a second: take back the claims of dead workers and fill the windows of the bulk lanes.

Owns the period. The rules are in `tasks.jobs.leases`; any number of workers may do this at the same time.
"""

from collections.abc import Sequence

from tasks.bulk.chunk_task import reap
from tasks.jobs.leases import Leases
from tasks.lanes import Lane
from tasks.periodic import PeriodicThread

__all__ = ["Reaper"]

_PERIOD_S = 1.0
_STOP_S = 3.0


class Reaper:
    """Reaps these lanes from `start()` to `stop()`."""

    def __init__(self, leases: Leases, lanes: Sequence[Lane]) -> None:
        self._leases = leases
        self._lanes = lanes
        self._thread = PeriodicThread(self._reap_all, _PERIOD_S, "reaper")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Safe to call twice."""
        self._thread.stop(_STOP_S)

    def _reap_all(self) -> None:
        for lane in self._lanes:
            reap(self._leases, lane)
