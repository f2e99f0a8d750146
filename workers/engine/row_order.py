"""The rows that wait for one model in one class of service, and the order in which they go.

Owns two orders. Interactive: fair between requests, so that one of 64 documents does not hold up a single query.
Bulk: by length within a window, so that little padding is computed. Not thread-safe; `queue` holds the lock.
"""

from bisect import insort
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from workers.engine.packing import Budget, pick_around, pick_beside, pick_run
from workers.engine.pending import PendingWork, Row

__all__ = ["BulkLane", "InteractiveLane", "RowLane"]

# A request of at most this part of the bulk window, or of one row, does not wait for the window.
_SHORT_PART = 32
# More tokens than ever wait, so that what is urgent stands before all of them.
_URGENT = 2.0**40
# Rows that are looked at to fill an interactive pass.
_WINDOW_ROWS = 256


class RowLane(Protocol):
    """Rows of one model that wait."""

    def __len__(self) -> int: ...

    def put(self, request: PendingWork) -> None:
        """Let all rows of a request wait."""
        ...

    def take(self, budget: Budget) -> list[Row]:
        """Remove and return the rows of the next pass; at least one row has to wait."""
        ...

    def drop(self, requests: AbstractSet[PendingWork]) -> None:
        """Forget all rows of these requests."""
        ...


class InteractiveLane:
    """Start-time fair queuing between requests (after Goyal, Vin and Cheng 1996).

    A row's tag is the lane's virtual time at its request's arrival plus the tokens of the rows before it in the same
    request; rows go by tag. A short request that comes later so overtakes the rest of a long one. Rows of urgent
    requests go before all others.
    """

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._virtual = 0.0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def head(self) -> Row:
        """The row that goes next."""
        return self._rows[0]

    def put(self, request: PendingWork) -> None:
        """See `RowLane.put`."""
        tag = self._virtual - (_URGENT if request.urgent else 0)
        for row in request.rows:
            row.tag = tag
            tag += len(row)
            insort(self._rows, row, key=_tag)

    def take(self, budget: Budget) -> list[Row]:
        """Take the next row, and those near to it in length."""
        head = self._rows[0]
        self._virtual = max(self._virtual, head.tag)
        window = sorted(self._rows[:_WINDOW_ROWS], key=len)
        start, end = pick_around([len(row) for row in window], window.index(head), budget)
        taken = window[start:end]
        gone = set(map(id, taken))
        self._rows = [row for row in self._rows if id(row) not in gone]
        return taken

    def drop(self, requests: AbstractSet[PendingWork]) -> None:
        """See `RowLane.drop`."""
        self._rows = [row for row in self._rows if row.request not in requests]


class BulkLane:
    """Rows go by length within a window of waiting rows, longest first and shortest first in turn.

    A window is refilled when less than a pass is left of it. The rows left then are the ones at its end, and turning
    the direction lets them go first, so no length waits for ever however much arrives. Short requests and the window
    take turns, so that a small job beside large chunks waits for one pass.
    """

    def __init__(self, window_tokens: int, multiple: int = 1, *, short_first: bool = True) -> None:
        self._short_first = short_first
        self._window_tokens = window_tokens
        self._multiple = multiple
        self._waiting: deque[Row] = deque()
        # Sorted so that the next row is the last one: taking from a list's end is cheap.
        self._window: list[Row] = []
        self._down = False
        self._short: deque[Row] = deque()
        self._was_short = False

    def __len__(self) -> int:
        return len(self._waiting) + len(self._window) + len(self._short)

    def put(self, request: PendingWork) -> None:
        """See `RowLane.put`."""
        short = len(request.rows) == 1 or request.tokens * _SHORT_PART <= self._window_tokens
        (self._short if short and self._short_first else self._waiting).extend(request.rows)

    def take(self, budget: Budget) -> list[Row]:
        """Take the next run of the window, or of short requests."""
        rest = bool(self._waiting or self._window)
        self._was_short = bool(self._short) and not (rest and self._was_short)
        if self._was_short:
            return self._pop_short(pick_run(map(len, self._short), budget, self._multiple))
        if self._waiting and self._is_low(budget):
            self._refill()
        return self._pop(self._count(budget))

    def take_beside(self, rows: Sequence[Row], budget: Budget) -> list[Row]:
        """Remove and return the next rows that fit into a pass with others, short requests first; maybe none."""
        lengths = [len(row) for row in rows]
        if taken := self._pop_short(pick_beside(map(len, self._short), lengths, budget)):
            return taken
        if self._waiting and not self._window:
            self._refill()
        return self._pop(pick_beside(map(len, reversed(self._window)), lengths, budget))

    def drop(self, requests: AbstractSet[PendingWork]) -> None:
        """See `RowLane.drop`."""
        self._waiting = deque(row for row in self._waiting if row.request not in requests)
        self._window = [row for row in self._window if row.request not in requests]
        self._short = deque(row for row in self._short if row.request not in requests)

    def _pop_short(self, count: int) -> list[Row]:
        return [self._short.popleft() for _ in range(count)]

    def _pop(self, count: int) -> list[Row]:
        start = len(self._window) - count
        taken = self._window[start:]
        del self._window[start:]
        return taken

    def _is_low(self, budget: Budget) -> bool:
        """Whether what is left of the window does not fill a pass."""
        return self._count(budget) == len(self._window)

    def _count(self, budget: Budget) -> int:
        return pick_run(map(len, reversed(self._window)), budget, self._multiple)

    def _refill(self) -> None:
        self._down = not self._down
        tokens = sum(map(len, self._window))
        while self._waiting and tokens < self._window_tokens:
            row = self._waiting.popleft()
            tokens += len(row)
            self._window.append(row)
        self._window.sort(key=len, reverse=not self._down)


def _tag(row: Row) -> float:
    return row.tag
