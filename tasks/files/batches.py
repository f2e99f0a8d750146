"""Batches: the records of OpenAI's Batch API, each of which becomes one or several jobs.

Owns a batch's states, the moves between them and the lock by which one process at a time advances it. Computes nothing:
what a batch's lines become is `app.batches`, and the work itself is done by ordinary jobs.
"""

import enum
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import orjson
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.errors import Conflict, IdempotencyMismatch, NotFound
from tasks.jobs.job import Idempotency
from tasks.keys import Key
from tasks.scripts import Argument, Script, Scripts

__all__ = [
    "BatchGroup",
    "BatchProblem",
    "BatchRecord",
    "BatchState",
    "BatchStore",
    "Endpoint",
    "NewBatch",
    "new_batch_id",
]

Endpoint = Literal["/v1/embeddings", "/v1/rerank"]
_PAGE = 100
# Longer than the slowest step between two renewals, and short enough that a dead process is replaced soon.
_LOCK_S = 15.0
# Jobs must not vanish before the batch has ended: their results are still to be read then.
_SHARE_OF_JOB_LIFE = 0.9
# The record has to be there for as long as its output files.
_GRACE_S = 86_400.0


class BatchState(enum.StrEnum):
    """The state of a batch, as OpenAI names them."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


_TERMINAL = frozenset({BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED})


@dataclass(frozen=True, slots=True)
class BatchGroup:
    """Lines of a batch that have model and parameters in common: one job.

    Attributes:
        job_id: the job that computes them.
        lines: how many lines.
        items: how many items they have together; a line may have several.
    """

    job_id: str
    lines: int
    items: int


@dataclass(frozen=True, slots=True)
class BatchProblem:
    """Why a batch failed: `line` counts from 1; None: the whole file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What is known of a batch when it is created.

    Attributes:
        rights: what the key may do, as `app.access.auth.Tenant` writes it; the lines are checked after the request has
            ended.
    """

    tenant: str
    endpoint: Endpoint
    input_file_id: str
    completion_window: str
    metadata: Mapping[str, str] | None
    output_ttl_s: float
    rights: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch as it is read from Redis. Times are seconds since the epoch, by Redis' clock.

    Attributes:
        times: when each state was reached, by the state's name.
        total, completed, failed: lines; all 0 until the file is validated, final when the batch has ended.
        models, tokens: of its jobs; empty and 0 until the batch has ended.
        planned: every job that was ever created for it, also by a process that died while it did so.
        plan_file_id: the hidden file that says what became of each line.
        drafts: output files that were begun; they count when the batch has ended.
    """

    id: str
    tenant: str
    endpoint: Endpoint
    input_file_id: str
    completion_window: str
    metadata: Mapping[str, str] | None
    output_ttl_s: float
    rights: Mapping[str, object]
    state: BatchState
    created_at: float
    deadline_at: float
    times: Mapping[str, float]
    total: int
    completed: int
    failed: int
    models: Sequence[str]
    tokens: int
    groups: Sequence[BatchGroup]
    planned: Sequence[str]
    plan_file_id: str
    drafts: Sequence[str]
    problems: Sequence[BatchProblem]
    output_file_id: str
    error_file_id: str

    @property
    def ended(self) -> bool:
        """Whether the batch has reached a state that it never leaves."""
        return self.state in _TERMINAL


class BatchCreateScript(Script):
    """Create a batch.

    Attributes:
        batch: its record.
        active: batches that have not ended, by the time at which they are due.
        listed: the tenant's batches.
        idempotency: the caller's key.
        member: name of the batch among all.
        window_ms: how long it may take.
        keep_ms: how long its record is kept.
        payload_hash: empty without an idempotency key.
        fields: names and values of the record.
    """

    batch: Key
    active: Key
    listed: Key
    idempotency: Key
    batch_id: str
    member: str
    window_ms: int
    keep_ms: int
    payload_hash: str
    fields: Sequence[Argument]


class BatchCancelScript(Script):
    """Ask for the end of a batch."""

    batch: Key
    active: Key
    member: str


