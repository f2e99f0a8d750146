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

__all__ = ["Engine", "ItemError", "JobParams", "Operation", "Outcomes", "Truncate", "Work"]

Operation = Literal["embeddings", "rerank"]
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

    def __post_init__(self) -> None:
        # Params that were read back from JSON have a list here, and they have to be hashable.
        object.__setattr__(self, "returns", tuple(self.returns))


@dataclass(frozen=True, slots=True)
class Work:
    """Items for one model, to be computed together or apart, as the engine likes.

    Attributes:
        model: name of the card (`ModelCard.name`).
        operation: what to compute.
        texts: the texts, or for rerank the documents; length n.
        queries: for rerank, the query of each document, length n; else None.
        service: interactive or bulk.
        params: how to compute them.
        reuse: scope of the cache in which values may be looked up, see `tasks.cache.values`; empty: none.
        fingerprint: that the model has to have, so that a job is computed by one; empty: any.
        deadline_s: `time.monotonic()` after which the result is of no use any more; None never.
    """

    model: str
    operation: Operation
    texts: Sequence[str]
    queries: Sequence[str] | None = None
    service: Service = Service.BULK
    params: JobParams = field(default_factory=JobParams)
    reuse: str = ""
    fingerprint: str = ""
    deadline_s: float | None = None


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
    """

    values: NDArray[np.float32]
    tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    errors: Mapping[int, ItemError] = field(default_factory=dict)
    cached: int | None = None
    extras: Mapping[Extra, Ragged] = field(default_factory=dict)
    fingerprint: str = ""


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

    def progress(self) -> int:
        """Return a number that grows whenever the device finishes a forward pass, of any model and any lane.

        A lease is renewed only when it has moved, so that a hung device loses its claims.
        """
        ...
