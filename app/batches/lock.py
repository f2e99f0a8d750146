"""The hold of this process on a batch while it moves it on.

Owns when the hold is renewed. Long loops call `keep` at every step; it asks the store only every few seconds.
"""

import time
from collections.abc import Mapping

from tasks.files.batches import Batch, BatchState, BatchStore

__all__ = ["Hold", "HoldLostError"]

_RENEW_S = 5.0


class HoldLostError(Exception):
    """Another process moves this batch on, or somebody cancelled it: what was done here does not count."""


class Hold:
    """The right to move one batch on."""

    def __init__(self, store: BatchStore, batch: Batch, holder: str) -> None:
        self._store = store
        self._holder = holder
        self.batch = batch
        self._renew_at_s = time.monotonic() + _RENEW_S

    def keep(self) -> None:
        """Renew the hold when it is time.

        Raises:
            HoldLostError: it is lost.
        """
        if time.monotonic() < self._renew_at_s:
            return
        if not self._store.lock(self.batch.id, self.batch.tenant, self._holder):
            raise HoldLostError
        self._renew_at_s = time.monotonic() + _RENEW_S

    def move(self, goal: BatchState, fields: Mapping[str, object]) -> BatchState:
        """Move the batch on and return the state that it has now, which is `cancelling` or `cancelled` if it was so.

        Raises:
            HoldLostError: nothing was written.
        """
        reached = self._store.move(self.batch, self._holder, goal, fields)
        if reached is None:
            raise HoldLostError
        self.batch = self._store.get(self.batch.id, self.batch.tenant)
        return reached
