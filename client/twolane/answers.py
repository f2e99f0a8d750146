"""What the server answers, typed.

Owns the shapes; their names are those of the server's OpenAPI document, which a test compares. Fields that are not
known here are ignored, so that a newer server can be talked to.
"""

import array
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from twolane.errors import MissingExtra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "ENDED",
    "Embedding",
    "Embeddings",
    "Estimate",
    "ItemError",
    "Job",
    "JobCounts",
    "JobPage",
    "Model",
    "ModelPage",
    "ModelWorker",
    "RankedDocument",
    "Ranking",
    "ResultItem",
    "ResultPage",
    "Usage",
    "WebhookState",
    "errors_of",
    "stack_vectors",
    "unpack_vector",
]

ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})


class Usage(msgspec.Struct, frozen=True):
    """Tokens that the model read; with `cache`, how many items came from the cache."""

    prompt_tokens: int
    total_tokens: int
    cached_items: int | None = None


class Chunk(msgspec.Struct, frozen=True):
    """A part of a text, `text[start:end]`, and its vector: little-endian float32 bytes, which `vector` unpacks."""

    start: int
    end: int
    embedding: bytes

    @property
    def vector(self) -> list[float]:
        """The vector."""
        return unpack_vector(self.embedding)


class Embedding(msgspec.Struct, frozen=True):
    """What one text became. Vectors are little-endian float32 bytes; `vector` unpacks the dense one."""

    index: int
    embedding: bytes | None = None
    sparse: dict[str, float] | None = None
    colbert: list[bytes] | None = None
    chunks: list[Chunk] | None = None
    tokens: int = 0
    truncated: bool = False
    error: "ItemError | None" = None

    @property
    def vector(self) -> list[float]:
        """The dense vector; empty when it was not asked for."""
        return unpack_vector(self.embedding)


class Embeddings(msgspec.Struct, frozen=True):
    """Vectors of several texts, in input order."""

    data: list[Embedding]
    model: str
    usage: Usage

    @property
    def vectors(self) -> list[list[float]]:
        """The dense vectors."""
        return [entry.vector for entry in self.data]

    def numpy(self) -> "NDArray[np.float32]":
        """Return the dense vectors, float32 of shape (n, d).

        Raises:
            MissingExtra: numpy is not installed.
        """
        return stack_vectors([entry.embedding for entry in self.data])


class RankedDocument(msgspec.Struct, frozen=True):
    """One document and its score in [0, 1]; `index` is its position in the request."""

    index: int
    relevance_score: float
    document: dict[str, Any] | str | None = None


