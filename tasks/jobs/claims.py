"""What is exchanged between a worker and Redis while a chunk is computed: tickets, claims, completions.

Owns the types only; `tasks.jobs.store` moves them, `tasks.bulk.chunk_task` acts on them.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.engine import JobParams, Operation

__all__ = ["IN_REDIS", "Claim", "ClaimCode", "Completed", "Completion", "Ticket"]

# Pointer of a result that lies in Redis, under the key of its chunk.
IN_REDIS = "redis"


class ClaimCode(enum.StrEnum):
    """The answer to a claim. Only OK and POISON give the chunk to the caller."""

    OK = "OK"
    # The chunk has ended too many workers; its remaining items become errors without touching the device.
    POISON = "POISON"
    BUSY = "BUSY"
    DONE = "DONE"
    STOP = "STOP"
    GONE = "GONE"
    # The job began with another model than this worker's.
    MISFIT = "MISFIT"


class Completed(enum.StrEnum):
    """The answer to a completion. DUP is a success too: another result was counted before."""

    OK = "OK"
    DUP = "DUP"
    GONE = "GONE"


@dataclass(frozen=True, slots=True)
class Claim:
    """One worker's hold on one chunk.

    Attributes:
        fence: fencing token: distinguishes this claim from every other one of the job.
        attempt: 1 for the first claim of the chunk.
        items: number of items of the chunk.
        suspects: positions that were on the device when an earlier claim died.
        poison: positions that ended two workers; they are errors and must not be computed.
        outside: whether the job is so large that its results do not belong into Redis.
        tenant, key_id: whose job it is, and the key that made it; empty: there are no keys.
        redo: only the items that failed before are to be computed; the frame at `pointer` has the others.
        fingerprint: of the model that it was made with: what is computed under it has the same; empty: not compared.
        failures: attempts that failed as a whole, the last one for this `reason`.
    """

    code: ClaimCode
    job_id: str
    chunk: int
    fence: int = 0
    attempt: int = 0
    start: int = 0
    items: int = 0
    operation: Operation = "embeddings"
    model: str = ""
    params: JobParams = field(default_factory=JobParams)
    suspects: tuple[int, ...] = ()
    poison: tuple[int, ...] = ()
    outside: bool = False
    tenant: str = ""
    key_id: str = ""
    redo: bool = False
    pointer: str = ""
    fingerprint: str = ""
    failures: int = 0
    reason: str = ""

    @property
    def held(self) -> bool:
        """Whether the caller has to complete or release the chunk."""
        return self.code in (ClaimCode.OK, ClaimCode.POISON)


@dataclass(frozen=True, slots=True)
class Completion:
    """The outcome of a chunk: counts of the items computed under this claim, and its result.

    Attributes:
        frame: the result frame, see `tasks.frames`.
        error: a sentence about the first failed item.
        cached: completed items that were cache hits.
        failures: failed items by the code of their error.
        device_s: time of the device that it took.
    """

    completed: int
    failed: int
    truncated: int
    tokens: int
    frame: bytes
    error: str = ""
    cached: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    device_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """A chunk whose turn it is: the worker that was given it claims it next."""

    job_id: str
    chunk: int
