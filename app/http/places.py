"""Places: how many threads of the web server each kind of request may hold, so that no kind takes them all.

Owns the kinds, their shares of the threads, and the sorting of a request by its head, before a byte of its body is
read. A request whose kind is full is refused at once. What is left of the threads answers probes and cancels, and
refuses the others. Knows no route but those that are never refused.
"""

import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Self

from flask import has_request_context, request

from tasks.errors import LaneFull

__all__ = ["PLACE", "SMALL_BODY_BYTES", "HeldAnswer", "Kind", "Place", "Places", "current_place", "find_kind"]

# Up to here a body comes in one go, or a proxy in front sees to it.
SMALL_BODY_BYTES = 64 * 1024
# The WSGI environment has the place of its request under this name.
PLACE = "twolane.place"
_PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics"})
_CANCELS = ("/v1/jobs/", "/v1/batches/")
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
    STREAM = Share(1 / 16, "too many results and files are being read at this moment")


@dataclass(slots=True)
class _Count:
    most: int
    taken: int = 0
    # Of late, in seconds.
    mean_hold_s: float = 1.0


class Place:
    """One request's hold on a thread. A request has one, of one kind at a time.

    Attributes:
        kind: what it does with the thread.
        arrived_s: `time.monotonic()` at which its head was read; deadlines count from here.
    """

    __slots__ = ("_places", "_since_s", "arrived_s", "kind")

    def __init__(self, places: "Places | None", kind: Kind) -> None:
        self._places = places
        self.kind = kind
        self.arrived_s = self._since_s = time.monotonic()

    def move(self, kind: Kind) -> None:
        """Become a request of another kind: what a request does is not always in its head.

        Raises:
            LaneFull: that kind is full; the place stays what it was.
        """
        if self._places is None or kind is self.kind:
            return
        if not self._places.enter(kind):
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
                self._places.enter(before, anyway=True)

    def release(self) -> None:
        """Give the thread back. Safe to call twice."""
        self._leave()
        self._places = None

    def _leave(self) -> None:
        if self._places is not None:
            self._places.leave(self.kind, time.monotonic() - self._since_s)


class Places:
    """The places of one web process. Thread-safe."""

    def __init__(self, threads: int) -> None:
        self._lock = threading.Lock()
        self._counts = {kind: _Count(int(threads * kind.value.part)) for kind in Kind}

    def take(self, kind: Kind) -> Place | None:
        """Return a place of that kind, to be released once; None: the kind is full."""
        return Place(self, kind) if self.enter(kind) else None

    def count(self, kind: Kind) -> int:
        """Return how many places of that kind are taken."""
        return self._counts[kind].taken

    def refuse(self, kind: Kind) -> LaneFull:
        """Return the error of a full kind; its `Retry-After` is how long its places were held of late."""
        return LaneFull(kind.value.refusal, retry_after_s=math.ceil(self._counts[kind].mean_hold_s))

    def enter(self, kind: Kind, *, anyway: bool = False) -> bool:
        """Count a request in, `anyway` above the limit too; False: the kind is full."""
        count = self._counts[kind]
        with self._lock:
            if kind is not Kind.CONTROL and count.taken >= count.most and not anyway:
                return False
            count.taken += 1
            return True

    def leave(self, kind: Kind, held_s: float) -> None:
        """Count a request out."""
        count = self._counts[kind]
        with self._lock:
            count.taken -= 1
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
    """Return the kind of a request as its head tells it."""
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    if path in _PROBES or (path.startswith(_CANCELS) and (method == "DELETE" or path.endswith("/cancel"))):
        return Kind.CONTROL
    if "HTTP_TRANSFER_ENCODING" in environ:
        return Kind.UPLOAD
    length = environ.get("CONTENT_LENGTH") or "0"
    return Kind.SMALL if length.isdecimal() and int(length) <= SMALL_BODY_BYTES else Kind.LARGE


def current_place() -> Place:
    """Return the place of the request in progress; outside of one, a place that counts nowhere."""
    place: Place | None = request.environ.get(PLACE) if has_request_context() else None
    return place or Place(None, Kind.CONTROL)
