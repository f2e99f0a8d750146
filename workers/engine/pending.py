"""One piece of work inside the engine: its rows for the device, its deadline, and the future of its caller.

Owns scattering: every row knows its work and its place there, so a batch may mix rows of many works. Knows
neither the order of rows (`queue`) nor how outcomes follow from rows (`admission` gives it that as a function).
"""

import heapq
import itertools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.engine import ItemError, Outcomes, Timing
from tasks.lanes import Service
from tasks.vectors import ExtraParts
from workers.models.loaded import LoadedModel
from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["Batch", "Deadlines", "ExtraSink", "Finish", "PendingWork", "Row"]

# Deadlines of ended work that may stay in the heap.
_SLACK = 256

# From the values of all rows and the rows that failed to the outcomes of the work.
Finish = Callable[[NDArray[np.float32], Mapping[int, ItemError]], Outcomes]


class ExtraSink(Protocol):
    """Takes what rows got besides their values; called by the device's thread."""

    def __setitem__(self, row: int, parts: ExtraParts, /) -> None:
        """Take the extras of a row."""
        ...


@dataclass(slots=True, eq=False)
class Row:
    """One row for the device: its ids, whose it is, and which of its request's rows it is."""

    request: "PendingWork"
    index: int
    tokens: Tokens
    length: int
    # Place in the order of the interactive lane, see `row_order.InteractiveLane`.
    tag: float = 0.0

    def __len__(self) -> int:
        return self.length


class PendingWork:
    """Collects the values of its rows and ends its future exactly once.

    Attributes:
        model: the loaded model that the rows are for.
        service: interactive or bulk.
        urgent: whether it goes ahead of other interactive requests.
        deadline_s: `time.monotonic()` after which nobody waits any more; None never.
        future: what the caller holds. It stays pending until it is settled, so that it can be cancelled any time.
        rows: all rows, in order of their index.
        extras: takes, by index, what rows got besides their values.
        asked_s: when the queue took it, by the queue's clock.
        waited_s: from then until the device began with it; None: it has not.
        device_s: its part of the passes that computed it, by tokens.
    """

    __slots__ = (
        *("_errors", "_finish", "_left", "_lock", "_values"),
        *("asked_s", "deadline_s", "device_s", "extras", "future", "model", "rows", "service", "urgent", "waited_s"),
    )

    def __init__(self, model: LoadedModel, service: Service, deadline_s: float | None, finish: Finish) -> None:
        self.model = model
        self.service = service
        self.urgent = False
        self.deadline_s = deadline_s
        self.future: Future[Outcomes] = Future()
        self.rows: list[Row] = []
        # Not `dict[int, ExtraParts]()`: making that type anew takes longer than all else here.
        no_extras: dict[int, ExtraParts] = {}
        self.extras: ExtraSink = no_extras
        self.asked_s = self.device_s = 0.0
        self.waited_s: float | None = None
        self._finish = finish
        self._errors: dict[int, ItemError] = {}
        self._left = 0
        self._lock = threading.Lock()
        self._values = np.empty(0, np.float32)

    def add_rows(self, rows: Sequence[Tokens]) -> None:
        """Set the rows that the device has to compute."""
        dimension = self.model.backend.dimension
        self.rows = [Row(self, index, tokens, len(tokens)) for index, tokens in enumerate(rows)]
        self._left = len(rows)
        self._values = np.zeros((len(rows),) if dimension is None else (len(rows), dimension), np.float32)

    @property
    def tokens(self) -> int:
        """Tokens of all rows, without padding."""
        return sum(map(len, self.rows))

    @property
    def ended(self) -> bool:
        """Whether the future has ended, by us or by a caller that cancelled it."""
        return self.future.done()

    def then(self, change: Callable[[Outcomes], Outcomes]) -> None:
        """Change the outcomes before the future ends with them. For one who has not queued the rows yet."""
        finish = self._finish
        self._finish = lambda values, failed: change(finish(values, failed))

    def accept(self, index: int, value: NDArray[np.float32]) -> None:
        """Take the value of one row."""
        self._values[index] = value
        self._count()

    def refuse(self, index: int, error: ItemError) -> None:
        """Take note that one row cannot be computed."""
        self._errors[index] = error
        self._count()

    def finish_if_complete(self) -> None:
        """End the future when no row is missing. Called once more for a request without rows."""
        if self._left == 0:
            try:
                outcomes = self._finish(self._values, self._errors)
            except Exception as error:  # noqa: BLE001 - an edge: somebody waits for this future
                self.fail(error)
            else:
                timing = Timing(self.waited_s or 0.0, self.device_s)
                self._settle(lambda: self.future.set_result(replace(outcomes, timing=timing)))

    def fail(self, error: BaseException) -> None:
        """End the future with an error, unless it has ended."""
        self._settle(lambda: self.future.set_exception(error))

    def _count(self) -> None:
        self._left -= 1

    def _settle(self, end: Callable[[], None]) -> None:
        """Leave the pending state once: several threads of ours may want to, and a caller may cancel meanwhile."""
        with self._lock:
            mine = not self.future.done() and not self.future.running() and self.future.set_running_or_notify_cancel()
        if mine:
            end()


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one model that go through the device together.

    Attributes:
        model: name of the card.
        service: the class whose turn it is. With interactive rows, bulk rows may go along.
        rows: by length, at least one.
        contended: whether rows of both classes waited.
    """

    model: str
    service: Service
    rows: list[Row]
    contended: bool = False

    @property
    def bulk_part(self) -> float:
        """Bulk's part of the batch's tokens, in [0, 1]."""
        if self.service is Service.BULK:
            return 1.0
        bulk = sum(len(row) for row in self.rows if row.request.service is Service.BULK)
        return bulk / sum(map(len, self.rows))


class Deadlines:
    """Work by its deadline. Not thread-safe: the queue's lock guards it.

    Work that ended stays until its deadline, or until too many such entries have gathered.
    """

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
