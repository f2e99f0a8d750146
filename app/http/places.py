"""Places: how many threads of the web server each kind of request may hold, so that no kind takes them all.

Owns the kinds, their shares of the threads, and the sorting of a request by its head, before a byte of its body is
read. A request whose kind is full is refused at once. What is left of the threads answers probes and cancels, and
refuses the others. Knows no route but those that are never refused.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Self

from flask import has_request_context, request

from tasks.errors import LaneFull

__all__ = [
    "PLACE",
    "SMALL_BODY_BYTES",
    "HeldAnswer",
    "Kind",
    "Place",
    "Places",
    "at_place",
    "current_place",
    "find_kind",
]

# Up to here a body comes in one go, or a proxy in front sees to it.
SMALL_BODY_BYTES = 64 * 1024
# The WSGI environment has the place of its request under this name.
PLACE = "twolane.place"
_place: ContextVar["Place | None"] = ContextVar("twolane_place", default=None)
_PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics"})
# What an operator looks at and acts by, above all while the server is overloaded.
_OPERATOR = ("/console", "/v1/admin/", "/v1/workers")
_CANCELS = ("/v1/jobs/", "/v1/batches/")
# Of the places of a kind, the part that one key or the waiting calls of one model may hold.
_OF_ONE = 3 / 4
# Of a hold time, how much the newest counts in the mean.
_NEWEST = 0.1


class Share(NamedTuple):
    """The part of the threads that a kind may hold, and what its refusal says."""

    part: float
    refusal: str


class Kind(Enum):
    """What a request does with its thread."""

    CONTROL = Share(0.0, "")  # probes, metrics and cancels: never refused
    SMALL = Share(1 / 2, "too many small requests are being answered at this moment")
    LARGE = Share(1 / 8, "too many large requests are being answered at this moment; POST /v1/jobs queues a large call")
    UPLOAD = Share(1 / 16, "too many bodies of unknown length, or dry runs, arrive at this moment")
    WAIT = Share(1 / 8, "too many callers wait for jobs on this server; poll instead")
    STREAM = Share(1 / 32, "too many results and files are being read at this moment")


@dataclass(slots=True)
class _Count:
    most: int
    taken: int = 0
    by_holder: Counter[str] = field(default_factory=Counter)
    # Of late, in seconds.
    mean_hold_s: float = 1.0


class Place:
    """One request's hold on a thread. A request has one, of one kind at a time.

    Attributes:
        kind: what it does with the thread.
        arrived_s: `time.monotonic()` at which its head was read; deadlines count from here.
    """

    __slots__ = ("_held_bytes", "_holders", "_places", "_since_s", "arrived_s", "kind")

    def __init__(self, places: "Places | None", kind: Kind) -> None:
        self._places = places
        self._holders: tuple[str, ...] = ()
        self._held_bytes = 0
        self.kind = kind
        self.arrived_s = self._since_s = time.monotonic()

    def join(self, holder: str) -> None:
        """Count this request as one of a key or of a model, none of which may hold all places of a kind.

        Raises:
            LaneFull: it holds most of them already.
        """
        if self._places is None or holder in self._holders:
            return
        if not self._places.join(self.kind, holder):
            raise self._places.refuse(self.kind, holder)
        self._holders = (*self._holders, holder)

    def move(self, kind: Kind) -> None:
        """Become a request of another kind: what a request does is not always in its head.

        Raises:
            LaneFull: that kind is full; the place stays what it was.
        """
        if self._places is None or kind is self.kind:
            return
        if not self._places.enter(kind, self._holders):
            raise self._places.refuse(kind)
        self._leave()
        self.kind, self._since_s = kind, time.monotonic()

    @contextmanager
    def moved(self, kind: Kind) -> Iterator[bool]:
        """Be of another kind while the block runs; False: it is full, and the place stays what it was."""
        before = self.kind
        try:
            self.move(kind)
        except LaneFull:
            yield False
            return
        try:
            yield True
        finally:
            self._leave()
            self.kind = before
            if self._places is not None:
                self._places.enter(before, self._holders, anyway=True)

    def hold(self, size_bytes: int) -> None:
        """Note how much of its body a request has in memory; what it noted before does not count any more.

        Raises:
            LaneFull: the bodies of all requests take too much memory; one alone may take any.
        """
        if self._places is None:
            return
        if not self._places.hold(size_bytes, self._held_bytes):
            message = "too many large bodies are in memory at this moment; send it again, or as NDJSON: POST /v1/jobs"
            raise LaneFull(message, retry_after_s=2)
        self._held_bytes = size_bytes

    def release(self) -> None:
        """Give the thread back. Safe to call twice."""
        self._leave()
        self._forget_body()
        self._places = None

    def _leave(self) -> None:
        if self._places is not None:
            self._places.leave(self.kind, self._holders, time.monotonic() - self._since_s)

    def _forget_body(self) -> None:
        if self._places is not None and self._held_bytes:
            self._places.hold(0, self._held_bytes)
            self._held_bytes = 0


class Places:
    """The places of one web process. Thread-safe.

    Args:
        threads: of the web server.
        memory_bytes: most that the bodies in memory may take together.
    """

    def __init__(self, threads: int, memory_bytes: int) -> None:
        self._lock = threading.Lock()
        self._memory_bytes, self._held_bytes = memory_bytes, 0
        self._counts = {kind: _Count(max(1, int(threads * kind.value.part))) for kind in Kind}

    def take(self, kind: Kind) -> Place | None:
        """Return a place of that kind, to be released once; None: the kind is full."""
        return Place(self, kind) if self.enter(kind) else None

    def count(self, kind: Kind) -> int:
        """Return how many places of that kind are taken."""
        return self._counts[kind].taken

    def refuse(self, kind: Kind, holder: str = "") -> LaneFull:
        """Return the error of a full kind; its `Retry-After` is how long its places were held of late."""
        whose = f", most of them of {holder}" if holder else ""
        return LaneFull(kind.value.refusal + whose, retry_after_s=math.ceil(self._counts[kind].mean_hold_s))

    def enter(self, kind: Kind, holders: Sequence[str] = (), *, anyway: bool = False) -> bool:
        """Count a request in, `anyway` above the limits too; False: the kind is full, or for one of its holders."""
        count = self._counts[kind]
        with self._lock:
            full = count.taken >= count.most or any(self._has_most(count, holder) for holder in holders)
            if full and kind is not Kind.CONTROL and not anyway:
                return False
            count.taken += 1
            count.by_holder.update(holders)
            return True

    def join(self, kind: Kind, holder: str) -> bool:
        """Count a request that is in for a holder, too; False: that one has most of the kind's places."""
        count = self._counts[kind]
        with self._lock:
            if kind is not Kind.CONTROL and self._has_most(count, holder):
                return False
            count.by_holder[holder] += 1
            return True

    @staticmethod
    def _has_most(count: _Count, holder: str) -> bool:
        return count.by_holder[holder] >= max(1, int(count.most * _OF_ONE))

    def hold(self, size_bytes: int, before_bytes: int) -> bool:
        """Count the memory of a request's body anew; False: it does not fit beside the others."""
        with self._lock:
            others = self._held_bytes - before_bytes
            if size_bytes > before_bytes and others and others + size_bytes > self._memory_bytes:
                return False
            self._held_bytes = others + size_bytes
            return True

    def leave(self, kind: Kind, holders: Sequence[str], held_s: float) -> None:
        """Count a request out."""
        count = self._counts[kind]
        with self._lock:
            count.taken -= 1
            for holder in holders:
                count.by_holder[holder] -= 1
                if not count.by_holder[holder]:
                    del count.by_holder[holder]
            count.mean_hold_s += _NEWEST * (held_s - count.mean_hold_s)


