"""Who may use the device beside whom, among the chunks of one worker.

Owns the rule that a chunk which ended a worker before is computed alone: were another chunk on the device at the same
time, the end that one of them causes would be laid to the other's charge too. Ordinary chunks overlap.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Turns"]


class Turns:
    """Many shared turns or one turn alone. Those who wait alone go first, so that they cannot starve."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shared = 0
        self._alone = False
        self._waiting_alone = 0

    @contextmanager
    def share(self, step_s: float, beat: Callable[[], None]) -> Iterator[None]:
        """Hold a shared turn; while waiting for it call `beat` every `step_s` seconds, without the lock."""
        self._wait(lambda: not self._alone and not self._waiting_alone, step_s, beat)
        self._shared += 1
        self._changed.release()
        try:
            yield
        finally:
            with self._changed:
                self._shared -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self, step_s: float, beat: Callable[[], None]) -> Iterator[None]:
        """Hold the only turn; while waiting for it call `beat` every `step_s` seconds, without the lock."""
        with self._changed:
            self._waiting_alone += 1
        try:
            self._wait(lambda: not self._alone and not self._shared, step_s, beat)
            self._alone = True
            self._changed.release()
        finally:
            with self._changed:
                self._waiting_alone -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()

    def _wait(self, free: Callable[[], bool], step_s: float, beat: Callable[[], None]) -> None:
        """Return holding the lock once the turn is free; when `beat` raises, the lock is not held."""
        self._changed.acquire()
        while not free():
            if not self._changed.wait(step_s):
                self._changed.release()
                beat()
                self._changed.acquire()
