"""The lock of this process on a batch while it advances it.

Owns when the lock is renewed. Long loops call `keep` at every step; it asks Redis only every few seconds.
"""

import time
from collections.abc import Mapping

from tasks.files.batches import BatchRecord, BatchState, BatchStore

__all__ = ["BatchLock", "LockLostError"]

_RENEW_S = 5.0


class LockLostError(Exception):
    """Another process advances this batch, or it was cancelled: what was done here does not count."""


class BatchLock:
    """The right to advance one batch."""

    def __init__(self, store: BatchStore, batch: BatchRecord, holder: str) -> None:
        self._store = store
        self._holder = holder
        self.batch = batch
        self._renew_at_s = time.monotonic() + _RENEW_S

    def keep(self) -> None:
        """Renew the lock when it is time.

        Raises:
            LockLostError: it is lost.
        """
        if time.monotonic() < self._renew_at_s:
            return
        if not self._store.lock(self.batch.id, self.batch.tenant, self._holder):
            raise LockLostError
        self._renew_at_s = time.monotonic() + _RENEW_S

    def move(self, goal: BatchState, fields: Mapping[str, object]) -> BatchState:
        """Move the batch to a state and return the one that it has now: `cancelling` or `cancelled` win.

        Raises:
            LockLostError: nothing was written.
        """
        reached = self._store.move(self.batch, self._holder, goal, fields)
        if reached is None:
            raise LockLostError
        self.batch = self._store.get(self.batch.id, self.batch.tenant)
        return reached
