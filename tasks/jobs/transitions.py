"""The scripts that change the state of a job, one per transition, as typed calls.

Owns what each is given; what it does and answers is at the head of its file in `lua/`. Calls nothing:
`tasks.jobs.store` and `tasks.jobs.leases` do. Every transition may run twice: clients repeat what got no answer.
"""

from dataclasses import dataclass
from typing import Self

from config.settings import Settings
from tasks import keys
from tasks.jobs.job import Job, NewJob
from tasks.jobs.origin import Origin, current_origin
from tasks.keys import Key
from tasks.lanes import Lane
from tasks.scripts import Script

__all__ = [
    "BeginScript",
    "CancelScript",
    "ClaimScript",
    "CompleteScript",
    "CreateScript",
    "DeleteScript",
    "DispatchScript",
    "FirstScript",
    "FitScript",
    "HeartbeatScript",
    "JobKeys",
    "JobRef",
    "MarkScript",
    "NoteScript",
    "PauseScript",
    "QueueReserveScript",
    "ReapScript",
    "ReleaseScript",
    "ResumeScript",
    "RetryScript",
    "RoomScript",
]

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class JobRef:
    """What the keys of a job are made of. None of it ever changes."""

    id: str
    lane: Lane
    tenant: str


@dataclass(frozen=True, slots=True)
class JobKeys:
    """What every transition of a job is given; `lua/_job.lua` has the steps that they share.

    Attributes:
        job: the record.
        chunks: the chunk table.
        pending: numbers of chunks without a ticket.
        events: the last change.
        log: what happened to the job.
        ready: the lane's tenants that have pending chunks.
        turns: those jobs of the tenant.
        shares: what fair queueing remembers of the lane.
        inflight: the lane's tickets and claims.
        deadlines: the lane's deadlines.
        later: the lane's jobs that may not begin yet.
        misfits: the lane's jobs that wait for a worker with their model.
        reserved: bytes that jobs will still need for results.
        reserved_until: those jobs by expiry.
        held: bytes that the tenant's jobs keep in Redis.
        webhook_tenants: tenants that have such ends.
        webhooks: the tenant's jobs whose end a webhook has to be sent for.
        queued: items of the tenant that wait, if its queue is limited.
        totals: counters for the operator.
        lines: events for the log, see `app.jobs.event_lines`.
        job_id: the job.
        lane_ttl_ms: how long keys that jobs share live untouched.
        origin: who changes it, and in which request.
    """

    job: Key
    chunks: Key
    pending: Key
    events: Key
    log: Key
    ready: Key
    turns: Key
    shares: Key
    inflight: Key
    deadlines: Key
    later: Key
    misfits: Key
    reserved: Key
    reserved_until: Key
    held: Key
    webhook_tenants: Key
    webhooks: Key
    queued: Key
    totals: Key
    lines: Key
    job_id: str
    tenant: str
    lane_ttl_ms: int
    origin: Origin

    @classmethod
    def of(cls, job: Job | NewJob | JobRef, settings: Settings) -> Self:
        """Return the keys of a job, and who has it changed."""
        return cls(
            job=keys.job(job.id),
            chunks=keys.job_chunks(job.id),
            pending=keys.job_pending(job.id),
            events=keys.job_events(job.id),
            log=keys.job_log(job.id),
            ready=keys.lane_ready(job.lane),
            turns=keys.lane_turns(job.lane, job.tenant),
            shares=keys.lane_shares(job.lane),
            inflight=keys.lane_inflight(job.lane),
            deadlines=keys.lane_deadlines(job.lane),
            later=keys.lane_later(job.lane),
            misfits=keys.lane_misfits(job.lane),
            reserved=keys.store_reserved(),
            reserved_until=keys.store_reserved_until(),
            held=keys.tenant_held(job.tenant),
            webhook_tenants=keys.webhook_tenants(),
            webhooks=keys.webhooks_due(job.tenant),
            queued=keys.tenant_queued(job.tenant),
            totals=keys.job_totals(),
            lines=keys.job_lines(),
            job_id=job.id,
            tenant=job.tenant,
            lane_ttl_ms=int(settings.job_ttl_s * 1000) + _DAY_MS,
            origin=current_origin(),
        )


# -- what users do


class CreateScript(Script):
    """Create a job, or store one that was answered at once.

    Attributes:
        uploads: jobs to be, whose inputs are stored already.
        held_until: jobs whose bytes count for the tenant, by expiry.
        result: result of chunk 0.
        fields, table_lines: the record and the chunk table, as flat JSON lists.
        payload_hash: empty without an idempotency key.
        replaces: a vanished job that the idempotency key may still name; empty: none.
        store_max_bytes: limit for new jobs where Redis itself has none.
        quota_bytes: what the tenant's jobs may keep in Redis; None: no limit of its own.
        fair: whether they may keep only so much that there is room for others.
        input_bytes, result_bytes: stored size of the inputs, expected size of the results.
        begin_in_ms: the job has no turn before; None: it has one at once.
        queue_limit: items that the tenant may have in the queue.
        outcome, frame: counts of a finished job, as JSON, and its result; empty for one that is queued.
    """

    keys: JobKeys
    tenant_jobs: Key
    all_jobs: Key
    all_tenants: Key
    idempotency: Key
    uploads: Key
    held_until: Key
    result: Key
    fields: bytes
    table_lines: bytes
    payload_hash: str
    replaces: str
    ttl_ms: int
    store_max_bytes: int
    quota_bytes: int | None
    fair: bool
    input_bytes: int
    result_bytes: int
    deadline_in_ms: int | None
    begin_in_ms: int | None
    queue_limit: int | None
    items: int
    outcome: bytes
    frame: bytes