class Ranking(msgspec.Struct, frozen=True):
    """Documents by score, best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: Usage
    meta: dict[str, Any] = {}


class ModelWorker(msgspec.Struct, frozen=True):
    """What one worker says of a model. `name` stays over restarts, `worker` is new at each; `progress` is in [0, 1]."""

    worker: str
    name: str = ""
    state: str = ""
    reason: str = ""
    step: str = ""
    progress: float | None = None
    order: int = 0
    memory_bytes: int = 0
    pinned: bool = False
    idle_s: float = 0.0
    load_s: float = 0.0
    since_s: float = 0.0
    fingerprint: str | None = None


class Model(msgspec.Struct, frozen=True):
    """A model of the server; `ready`: whether a worker can compute with it now.

    `fingerprints` are those of its ready workers: equal ones compare. `matryoshka` are the lengths to which its vectors
    may be cut, besides all from `matryoshka_from` on, if that is not 0.
    """

    id: str
    created: int = 0
    owned_by: str = ""
    description: str = ""
    aliases: list[str] = []
    capabilities: list[str] = []
    dimension: int | None = None
    max_tokens: int = 0
    rerank_by: str | None = None
    matryoshka: list[int] = []
    matryoshka_from: int = 0
    job_input_type: str | None = None
    similarity: str | None = None
    licence: str = ""
    parameters: str = ""
    query_instruction: str = ""
    document_instruction: str = ""
    cutoff_layers: list[int] = []
    fingerprints: list[str] = []
    ready: bool = False
    workers: list[ModelWorker] = []


class ModelPage(msgspec.Struct, frozen=True):
    """All models of the server."""

    data: list[Model]


class JobCounts(msgspec.Struct, frozen=True):
    """Items by outcome."""

    total: int
    completed: int
    failed: int
    truncated: int
    cached: int = 0


class ItemError(msgspec.Struct, frozen=True):
    """Why one item has no result."""

    code: str
    message: str


class ResultItem(msgspec.Struct, frozen=True):
    """What became of one item of a job; vectors are little-endian float32 bytes."""

    index: int
    tokens: int
    truncated: bool
    id: str | None = None
    embedding: bytes | None = None
    sparse: dict[str, float] | None = None
    colbert: list[bytes] | None = None
    chunks: list[Chunk] | None = None
    query: int | None = None
    document: int | None = None
    relevance_score: float | None = None
    error: ItemError | None = None

    @property
    def vector(self) -> list[float]:
        """The dense vector; empty where the item failed or it was not asked for."""
        return unpack_vector(self.embedding)


class WebhookState(msgspec.Struct, frozen=True):
    """What became of the message of a job's end. `secret` is there once, in the answer that made it."""

    url: str
    status: str
    attempts: int = 0
    last_attempt_at: float | None = None
    next_attempt_at: float | None = None
    answer: int | None = None
    error: str | None = None
    secret: str | None = None


class Job(msgspec.Struct, frozen=True):
    """A job. Times are seconds since 1970."""

    id: str
    type: str
    model: str
    status: str
    counts: JobCounts
    created_at: float
    expires_at: float
    started_at: float | None = None
    ended_at: float | None = None
    chunks: dict[str, int] = {}
    tokens: int = 0
    estimated_tokens: int = 0
    tokens_per_s: float | None = None
    eta_s: float | None = None
    position: int | None = None
    priority: str = "normal"
    deadline_at: float | None = None
    not_before: float | None = None
    params: dict[str, Any] = {}
    fingerprint: str = ""
    metadata: dict[str, str] = {}
    webhook: WebhookState | None = None
    error: str | None = None
    links: dict[str, str] = {}
    results: list[dict[str, Any]] | None = None

    @property
    def ended(self) -> bool:
        """Whether the job has reached a state that it leaves only when it is retried."""
        return self.status in ENDED


class JobPage(msgspec.Struct, frozen=True):
    """Jobs, newest first."""

    data: list[Job]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None


class Estimate(msgspec.Struct, frozen=True):
    """What a job would cost."""

    model: str
    items: int
    tokens: int
    chunks: int
    lane: str
    estimated_s: float | None = None


class ResultPage(msgspec.Struct, frozen=True):
    """Neighbouring items of a job's results."""

    data: list[ResultItem]
    has_more: bool
    last_id: int | None = None
    after: int = -1
    limit: int = 0


def unpack_vector(data: bytes | None) -> list[float]:
    """Return the numbers of little-endian float32 bytes."""
    numbers = array.array("f", data or b"")
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def stack_vectors(parts: "list[bytes | None]") -> "NDArray[np.float32]":
    """Return the vectors as one array, float32 of shape (n, d); a missing one is a row of NaN.

    Raises:
        MissingExtra: numpy is not installed.
    """
    try:
        import numpy as np  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtra("numpy") from None
    size_bytes = next((len(part) for part in parts if part is not None), 0)
    missing = np.full(size_bytes // 4, np.nan, "<f4").tobytes()
    joined = b"".join(missing if part is None else part for part in parts)
    return np.frombuffer(joined, "<f4").reshape(len(parts), size_bytes // 4).astype(np.float32, copy=False)


def errors_of(items: list[ResultItem]) -> Mapping[int, tuple[str, str]]:
    """Return code and message of the items that failed, by index."""
    return {item.index: (item.error.code, item.error.message) for item in items if item.error is not None}
