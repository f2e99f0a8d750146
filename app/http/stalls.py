"""Bodies that come too slowly, or not at all: whoever sends them must not hold a thread for ever.

A read of `wsgi.input` comes back when a whole block is there and cannot be interrupted, and granian has no time limit
for bodies. So a body is measured between its reads, and one thread looks at the reads in progress: it finds the
connection of one that stalls or trickles among the process's sockets and ends the reading from it. Owns that thread and
the list of reads. Linux and granian only, see `app.http.sockets`.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from app.http.sockets import Sight, Sights, end_reading, find_idle, look, plain_address
from tasks.errors import BodyTooSlow
from tasks.periodic import PeriodicThread

__all__ = ["Body", "StallWatch"]

_log = logging.getLogger(__name__)
_LOOKS_PER_TIMEOUT = 4
# A request that waits for its answer came in one go; what grows again and again while nothing is sent is a body.
_GROWTHS = 3


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(slots=True)
class _Growth:
    """What came on one connection while a read was in progress, and nothing was sent."""

    since_s: float
    first_bytes: int
    sight: Sight
    times: int = 0


class Body:
    """One body while it is read."""

    def __init__(self, watch: "StallWatch", environ: Mapping[str, Any]) -> None:
        self.environ = environ
        self.read_bytes = 0
        self.since_s = 0.0
        self.given_up = False
        # Connections that were ended because they might be this one's.
        self.tried: set[str] = set()
        self._watch = watch
        self._waited_s = 0.0
        self._growths: dict[str, _Growth] = {}

    def read(self, stream: _Stream, size: int) -> bytes:
        """Read a block of this size, or what is left.

        Raises:
            tasks.errors.BodyTooSlow: it was given up.
        """
        # Only our waiting counts: while we store what came, the sender has to wait.
        if self._watch.is_too_slow(self.read_bytes, self._waited_s):
            raise BodyTooSlow("the body came too slowly")
        # What was found holds for one read: one that came back whole was mistaken for another one.
        self._growths, self.since_s, self.given_up = {}, time.monotonic(), False
        with self._watch.watch(self):
            block = stream.read(size)
        self._waited_s += time.monotonic() - self.since_s
        self.read_bytes += len(block)
        if self.given_up and len(block) < size:
            raise BodyTooSlow("the body came too slowly, or nothing of it came any more")
        return block

    def find_trickles(self, sights: Sights, now_s: float, bytes_per_s: int) -> tuple[list[str], bool]:
        """Take in what is seen now; return the connections that trickle, and whether this body's may be about to."""
        address = plain_address(self.environ.get("REMOTE_ADDR", ""))
        self._growths = {
            name: self._grow(name, sight, now_s) for name, sight in sights.items() if sight.address == address
        }
        slow = {
            name: growth.times
            for name, growth in self._growths.items()
            if growth.times
            and growth.sight.received_bytes - growth.first_bytes < bytes_per_s * (now_s - growth.since_s)
        }
        return [name for name, times in slow.items() if times >= _GROWTHS], bool(slow)

    def _grow(self, name: str, sight: Sight, now_s: float) -> _Growth:
        growth = self._growths.get(name)
        if growth is None or growth.sight.sent_bytes != sight.sent_bytes:
            return _Growth(now_s, sight.received_bytes, sight)
        growth.times += sight.received_bytes > growth.sight.received_bytes
        growth.sight = sight
        return growth


class StallWatch:
    """Ends bodies that stall or trickle. Thread-safe; its thread starts with the first body, after any fork.

    Args:
        timeout_s: how long nothing may come, and how long a body may be slow at all.
        bytes_per_s: fewer on average, after the timeout, are too few; 0: any rate will do.
    """

    def __init__(self, timeout_s: float, bytes_per_s: int) -> None:
        self._timeout_s = timeout_s
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._reads: set[Body] = set()
        self._thread: PeriodicThread | None = None

    def is_too_slow(self, read_bytes: int, waited_s: float) -> bool:
        """Tell whether so many bytes are too few for the time that they were waited for."""
        return read_bytes < self._bytes_per_s * (waited_s - self._timeout_s)

    @contextlib.contextmanager
    def watch(self, body: Body) -> Iterator[None]:
        """Watch one read of a body."""
        with self._lock:
            self._reads.add(body)
            if self._thread is None:
                self._thread = PeriodicThread(self._look, self._timeout_s / _LOOKS_PER_TIMEOUT, "stall-watch")
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._reads.discard(body)

    def _look(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            reads = list(self._reads)
        sights = look(reads[0].environ) if reads and self._bytes_per_s else None
        ending: dict[str, Body] = {}
        for body in reads:
            names, suspected = body.find_trickles(sights or {}, now_s, self._bytes_per_s)
            waited_s = now_s - body.since_s
            if waited_s > self._timeout_s and not suspected:
                names = find_idle(body.environ, body.read_bytes, waited_s)
            if waited_s > self._timeout_s and names:
                body.given_up = True
                # Which of them is whose is not known: each is ended for one body, every body is told, and the next look
                # tries another one for a body that still waits.
                if name := next((one for one in names if one not in ending and one not in body.tried), ""):
                    body.tried.add(name)
                    ending[name] = body
        # After all is said, since a reader sees the end of its data before this thread says another word.
        for name, body in ending.items():
            end_reading(body.environ, name)
            _log.warning("a body was given up after %.0f s without a byte, or with too few", now_s - body.since_s)
