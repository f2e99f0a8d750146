"""Which waiting work expires next.

Owns a heap of deadlines. Work that ended stays in it until its deadline, or until too many such entries have gathered.
"""

import heapq
import itertools
from collections.abc import Collection, Iterator

from workers.engine.pending import PendingWork

__all__ = ["Deadlines"]

# Entries of ended work that may stay.
_SLACK = 256


class Deadlines:
    """Work by its deadline. Not thread-safe: the queue's lock guards it."""

    def __init__(self) -> None:
        # The counter keeps works themselves from being compared.
        self._heap: list[tuple[float, int, PendingWork]] = []
        self._order = itertools.count()

    def add(self, work: PendingWork, waiting: Collection[PendingWork]) -> None:
        """Note the deadline of a work, if it has one; `waiting` is all work that has not ended."""
        if work.deadline_s is None:
            return
        if len(self._heap) > 2 * len(waiting) + _SLACK:
            self._heap = [entry for entry in self._heap if entry[2] in waiting]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (work.deadline_s, next(self._order), work))

    def pop_until(self, now_s: float) -> Iterator[PendingWork]:
        """Remove and return what is past its deadline, ended or not."""
        while self._heap and self._heap[0][0] <= now_s:
            yield heapq.heappop(self._heap)[2]
