"""What a job and a chunk are: frozen values, the states of a job and its allowed moves.

Owns no storage (`tasks.jobs.store`) and no HTTP schema (`app.inference.schemas`).
"""

import enum
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from tasks.engine import JobParams, Operation
from tasks.lanes import Lane

__all__ = [
    "TERMINAL",
    "WEIGHTS",
    "ChunkInput",
    "ChunkRecord",
    "ChunkState",
    "Counts",
    "Idempotency",
    "Job",
    "JobProgress",
    "JobState",
    "NewJob",
    "Priority",
    "StoreQuota",
    "Webhook",
    "WebhookState",
    "new_job_id",
]

Priority = Literal["low", "normal", "high"]
# Shares of the priorities in fair queueing; `dispatch.lua` knows the heaviest.
WEIGHTS: Final[Mapping[str, int]] = {"low": 1, "normal": 4, "high": 16}


class JobState(enum.StrEnum):
    """The state of a job. `cancelling` lasts until no claim holds a chunk any more."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where the end of a job is sent, and the key that signs it (Standard Webhooks, `whsec_...`)."""

    url: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class WebhookState:
    """State of the delivery of a job's end. Never holds the secret.

    Attributes:
        status: `waiting` for the end, `pending` before the first attempt, `retrying`, `delivered`, or `failed` at last.
        attempts: attempts that were finished.
        last_attempt_at, next_attempt_at: seconds since the epoch.
        answer: HTTP status of the last attempt; None when there was no answer.
        error: a sentence about the last attempt, empty when it succeeded.
    """

    url: str
    status: str = "waiting"
    attempts: int = 0
    last_attempt_at: float | None = None
    next_attempt_at: float | None = None
    answer: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class ChunkInput:
    """The items of one chunk, as the worker reads them.

    Attributes:
        texts: texts or documents, length n.
        queries: for rerank the query of each document, length n; else None.
        ids: the caller's own ids, length n; None when the caller gave none.
        refused: why an item fails without being computed, length n; None when all are computed.
    """

    texts: list[str]
    queries: list[str] | None = None
    ids: list[str | None] | None = None
    refused: list[str | None] | None = None


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """One line of the chunk table: the place of its items in the job, and their tokens."""

    index: int
    start: int
    items: int
    tokens: int


@dataclass(frozen=True, slots=True)
class ChunkState:
    """One line of the chunk table as it is now.

    Attributes:
        state: `dropped` chunks belong to a job that was cancelled or expired before they were claimed.
        attempts: claims that were counted so far.
        tokens: tokens that the model read; 0 before the chunk is done.
        pointer: where its result frame lies: `redis`, a URL, or empty while there is none.
        size_bytes: size of the result frame.
        worker: who holds it; empty: nobody.
    """

    index: int
    start: int
    items: int
    state: Literal["pending", "ticket", "claimed", "done", "dropped"]
    attempts: int = 0
    completed: int = 0
    failed: int = 0
    truncated: int = 0
    tokens: int = 0
    pointer: str = ""
    size_bytes: int = 0
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """Items of a job by outcome. `completed + failed == total` exactly when the job ended by itself."""

    total: int
    completed: int = 0
    failed: int = 0
    truncated: int = 0
    # Of the completed ones, the cache hits.
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is read from Redis. Times are seconds since the epoch, by Redis' clock."""

    id: str
    tenant: str
    operation: Operation
    model: str
    lane: Lane
    state: JobState
    counts: Counts
    chunks: int
    chunks_done: int
    tokens: int
    estimated_tokens: int
    created_at: float
    expires_at: float
    started_at: float | None = None
    ended_at: float | None = None
    params: JobParams = field(default_factory=JobParams)
    priority: Priority = "normal"
    fingerprint: str = ""
    error: str = ""
    # Grows with every change that a reader can see: ETag, event id and long poll rest on it.
    version: int = 0
    # When the job ends as `expired` if it has not ended by itself; None never.
    deadline_at: float | None = None
    # None of its chunks is computed before.
    not_before: float | None = None
    # Whether its chunks wait for a worker with the model that it began with.
    waits_for_model: bool = False
    # The request's own description of itself: document counts per query, metadata, custom fields.
    extra: Mapping[str, object] = field(default_factory=dict)
    # None: no webhook.
    webhook: WebhookState | None = None

    @property
    def ended(self) -> bool:
        """Whether the job has reached a state that it never leaves."""
        return self.state in TERMINAL


@dataclass(frozen=True, slots=True)
class StoreQuota:
    """What the jobs of a tenant may keep in Redis.

    Attributes:
        limit_bytes: None: no limit of its own.
        fair: whether they may keep only so much that there is room for others.
    """

    limit_bytes: int | None = None
    fair: bool = False


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job that the web tier creates.

    Attributes:
        id: from `new_job_id`; the inputs were stored under it before.
        model: name of the card; `lane` is the bulk lane of its slug.
        total: number of items.
        input_bytes, result_bytes: stored size of the inputs, expected size of the results; the latter is reserved.
        deadline_in_s: after so many seconds the job ends as `expired`; None never.
        begin_in_s: none of its chunks is computed before; None: it has its turn at once.
        queue_limit: items that the tenant may have in the queue; None: any number.
        share: weight of the tenant in turns between tenants.
        key_id: the tenant's key that made it; empty: there are no keys.
        quota: what the tenant's jobs may keep in Redis.
    """

    id: str
    tenant: str
    operation: Operation
    model: str
    lane: Lane
    total: int
    estimated_tokens: int
    params: JobParams = field(default_factory=JobParams)
    priority: Priority = "normal"
    fingerprint: str = ""
    extra: Mapping[str, object] = field(default_factory=dict)
    input_bytes: int = 0
    result_bytes: int = 0
    deadline_in_s: float | None = None
    begin_in_s: float | None = None
    webhook: Webhook | None = None
    queue_limit: int | None = None
    share: int = WEIGHTS["normal"]
    key_id: str = ""
    quota: StoreQuota = StoreQuota()


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The caller's key for one request, and a hash of that request's payload."""

    key: str
    payload_hash: str


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How a job moves; None where unknown: speed of the last minute or of an ended run, seconds left, jobs ahead."""

    tokens_per_s: float | None = None
    eta_s: float | None = None
    position: int | None = None


def new_job_id() -> str:
    """Return a new job id that sorts by creation time and cannot be guessed: 11 hex digits of ms, 20 random."""
    return f"job_{int(time.time() * 1000):011x}{secrets.token_hex(10)}"