class QueueReserveScript(Script):
    """Reserve places in a tenant's queue for jobs that are about to be created; a JSON list of job ID and items."""

    queued: Key
    queue_limit: int
    ttl_ms: int
    lane_ttl_ms: int
    jobs: bytes


class RoomScript(Script):
    """Ask whether a job to be of `size_bytes` would be admitted, of which `new_bytes` are still to come; note its size.

    Attributes:
        held, held_until: bytes that the tenant's jobs keep in Redis, and those jobs by expiry.
        quota_bytes, fair: as in `CreateScript`.
        job_id: empty for a size that is only asked about.
        hold_ms: how long the size counts for the tenant, if no job comes of it.
    """

    reserved: Key
    reserved_until: Key
    held: Key
    held_until: Key
    store_max_bytes: int
    quota_bytes: int | None
    fair: bool
    job_id: str
    size_bytes: int
    new_bytes: int
    hold_ms: int
    lane_ttl_ms: int


class CancelScript(Script):
    """Cancel a job, or end one whose deadline has passed; `ending` is `cancelled` or `expired`."""

    keys: JobKeys
    ending: str


class FirstScript(Script):
    """Let a job go ahead of all others."""

    keys: JobKeys


class PauseScript(Script):
    """Pause a job."""

    keys: JobKeys


class ResumeScript(Script):
    """Resume a paused job."""

    keys: JobKeys


class RetryScript(Script):
    """Queue the failed items of an ended job again; `params`: computed like this from now on; empty: as before."""

    keys: JobKeys
    params: bytes


class DeleteScript(Script):
    """Delete a job; `tenant_jobs`, `all_jobs` and `held_until` are the lists that contain it."""

    keys: JobKeys
    held_until: Key
    tenant_jobs: Key
    all_jobs: Key


# -- what workers do


class DispatchScript(Script):
    """Issue a ticket for the job's next chunk, if the lane has fewer than `window`, or `tickets_per_worker` each.

    Attributes:
        most_tokens: none for a larger chunk, but that of a single item; None: for any.
    """

    keys: JobKeys
    workers: Key
    window: int
    tickets_per_worker: int
    timeout_ms: int
    most_tokens: int | None


class ClaimScript(Script):
    """Claim a chunk; the `nonce` of a call gives its repetition the same answer.

    Attributes:
        max_attempts: claims, after which its items become errors.
        max_failures: the same for attempts that failed as a whole, and did not end their worker.
        fingerprint: of the worker's model; empty: not known, and not compared.
    """

    keys: JobKeys
    number: int
    worker_id: str
    nonce: str
    lease_ms: int
    max_attempts: int
    max_failures: int
    fingerprint: str


class BeginScript(Script):
    """Give a job its first turn, if its time has come."""

    keys: JobKeys


class FitScript(Script):
    """Give a job its turn again, if the worker's model is the one that the job began with."""

    keys: JobKeys
    fingerprint: str


class HeartbeatScript(Script):
    """Renew a lease, if `progress`, counted from the claim, has grown."""

    keys: JobKeys
    number: int
    fence: int
    progress: int
    lease_ms: int


class MarkScript(Script):
    """Note which items go to the device next; `noted` is a JSON list of positions."""

    keys: JobKeys
    number: int
    fence: int
    noted: bytes
    lease_ms: int


class CompleteScript(Script):
    """Store a chunk's result and count it; where `pointer` is a URL and not `redis`, `frame` is empty.

    Attributes:
        minute, hour: counters of now.
        failures: failed items by code, as JSON.
    """

    keys: JobKeys
    minute: Key
    hour: Key
    result: Key
    input: Key
    number: int
    fence: int
    completed: int
    failed: int
    truncated: int
    tokens: int
    pointer: str
    size_bytes: int
    frame: bytes
    error: str
    cached: int
    fingerprint: str
    failures: bytes


class NoteScript(Script):
    """Write into a job's event log; `detail` is a JSON object."""

    keys: JobKeys
    event: str
    detail: bytes


class ReleaseScript(Script):
    """Give a chunk back without a result; `counts` says whether the attempt does, `reason` why it failed."""

    keys: JobKeys
    number: int
    fence: int
    delay_ms: int
    counts: bool
    reason: str


class ReapScript(Script):
    """Settle one overdue ticket or claim.

    Attributes:
        worker_id: whose claim is taken back, overdue or not; empty: whatever is overdue.
    """

    keys: JobKeys
    number: int
    worker_id: str
