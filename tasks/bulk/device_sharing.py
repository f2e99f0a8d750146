"""How the chunks of one worker share its device: how many are held, a reader-writer lock, how far the device has come.

Owns the rule that a chunk which ended a worker is computed alone, the length of leases in this process, and the
suspicion that the device hangs. Computes nothing.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from config.settings import Settings
from tasks import keys
from tasks.lanes import Lane

__all__ = ["DeviceProgress", "DeviceSharing", "HeldChunks", "ProgressWatch", "ReaderWriterLock"]

# A lease covers the slowest pass seen so many times over.
_MARGIN = 2
_POLL_S = 0.1


class HeldChunks:
    """Counts the chunks that this worker holds, and the changes of turns; after `close`, nothing new is taken."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._turns = Counter[str]()
        self.closed = False

    def enter(self, most: int, timeout_s: float, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Count one more, if that makes at most `most` within the time; return whether it was.

        Args:
            most: how many chunks are held.
            timeout_s: how long to wait for room.
            given_up: whether not to wait any more; looked at when `note_turns` is called.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._count < most or given_up(), timeout_s)
            if self.closed or self._count >= most:
                return False
            self._count += 1
            return True

    def turns(self, lane: Lane) -> int:
        """Return a number that grows when another chunk of the lane may have become the next one."""
        return self._turns[keys.lane_ready(lane)] + self._turns[""]

    def note_turns(self, channel: str = "") -> None:
        """Note that other chunks may be the next ones, in the lane of this channel or (empty) in any."""
        with self._changed:
            self._turns[channel] += 1
            self._changed.notify_all()

    def leave(self) -> None:
        """Count one less."""
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Take nothing new from now on: the worker is going away."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()


class ReaderWriterLock:
    """A reader-writer lock whose waiters renew their lease. Writers go first, so that they cannot starve.

    A chunk that ended a worker before is computed alone, as a writer: were another chunk on the device at the same
    time, a crash that one of them causes would be charged to the other, too. Ordinary chunks overlap, as readers.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writing = False
        self._waiting_writers = 0

    @contextmanager
    def read(self, step_s: float, beat: Callable[[], None]) -> Iterator[None]:
        """Hold the lock beside other readers; call `beat` every `step_s` seconds while waiting for it."""
        self._wait(lambda: not self._writing and not self._waiting_writers, step_s, beat)
        self._readers += 1
        self._changed.release()
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def write(self, step_s: float, beat: Callable[[], None]) -> Iterator[None]:
        """Hold the lock alone; call `beat` every `step_s` seconds while waiting for it."""
        with self._changed:
            self._waiting_writers += 1
        try:
            self._wait(lambda: not self._writing and not self._readers, step_s, beat)
            self._writing = True
            self._changed.release()
        finally:
            with self._changed:
                self._waiting_writers -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _wait(self, free: Callable[[], bool], step_s: float, beat: Callable[[], None]) -> None:
        """Return with the condition held once `free()`; when `beat` raises, it is not held."""
        self._changed.acquire()
        while not free():
            if not self._changed.wait(step_s):
                self._changed.release()
                beat()
                self._changed.acquire()


class DeviceProgress:
    """How long one pass may take on this worker's device, and whether the device seems hung. Thread-safe.

    Learned from the slowest pass, so that slow is not taken for hung: a hung device must lose its claims, but a large
    model on a CPU may take longer for one pass than a lease lasts, and its chunks would be taken back again and again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slowest_s = 0.0
        self._hung: ProgressWatch | None = None

    def lease_s(self, settings: Settings) -> float:
        """Return how long claims of this worker last; never much longer than the watchdog waits for a pass."""
        return min(max(settings.lease_s, _MARGIN * self._slowest_s), settings.lease_s + settings.pass_timeout_s)

    def learn(self, pass_s: float) -> None:
        """Note that a pass took so long."""
        with self._lock:
            self._slowest_s = max(self._slowest_s, pass_s)

    def suspect(self, watch: "ProgressWatch") -> None:
        """Note that a lease ran out while the device finished nothing."""
        with self._lock:
            self._hung = watch

    def wait_until_moving(self, progress: Callable[[], int], timeout_s: float) -> bool:
        """Return at once unless the device seems hung; else when it has moved again, or False after the time.

        Taking more chunks would hand them to a device that does nothing, and charge them with its failure.
        """
        until_s = time.monotonic() + timeout_s
        while (hung := self._hung) is not None:
            if hung.has_moved(progress()):
                with self._lock:
                    self._hung = None
            elif time.monotonic() > until_s:
                return False
            else:
                time.sleep(_POLL_S)
        return True


class ProgressWatch:
    """The progress of the device as one waiting thread sees it."""

    def __init__(self, device: DeviceProgress, progress: int) -> None:
        self._device = device
        self._progress = progress
        self._since_s = time.monotonic()

    @property
    def still_s(self) -> float:
        """Seconds since the device last finished a pass."""
        return time.monotonic() - self._since_s

    def has_moved(self, progress: int) -> bool:
        """Return whether the device finished something since the last call; if so, learn how long it took."""
        if progress == self._progress:
            return False
        self._device.learn(self.still_s)
        self._progress, self._since_s = progress, time.monotonic()
        return True


@dataclass(frozen=True, slots=True)
class DeviceSharing:
    """What the chunks of one worker have in common."""

    held: HeldChunks = field(default_factory=HeldChunks)
    lock: ReaderWriterLock = field(default_factory=ReaderWriterLock)
    progress: DeviceProgress = field(default_factory=DeviceProgress)
