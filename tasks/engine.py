"""The engine as a task sees it: work goes in, outcomes come back through a future.

Owns the types that cross this border and no code; `workers.engine` implements the protocol and `tasks` calls it.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tasks.errors import TwolaneError
from tasks.lanes import Service
from tasks.vectors import DENSE_ONLY, Extra, Kind, Ragged

__all__ = [
    "NO_METER",
    "Engine",
    "ItemError",
    "JobParams",
    "Meter",
    "Operation",
    "Outcomes",
    "Timing",
    "TokenOperation",
    "Truncate",
    "Windows",
    "Work",
    "count_usage",
]

# What jobs are made of.
Operation = Literal["embeddings", "rerank"]
# What a call may ask of a worker besides, which no device computes.
TokenOperation = Literal["tokenize", "detokenize"]
Truncate = Literal["end", "start", "none"]


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one item has no result: a permanent code and a sentence."""

    code: str
    message: str

    @classmethod
    def of(cls, error: TwolaneError) -> Self:
        """Return the item error that stands for an error."""
        return cls(error.code, error.message)


@dataclass(frozen=True, slots=True)
class Windows:
    """How a text is read in several windows, each of them a part of it that the model reads by itself.

    Attributes:
        pooling: what becomes of the windows of one text. `mean`: the mean of their vectors, weighted by their tokens;
            `max`: the largest of each component, or the best score; `chunks`: each keeps its vector.
        tokens: most tokens of the text in one window; None: as many as the model has room for.
        overlap: about how many tokens a window shares with the one before; None: an eighth of `tokens`.
        most: most windows of one text; what is behind them is truncated. None: all.
    """

    pooling: Literal["mean", "max", "chunks"]
    tokens: int | None = None
    overlap: int | None = None
    most: int | None = None

    def fit(self, room: int) -> tuple[int, int]:
        """Return the tokens of a window and those of an overlap where a model has room for so many."""
        size = min(self.tokens or room, room)
        return size, min(size // 8 if self.overlap is None else self.overlap, size // 2)


@dataclass(frozen=True, slots=True)
class JobParams:
    """How items are computed and kept, of a job or of a small request; hashable.

    Attributes:
        instruction: put before each text by the model's own format; None leaves the text alone.
        dimensions: cut embeddings to this length and normalize again; None keeps the model's own.
        truncate: cut a text that is too long at its `end` or its `start`; `none` makes it an item error with
            code `context_length_exceeded`.
        dtype: precision in which a job's vectors are kept.
        cache: whether values may come from the tenant's earlier work; None: as the API key says.
        dedupe: likewise within the job.
        returns: for embeddings, the kinds of vectors that are wanted.
        role: for models that read queries otherwise than documents, what the texts are; None: documents.
        cutoff_layer: for rerank by a layerwise model, the layer after which it scores; None: the last.
        long: how texts are read in several windows; None: each is read once, and truncated.
    """

    instruction: str | None = None
    dimensions: int | None = None
    truncate: Truncate = "end"
    dtype: Literal["float32", "float16"] = "float32"
    cache: bool | None = None
    dedupe: bool | None = None
    returns: tuple[Kind, ...] = DENSE_ONLY
    role: Literal["query", "document"] | None = None
    cutoff_layer: int | None = None
    long: Windows | None = None

    def __post_init__(self) -> None:
        # Params that were read back from JSON have a list and an object here, and they have to be hashable.
        object.__setattr__(self, "returns", tuple(self.returns))
        long: object = self.long
        if isinstance(long, Mapping):
            object.__setattr__(self, "long", Windows(**long))

    @property
    def in_chunks(self) -> bool:
        """Whether each item has the vectors of its windows instead of one dense vector."""
        return self.long is not None and self.long.pooling == "chunks"

    @property
    def dense(self) -> bool:
        """Whether each item has one dense vector, of embeddings."""
        return "dense" in self.returns and not self.in_chunks

    @property
    def extras(self) -> tuple[Extra, ...]:
        """What each item has besides."""
        more: tuple[Extra, ...] = tuple(kind for kind in self.returns if kind != "dense")
        return (*more, "chunks") if self.in_chunks else more


@dataclass(frozen=True, slots=True)
class Work:
    """Items for one model, to be computed together or apart, as the engine likes.

    Attributes:
        model: name of the card (`ModelCard.name`).
        operation: what to compute.
        texts: the texts, or for rerank the documents; for `detokenize` ids with blanks between; length n.
        queries: for rerank, the query of each document, length n; else None.
        service: interactive or bulk.
        params: how to compute them.
        reuse: scope of the cache in which values may be looked up, see `tasks.cache.values`; empty: none.
        fingerprint: that the model has to have, so that a job is computed by one; empty: any.
        urgent: goes ahead of other interactive work.
        deadline_s: `time.monotonic()` after which the result is of no use any more; None never.
    """

    model: str
    operation: Operation | TokenOperation
    texts: Sequence[str]
    queries: Sequence[str] | None = None
    service: Service = Service.BULK
    params: JobParams = field(default_factory=JobParams)
    reuse: str = ""
    fingerprint: str = ""
    urgent: bool = False
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of one piece of work went, in seconds.

    Attributes:
        queue_s: from its arrival in the engine until the device began with it.
        device_s: its part of the passes that computed it, by tokens.
        worker_s: from the moment when the worker took it until its reply was made; 0: not known.
    """

    queue_s: float = 0.0
    device_s: float = 0.0
    worker_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of n items, in their order, as columns.

    Attributes:
        values: float32, shape (n, d) embeddings or (n,) scores in [0, 1]; rows of failed items are zero. d is 0 where
            dense vectors were not asked for.
        tokens: int32, shape (n,): tokens that the model read, special tokens included, after truncation.
        truncated: bool, shape (n,): whether text was cut off.
        errors: the failed items by position.
        cached: cache hits: items whose value was found instead of computed; None: the cache was not asked.
        extras: the other kinds that were asked for; a failed item owns nothing there.
        fingerprint: says what made the values: weights, modules, prompts, precision.
        timing: where the time went.
    """

    values: NDArray[np.float32]
    tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    errors: Mapping[int, ItemError] = field(default_factory=dict)
    cached: int | None = None
    extras: Mapping[Extra, Ragged] = field(default_factory=dict)
    fingerprint: str = ""
    timing: Timing = Timing()


class Meter(Protocol):
    """Takes what is measured, by the name of a metric (without `twolane_`) and the values of its labels."""

    def add(self, name: str, labels: tuple[str, ...], amount: float = 1) -> None:
        """Add to a counter."""
        ...

    def observe(self, name: str, labels: tuple[str, ...], value: float) -> None:
        """Count one value of a histogram."""
        ...


class _NoMeter:
    def add(self, name: str, labels: tuple[str, ...], amount: float = 1) -> None:
        """Measure nothing."""

    def observe(self, name: str, labels: tuple[str, ...], value: float) -> None:
        """Measure nothing."""


NO_METER: Meter = _NoMeter()


def count_usage(meter: Meter, key: tuple[str, str], items: int, tokens: int, device_s: float) -> None:
    """Count what was computed for a key, given as its tenant and its ID."""
    meter.add("usage_items_total", key, items)
    meter.add("usage_tokens_total", key, tokens)
    meter.add("usage_device_seconds_total", key, device_s)


class Engine(Protocol):
    """What a worker offers to a task."""

    def submit(self, work: Work) -> Future[Outcomes]:
        """Tokenize and queue the work; the future ends with its outcomes.

        The future ends with `DeadlineExceeded` when the deadline passed before the device saw the work, and with
        `EngineClosed` when the worker goes away. Cancelling the future frees its place in the queue.

        Raises:
            tasks.errors.NoWorker: the model is not loaded here, or not with the fingerprint that the work asks for.
            tasks.errors.LaneFull: more tokens wait than `Settings.engine_max_tokens`.
            tasks.errors.EngineClosed: the worker is going away.
        """
        ...

    def submit_all(self, works: Sequence[Work]) -> list[Future[Outcomes]]:
        """Submit several works, which costs less than one by one.

        The future of a work that is not taken has ended with the error that `submit` raises.
        """
        ...

    def progress(self) -> int:
        """Return a number that grows whenever the device finishes a forward pass, of any model and any lane.

        A lease is renewed only when it has moved, so that a hung device loses its claims.
        """
        ...
