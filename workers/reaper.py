"""Once a second: take back what dead workers held and fill the windows of the bulk lanes.

Owns the rhythm. The rules are in `tasks.jobs.leases`; any number of workers may do this at the same time.
"""

from collections.abc import Sequence

from tasks.bulk.chunk_task import reap
from tasks.jobs.leases import Leases
from tasks.lanes import Lane
from tasks.periodic import Rounds

__all__ = ["Reaper"]

_PERIOD_S = 1.0
_STOP_S = 3.0


class Reaper:
    """Reaps these lanes from `start()` to `stop()`."""

    def __init__(self, leases: Leases, lanes: Sequence[Lane]) -> None:
        self._leases = leases
        self._lanes = lanes
        self._rounds = Rounds(self._look, _PERIOD_S, "reaper")

    def start(self) -> None:
        """Reap from now on."""
        self._rounds.start()

    def stop(self) -> None:
        """End the thread. Safe to call twice."""
        self._rounds.stop(_STOP_S)

    def _look(self) -> None:
        for lane in self._lanes:
            reap(self._leases, lane)
