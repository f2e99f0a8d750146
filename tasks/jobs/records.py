"""How jobs and chunks are written in Redis hashes, and read back.

Owns the field names of the job record and the chunk lines; the scripts in `tasks/jobs/lua` use the same ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from config.settings import Settings
from tasks import keys
from tasks.engine import JobParams
from tasks.jobs.claims import Claim, ClaimCode
from tasks.jobs.job import (
    WEIGHTS,
    ChunkRecord,
    ChunkState,
    Counts,
    Idempotency,
    Job,
    JobState,
    NewJob,
    WebhookState,
)
from tasks.jobs.transitions import CreateScript, JobKeys
from tasks.lanes import Lane, Service

__all__ = [
    "Creation",
    "FinishedResult",
    "read_chunk",
    "read_claim",
    "read_job",
    "write_chunk",
    "write_job",
]


@dataclass(frozen=True, slots=True)
class FinishedResult:
    """Counts, tokens and result frame of a job that was answered at once."""

    counts: Counts
    tokens: int
    frame: bytes

    def describe(self) -> bytes:
        """Return the counts as the script takes them."""
        values = {
            "completed": self.counts.completed,
            "failed": self.counts.failed,
            "truncated": self.counts.truncated,
            "tokens": self.tokens,
            "cached": self.counts.cached,
            "error": "" if self.counts.completed else "no item could be computed",
        }
        return orjson.dumps(values)


@dataclass(frozen=True, slots=True)
class Creation:
    """One call to create a job."""

    job: NewJob
    chunks: Sequence[ChunkRecord]
    idempotency: Idempotency | None = None
    outcome: FinishedResult | None = None

    def script(self, settings: Settings, replaces: str) -> CreateScript:
        """Return the call of the script.

        Args:
            settings: how long a job lives, and the limit for new jobs.
            replaces: a vanished job that the idempotency key may still name; empty: none.
        """
        job, outcome = self.job, self.outcome
        key, payload_hash = (self.idempotency.key, self.idempotency.payload_hash) if self.idempotency else ("", "")
        outside = bool(settings.results_url) and job.result_bytes > settings.results_inline_bytes
        return CreateScript(
            JobKeys.of(job, settings),
            tenant_jobs=keys.tenant_jobs(job.tenant),
            all_jobs=keys.all_jobs(),
            all_tenants=keys.all_tenants(),
            idempotency=keys.idempotency(job.tenant, key),
            uploads=keys.store_uploads(),
            held_until=keys.tenant_held_until(job.tenant),
            result=keys.job_result(job.id, 0),
            fields=orjson.dumps(write_job(job, outside=outside)),
            table_lines=orjson.dumps([write_chunk(chunk) for chunk in self.chunks]),
            payload_hash=payload_hash,
            replaces=replaces,
            ttl_ms=int(settings.job_ttl_s * 1000),
            store_max_bytes=settings.store_max_bytes,
            quota_bytes=job.quota.limit_bytes,
            fair=job.quota.fair,
            input_bytes=job.input_bytes,
            result_bytes=0 if outside else job.result_bytes,
            deadline_in_ms=None if job.deadline_in_s is None else int(job.deadline_in_s * 1000),
            begin_in_ms=None if job.begin_in_s is None else int(job.begin_in_s * 1000),
            queue_limit=job.queue_limit,
            items=job.total,
            outcome=outcome.describe() if outcome else b"",
            frame=outcome.frame if outcome else b"",
        )


def write_job(job: NewJob, *, outside: bool) -> list[str]:
    """Return the record's fields that the caller knows, flat: name, value, name, value.

    Args:
        job: the new job.
        outside: whether its results are kept outside Redis.
    """
    fields: dict[str, object] = {
        "id": job.id,
        "tenant": job.tenant,
        "key": job.key_id,
        "operation": job.operation,
        "model": job.model,
        "lane": job.lane.model,
        "total": job.total,
        "estimated_tokens": job.estimated_tokens,
        "params": orjson.dumps(asdict(job.params)).decode(),
        "priority": job.priority,
        "weight": WEIGHTS[job.priority],
        "share": job.share,
        "fingerprint": job.fingerprint,
        "outside": int(outside),
        "extra": orjson.dumps(dict(job.extra)).decode(),
    }
    if job.webhook is not None:
        fields["webhook"] = orjson.dumps(asdict(job.webhook)).decode()
    return [str(part) for field in fields.items() for part in field]


def write_chunk(chunk: ChunkRecord) -> str:
    """Return the line of a new chunk in the chunk table."""
    return f'{{"start":{chunk.start},"items":{chunk.items},"tokens":{chunk.tokens}}}'


def read_job(record: Mapping[bytes, bytes]) -> Job:
    """Return the job that a record describes."""
    text = {name.decode(): value.decode() for name, value in record.items()}

    def number(name: str) -> int:
        return int(text.get(name, 0))

    return Job(
        id=text["id"],
        tenant=text["tenant"],
        operation="rerank" if text["operation"] == "rerank" else "embeddings",
        model=text["model"],
        lane=Lane(text["lane"], Service.BULK),
        state=JobState(text["state"]),
        counts=Counts(number("total"), number("completed"), number("failed"), number("truncated"), number("cached")),
        chunks=number("chunks"),
        chunks_done=number("chunks_done"),
        tokens=number("tokens"),
        estimated_tokens=number("estimated_tokens"),
        created_at=number("created_ms") / 1000,
        expires_at=number("expires_ms") / 1000,
        started_at=_seconds(text.get("started_ms")),
        ended_at=_seconds(text.get("ended_ms")),
        deadline_at=_seconds(text.get("deadline_ms")),
        not_before=_seconds(text.get("not_before_ms")),
        params=JobParams(**orjson.loads(text["params"])),
        priority=_priority(text["priority"]),
        fingerprint=text["fingerprint"],
        error=text.get("error", ""),
        waits_for_model="misfit" in text,
        version=number("version"),
        extra=orjson.loads(text["extra"]),
        webhook=_webhook(text.get("webhook"), text.get("delivery")),
    )


def read_chunk(index: int, line: bytes, job_state: JobState) -> ChunkState:
    """Return the state of a chunk. That a waiting chunk of a cancelled job is dropped follows from the job's state."""
    values = orjson.loads(line)
    state = values.get("state", "pending")
    ending = job_state in (JobState.CANCELLING, JobState.CANCELLED, JobState.EXPIRED)
    return ChunkState(
        index=index,
        start=values["start"],
        items=values["items"],
        state="dropped" if ending and state == "pending" else state,
        attempts=values.get("attempts", 0),
        completed=values.get("completed", 0),
        failed=values.get("failed", 0),
        truncated=values.get("truncated", 0),
        tokens=values.get("spent", 0),
        pointer=values.get("pointer", ""),
        size_bytes=values.get("size", 0),
        worker=values.get("worker", ""),
    )


