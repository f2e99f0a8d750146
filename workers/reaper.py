"""Once a second: take back what dead workers held and fill the windows of the bulk lanes.

Owns the thread and its rhythm. The rules are in `tasks.store`; any number of workers may do this at the same time.
"""

import logging
import threading
from collections.abc import Sequence

from tasks.bulk import reap
from tasks.lanes import Lane
from tasks.store import JobStore

__all__ = ["Reaper"]

_log = logging.getLogger(__name__)

_PERIOD_S = 1.0
_STOP_S = 3.0


class Reaper:
    """Reaps these lanes from `start()` to `stop()`."""

    def __init__(self, store: JobStore, lanes: Sequence[Lane]) -> None:
        self._store = store
        self._lanes = lanes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Reap from now on."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Safe to call twice."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        failing = False
        while not self._stop.wait(_PERIOD_S):
            try:
                for lane in self._lanes:
                    reap(self._store, lane)
                failing = False
            except Exception as error:  # noqa: BLE001 - the edge of this thread: it must outlive its server
                if not failing:
                    _log.warning("overdue chunks cannot be looked for just now: %s", error)
                failing = True