class BatchLockScript(Script):
    """Take or renew the lock of a batch, for `lock_ms`."""

    batch: Key
    active: Key
    member: str
    holder: str
    lock_ms: int


class BatchUnlockScript(Script):
    """Give the lock back; the batch is due again after `delay_ms`."""

    batch: Key
    active: Key
    member: str
    holder: str
    delay_ms: int


class BatchWriteScript(Script):
    """Move a batch from one of some states (separated by commas) to the state `goal`, with new fields."""

    batch: Key
    holder: str
    sources: str
    goal: str
    fields: Sequence[Argument]


def new_batch_id() -> str:
    """Return a new batch id that sorts by creation time and cannot be guessed: 11 hex digits of ms, 20 random."""
    return f"batch_{int(time.time() * 1000):011x}{secrets.token_hex(10)}"


class BatchStore:
    """The state of all batches. Thread-safe. All methods raise `redis.RedisError` when Redis does not answer.

    Args:
        redis: a client without `decode_responses`.
        settings: times.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._scripts = Scripts(redis)

    # -- what a client may do

    def create(self, new: NewBatch, idempotency: Idempotency | None = None) -> BatchRecord:
        """Create a batch, or return the one that was created under the idempotency key.

        Raises:
            IdempotencyMismatch: the key was used with another payload.
        """
        batch_id = new_batch_id()
        fields = {name: orjson.dumps(value) for name, value in asdict(new).items()}
        key, payload_hash = (f"batch/{idempotency.key}", idempotency.payload_hash) if idempotency else ("", "")
        window_s = min(self._settings.batch_window_s, self._settings.job_ttl_s * _SHARE_OF_JOB_LIFE)
        keep_ms = int((window_s + max(self._settings.file_ttl_s, new.output_ttl_s) + _GRACE_S) * 1000)
        call = BatchCreateScript(
            *_keys(batch_id),
            listed=keys.tenant_batches(new.tenant),
            idempotency=keys.idempotency(new.tenant, key),
            batch_id=batch_id,
            member=_member(new.tenant, batch_id),
            window_ms=int(window_s * 1000),
            keep_ms=keep_ms,
            payload_hash=payload_hash,
            fields=[part for pair in fields.items() for part in pair],
        )
        code, created_id = self._scripts.call(call)
        if code == b"MISMATCH":
            raise IdempotencyMismatch("This idempotency key was used before with another payload.")
        return self.get(created_id.decode(), new.tenant)

    def get(self, batch_id: str, tenant: str) -> BatchRecord:
        """Return a batch.

        Raises:
            NotFound: there is none of that id for this tenant.
        """
        raw = self._redis.hgetall(keys.batch(batch_id))
        batch = _read_record(batch_id, raw) if raw else None
        if batch is None or batch.tenant != tenant:
            raise NotFound(f"No batch found with id '{batch_id[:80]}'.", param="batch_id")
        return batch

    def list(self, tenant: str, *, limit: int, after: str = "") -> Sequence[BatchRecord]:
        """Return a tenant's batches, newest first, behind the one named `after`."""
        ids: Any = self._redis.zrevrangebylex(keys.tenant_batches(tenant), f"({after}" if after else "+", "-", 0, limit)
        with self._redis.pipeline(transaction=False) as pipe:
            for batch_id in ids:
                pipe.hgetall(keys.batch(batch_id.decode()))
            records = pipe.execute()
        gone = [batch_id for batch_id, raw in zip(ids, records, strict=True) if not raw]
        if gone:
            self._redis.zrem(keys.tenant_batches(tenant), *gone)
        return [_read_record(batch_id.decode(), raw) for batch_id, raw in zip(ids, records, strict=True) if raw]

    def cancel(self, batch_id: str, tenant: str) -> BatchRecord:
        """Ask for the end of a batch; finished lines will be in its output. Repeatable while it is being cancelled.

        Raises:
            NotFound: there is no such batch.
            Conflict: it has ended.
        """
        self.get(batch_id, tenant)
        answer = self._scripts.call(BatchCancelScript(*_keys(batch_id), _member(tenant, batch_id)))
        if answer != BatchState.CANCELLING.value.encode():
            raise Conflict(f"Cannot cancel a batch with status '{answer.decode()}'.")
        return self.get(batch_id, tenant)

    # -- what advances a batch

    def list_due(self) -> Sequence[tuple[str, str]]:
        """Return tenant and ID of batches that are due for the scheduler."""
        now_ms = int(self.now_s() * 1000)
        due: Any = self._redis.zrange(keys.batches_active(), 0, now_ms, byscore=True, offset=0, num=_PAGE)
        pairs = (member.decode().partition("/") for member in due)
        return [(tenant, batch_id) for tenant, _, batch_id in pairs]

    def now_s(self) -> float:
        """Return the time by Redis' clock, by which batches have their deadlines."""
        seconds, micros = self._redis.time()
        return float(seconds + micros / 1e6)

    def lock(self, batch_id: str, tenant: str, holder: str) -> bool:
        """Take or renew the lock of a batch; False: another process has it, or the batch has ended."""
        call = BatchLockScript(*_keys(batch_id), _member(tenant, batch_id), holder, int(_LOCK_S * 1000))
        return bool(self._scripts.call(call))

    def unlock(self, batch_id: str, tenant: str, holder: str, delay_s: float) -> None:
        """Give the lock back; the batch is due again after the delay."""
        call = BatchUnlockScript(*_keys(batch_id), _member(tenant, batch_id), holder, int(delay_s * 1000))
        self._scripts.call(call)

    def leave(self, batch_id: str, tenant: str) -> None:
        """Take a batch off the scheduler's list: it has ended and is cleaned up."""
        self._redis.zrem(keys.batches_active(), _member(tenant, batch_id))

    def move(
        self, batch: BatchRecord, holder: str, goal: BatchState, fields: Mapping[str, object]
    ) -> BatchState | None:
        """Move a batch from the state in which it was read, or from `cancelling`, to another, with new fields.

        A batch that is being cancelled goes to `cancelled` where another one ends, and else stays as it is.

        Returns:
            The state that it has now; None: the lock was lost, and nothing was written.
        """
        sources = f"{batch.state.value},{BatchState.CANCELLING.value}"
        written: list[Argument] = []
        for name, value in fields.items():
            written += [name, orjson.dumps(value)]
        answer = self._scripts.call(BatchWriteScript(keys.batch(batch.id), holder, sources, goal.value, written))
        return BatchState(answer.decode()) if answer else None