def read_claim(job_id: str, chunk: int, answer: Sequence[Any]) -> Claim:
    """Return the claim that `claim.lua` answered."""
    code = ClaimCode(answer[0].decode())
    if code not in (ClaimCode.OK, ClaimCode.POISON):
        return Claim(code, job_id, chunk)
    _, fence, line, operation, model, params, outside, tenant, key_id = answer
    values = orjson.loads(line)
    return Claim(
        code=code,
        job_id=job_id,
        chunk=chunk,
        fence=int(fence),
        attempt=values["attempts"],
        start=values["start"],
        items=values["items"],
        operation="rerank" if operation == b"rerank" else "embeddings",
        model=model.decode(),
        params=JobParams(**orjson.loads(params)),
        suspects=tuple(sorted(int(position) for position in values.get("deaths", {}))),
        poison=tuple(sorted(values.get("poison", ()))),
        outside=outside == b"1",
        tenant=tenant.decode(),
        key_id=(key_id or b"").decode(),
        redo="redo" in values,
        pointer=values.get("pointer", ""),
        failures=values.get("failures", 0),
        reason=values.get("reason", ""),
    )


def _webhook(webhook: str | None, delivery: str | None) -> WebhookState | None:
    if webhook is None:
        return None
    url, noted = orjson.loads(webhook)["url"], orjson.loads(delivery or "{}")
    return WebhookState(
        url=url,
        status=noted.get("status", "waiting"),
        attempts=noted.get("attempts", 0),
        last_attempt_at=_seconds(noted.get("last_ms")),
        next_attempt_at=_seconds(noted.get("next_ms")),
        answer=noted.get("answer"),
        error=noted.get("error", ""),
    )


def _seconds(milliseconds: str | float | None) -> float | None:
    return None if milliseconds is None else float(milliseconds) / 1000


def _priority(text: str) -> Any:
    return text if text in WEIGHTS else "normal"
