"""Whether this worker's Celery consumer takes chunks: a worker that lives, and whose models do, may still take none.

Owns the look at the consumer from outside of its thread. Seen: a consumer that an operator cancelled, one that cannot
connect anew because files have run out, a loop that stands still; each with good heartbeats, and jobs waited for ever.
"""

import logging
import time
from typing import Any

from tasks.lanes import Lane

__all__ = ["ConsumerWatch"]

_log = logging.getLogger(__name__)
# A consumer that reconnects, or has just been asked to take a lane, is well again within this.
_GRACE_S = 5.0


class ConsumerWatch:
    """See the module. For one thread, that of the heartbeat.

    Args:
        worker: Celery's worker.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._asked = False
        self._answered_s = time.monotonic()
        self._missing_since_s: dict[Lane, float] = {}
        self._logged: set[Lane] = set()

    def takes(self, lane: Lane) -> bool:
        """Return whether the consumer reads the queue of a lane, and its loop has answered of late."""
        now_s = time.monotonic()
        self._ask()
        if self._reads(lane) and now_s - self._answered_s < _GRACE_S:
            self._missing_since_s.pop(lane, None)
            self._logged.discard(lane)
            return True
        if now_s - self._missing_since_s.setdefault(lane, now_s) < _GRACE_S:
            return True
        if lane not in self._logged:
            self._logged.add(lane)
            _log.error("no chunks are taken from %s: its consumer was cancelled, or has no connection", lane.queue)
        return False

    def _reads(self, lane: Lane) -> bool:
        reader = getattr(self._worker.consumer, "task_consumer", None)
        return reader is not None and bool(reader.consuming_from(lane.queue))

    def _ask(self) -> None:
        """Ask the consumer's loop for a sign, one at a time: a loop that stands still must not gather calls."""
        if not self._asked:
            self._asked = True
            self._worker.consumer.call_soon(self._answer)

    def _answer(self) -> None:
        self._asked, self._answered_s = False, time.monotonic()