class HeldAnswer:
    """An answer that is sent piece by piece, with the place that its request holds until its end or its closing."""

    def __init__(self, answer: Iterable[bytes], place: Place) -> None:
        self._answer, self._pieces, self._place = answer, iter(answer), place

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._pieces)
        except BaseException:
            self._place.release()
            raise

    def close(self) -> None:
        """Close the answer, as WSGI servers do at its end or when its client has gone."""
        try:
            if close := getattr(self._answer, "close", None):
                close()
        finally:
            self._place.release()


def find_kind(environ: Mapping[str, Any]) -> Kind:
    """Return the kind of a request, by its head."""
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    if path in _PROBES or (path.startswith(_CANCELS) and (method == "DELETE" or path.endswith("/cancel"))):
        return Kind.CONTROL
    if method == "GET" and (kind := _find_reader(path, environ.get("QUERY_STRING", ""))) is not None:
        return kind
    if "HTTP_TRANSFER_ENCODING" in environ:
        return Kind.UPLOAD
    length = environ.get("CONTENT_LENGTH") or "0"
    if not length.isdecimal() or int(length) > SMALL_BODY_BYTES:
        return Kind.LARGE
    return Kind.CONTROL if path.startswith(_OPERATOR) else Kind.SMALL


def _find_reader(path: str, query: str) -> Kind | None:
    """Return the kind of a reader of a stream, where the address alone decides it."""
    if path.endswith("/content") or (path.endswith("/results") and "format=" in query and "format=json" not in query):
        return Kind.STREAM
    return Kind.WAIT if path.endswith("/events") else None


def current_place() -> Place:
    """Return the place of the request in progress; outside of one, a place that counts nowhere."""
    place = _place.get()
    if place is None and has_request_context():
        place = request.environ.get(PLACE)
    return place or Place(None, Kind.CONTROL)


@contextmanager
def at_place(place: Place) -> Iterator[None]:
    """Let `current_place` be this one while the block runs, for a request that Flask does not handle."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)
