"""What a queue hands out, and what it asks of the loop that takes it.

Owns these two shapes alone: `queue` makes batches, `scheduler` answers the questions, `loop` runs what was taken.
"""

from dataclasses import dataclass
from typing import Protocol

from tasks.lanes import Service
from workers.engine.packing import Budget
from workers.engine.pending import Row

__all__ = ["Batch", "Taker"]


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


class Taker(Protocol):
    """Who takes batches: the loop of a device. Its methods are called under the queue's lock and must be quick."""

    def choose(self, interactive: bool, bulk: bool) -> Service:  # noqa: FBT001 - called by position
        """Return the class that goes next, given in which classes rows wait; in one of them they do."""
        ...

    def serves(self, model: str, service: Service) -> bool:
        """Return whether this model's rows of this class are the taker's."""
        ...

    def budget(self, model: str, service: Service) -> Budget:
        """Return what bounds the next pass."""
        ...

    def fill_budget(self, model: str) -> Budget:
        """Return up to what size bulk rows go along with interactive ones."""
        ...

    def interrupted(self) -> bool:
        """Return whether the taker has something else to do than to wait; see `WorkQueue.wake`."""
        ...
