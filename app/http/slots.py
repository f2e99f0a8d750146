"""Bounded slots: how many threads of the web server one kind of waiting may hold.

Owns the counting. A request that waits holds a thread, and with all threads held nobody else would be served, so each
kind (bodies that arrive, long polls, large calls) has fewer slots than there are threads. Knows no request.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["BoundedSlots"]


class BoundedSlots:
    """Slots of one kind of waiting. Thread-safe."""

    def __init__(self, slots: int) -> None:
        self._free = threading.BoundedSemaphore(max(1, slots))

    def acquire(self) -> Callable[[], None] | None:
        """Take a slot and return what releases it, to be called once; None: all are taken."""
        return self._free.release if self._free.acquire(blocking=False) else None

    @contextmanager
    def slot(self) -> Iterator[bool]:
        """BatchLock a slot while the block runs; False: all are taken, and the caller should not wait."""
        release = self.acquire()
        try:
            yield release is not None
        finally:
            if release is not None:
                release()