def _keys(batch_id: str) -> tuple[Key, Key]:
    return keys.batch(batch_id), keys.batches_active()


def _member(tenant: str, batch_id: str) -> str:
    return f"{tenant}/{batch_id}"


def _read_record(batch_id: str, raw: Mapping[Any, Any]) -> BatchRecord:
    text = {name.decode(): value for name, value in raw.items()}

    def value(name: str, default: Any = None) -> Any:
        return orjson.loads(text[name]) if name in text else default

    return BatchRecord(
        id=batch_id,
        tenant=value("tenant"),
        endpoint=value("endpoint"),
        input_file_id=value("input_file_id"),
        completion_window=value("completion_window"),
        metadata=value("metadata"),
        output_ttl_s=value("output_ttl_s"),
        rights=value("rights"),
        state=BatchState(text["state"].decode()),
        created_at=int(text["created_ms"]) / 1000,
        deadline_at=int(text["deadline_ms"]) / 1000,
        times={state: int(text[f"{state}_ms"]) / 1000 for state in BatchState if f"{state}_ms" in text},
        total=value("total", 0),
        completed=value("completed", 0),
        failed=value("failed", 0),
        models=value("models", []),
        tokens=value("tokens", 0),
        groups=[BatchGroup(**group) for group in value("groups", [])],
        planned=value("planned", []),
        plan_file_id=value("plan_file_id", ""),
        drafts=value("drafts", []),
        problems=[BatchProblem(**problem) for problem in value("problems", [])],
        output_file_id=value("output_file_id", ""),
        error_file_id=value("error_file_id", ""),
    )
