"""What users do with jobs: create, read, wait, cancel, pause, resume, retry, delete.

Owns the calls of those transitions and the reading of records; the record is the truth that chunk messages only point
at. What workers do with chunks is in `tasks.jobs.leases`, bytes of inputs are in `tasks.jobs.blobs`.
"""

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import cast

import orjson
from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from config.settings import Settings
from tasks import keys
from tasks.engine import Truncate
from tasks.errors import Conflict, IdempotencyMismatch, InvalidRequest, NotFound, RateLimited, TooLarge
from tasks.jobs.blobs import ABANDONED_MS, store_full
from tasks.jobs.job import ChunkRecord, ChunkState, Counts, Idempotency, Job, JobState, NewJob, StoreQuota
from tasks.jobs.leases import Leases
from tasks.jobs.listing import JobListing
from tasks.jobs.records import Creation, FinishedResult, read_chunk
from tasks.jobs.transitions import (
    CancelScript,
    DeleteScript,
    FirstScript,
    JobKeys,
    JobRef,
    PauseScript,
    QueueReserveScript,
    ResumeScript,
    RetryScript,
    RoomScript,
)
from tasks.scripts import Script, Scripts

__all__ = ["JobStore"]

_WAIT_STEP_MS = 500
_DURABLE_WITHIN_MS = 200
_INPUTS_PER_TRIP = 1000
_QUEUE_RETRY_AFTER_S = 10.0
_ROOM_RETRY_AFTER_S = 30.0
_DAY_MS = 86_400_000


class JobStore:
    """Jobs of all tenants. Thread-safe. All methods raise `redis.RedisError` when Redis does not answer.

    Args:
        redis: client without `decode_responses`.
        settings: limits and times.

    Attributes:
        leases: what workers do with the chunks of these jobs.
        listing: reads many of them.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.settings = settings
        self.leases = Leases(redis, settings)
        self.listing = JobListing(redis)
        self._scripts = Scripts(redis)

    # -- create

    def check_room(self, upload: JobRef, size_bytes: int, new_bytes: int = 0, quota: StoreQuota | None = None) -> None:
        """Raise unless Redis has room; to be called while an upload streams in, whose bytes count for its tenant.

        Args:
            upload: the job to be.
            size_bytes: its size, as far as it is known.
            new_bytes: how many of them are still to come; what is stored already counts as used.
            quota: what its tenant's jobs may keep; None: whatever there is room for.

        Raises:
            TooLarge: Redis or the quota can never hold so much.
            StoreFull, RateLimited: not now.
        """
        quota = quota or StoreQuota()
        call = RoomScript(
            keys.store_reserved(),
            keys.store_reserved_until(),
            keys.tenant_held(upload.tenant),
            keys.tenant_held_until(upload.tenant),
            store_max_bytes=self.settings.store_max_bytes,
            quota_bytes=quota.limit_bytes,
            fair=quota.fair,
            job_id=upload.id,
            size_bytes=size_bytes,
            new_bytes=new_bytes,
            hold_ms=ABANDONED_MS,
            lane_ttl_ms=int(self.settings.job_ttl_s * 1000) + _DAY_MS,
        )
        code, kept_bytes = self._scripts.call(call)
        _refuse(code, kept_bytes, quota)

    def discard(self, upload: JobRef) -> None:
        """Forget what was noted of a job that was not created after all; the caller removes its blobs."""
        call = DeleteScript(
            JobKeys.of(upload, self.settings),
            keys.tenant_held_until(upload.tenant),
            keys.tenant_jobs(upload.tenant),
            keys.all_jobs(),
        )
        self._scripts.call(call)

    def reserve_queue(self, tenant: str, items: Mapping[str, int], limit: int | None) -> None:
        """Reserve places in the tenant's queue for several jobs that are about to be created: for all, or for none.

        One job needs none: it is counted in the step that creates it.

        Args:
            tenant: whose they are.
            items: how many items each has, by job id.
            limit: items that the tenant may have in the queue; None: any number.

        Raises:
            RateLimited: with them, the tenant would have too many items in the queue.
            TooLarge: they are too many by themselves.
        """
        if limit is None:
            return
        _check_queue(sum(items.values()), limit)
        jobs, ttl_ms = orjson.dumps(list(items.items())), int(self.settings.job_ttl_s * 1000)
        call = QueueReserveScript(
            keys.tenant_queued(tenant), limit, ttl_ms=ttl_ms, lane_ttl_ms=ttl_ms + _DAY_MS, jobs=jobs
        )
        waiting = self._scripts.call(call)
        if waiting is not None:
            raise _queue_full(waiting, limit)

    def release_queue(self, tenant: str, job_ids: Collection[str]) -> None:
        """Give back the places of jobs that were not created after all."""
        if job_ids:
            self.redis.hdel(keys.tenant_queued(tenant), *job_ids)

    def named(self, tenant: str, key: str) -> str | None:
        """Return the job that was created under the idempotency key, whatever its payload was; None: there is none."""
        known = cast("bytes | None", self.redis.get(keys.idempotency(tenant, key)))
        job_id = None if known is None else str(orjson.loads(known)["job"])
        return job_id if job_id is not None and self.exists(job_id) else None

    def find(self, tenant: str, idempotency: Idempotency) -> Job | None:
        """Return the job that was created under the key, if any.

        Raises:
            IdempotencyMismatch: the key was used with another payload.
        """
        known = cast("bytes | None", self.redis.get(keys.idempotency(tenant, idempotency.key)))
        if known is None:
            return None
        first = orjson.loads(known)
        job = self._read(first["job"])
        if job is not None and first["hash"] != idempotency.payload_hash:
            raise _mismatch()
        return job

    def create(
        self, job: NewJob, chunks: Sequence[ChunkRecord], idempotency: Idempotency | None = None
    ) -> tuple[Job, bool]:
        """Create the job whose inputs are stored already; it is on disk, where Redis can confirm that, on return.

        Returns:
            The job and True; or the job that was created under the idempotency key before and False: then the caller
            removes the inputs that it stored.

        Raises:
            InvalidRequest: there is nothing to compute.
            IdempotencyMismatch, RateLimited, StoreFull, TooLarge: nothing was created; the caller removes the inputs.
        """
        if not chunks:
            raise InvalidRequest("a job needs at least one item")
        if job.queue_limit is not None:
            _check_queue(job.total, job.queue_limit)
        with self.redis.client() as connection:  # type: ignore[no-untyped-call]
            known, created = self._create(Creation(job, chunks, idempotency), connection)
            if created:
                _expire_inputs(connection, known, len(chunks))
            _make_durable(connection)
        return known, created

    def record_finished(
        self, job: NewJob, frame: bytes, counts: Counts, tokens: int, idempotency: Idempotency | None = None
    ) -> tuple[Job, bool]:
        """Store a job that was answered at once, like any other; arguments and errors as `create`.

        Args:
            job: what it was.
            frame: its result frame, one chunk of all items.
            counts: its outcomes.
            tokens: tokens that the model read.
            idempotency: the caller's key.
        """
        chunk = ChunkRecord(0, 0, job.total, job.estimated_tokens)
        return self._create(Creation(job, [chunk], idempotency, FinishedResult(counts, tokens, frame)), self.redis)

    # -- read

    def get(self, job_id: str, tenant: str | None = "default") -> Job:
        """Return a job; `tenant` None: whosever it is.

        Raises:
            NotFound: there is none of that id for this tenant.
        """
        job = self._read(job_id)
        if job is not None and not job.ended and (job.state is JobState.CANCELLING or job.deadline_at is not None):
            job = self._settle(job)
        if job is None or (tenant is not None and job.tenant != tenant):
            raise NotFound(f"there is no job {job_id!r}")
        return job

    def exists(self, job_id: str) -> bool:
        """Return whether there is a job of that id, of whatever tenant."""
        return self.leases.exists(job_id)

    def chunk_table(self, job_id: str, first: int = 0, count: int | None = None) -> Sequence[ChunkState]:
        """Return the chunks of a job from number `first` on, `count` of them or all.

        Raises:
            NotFound: there is no such job.
        """
        job = self._read(job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id!r}")
        last = job.chunks if count is None else min(job.chunks, first + count)
        numbers = [str(number) for number in range(first, last)]
        if not numbers:
            return []
        lines = cast("list[bytes | None]", self.redis.hmget(keys.job_chunks(job_id), numbers))
        pairs = zip(range(first, last), lines, strict=True)
        return [read_chunk(number, line, job.state) for number, line in pairs if line is not None]

    def wait(self, job_id: str, tenant: str | None, version: int, timeout_s: float) -> Job:
        """Return the job as soon as its version is above `version`, or when the time is over.

        Raises:
            NotFound: there is no such job.
        """
        until_s = time.monotonic() + timeout_s
        job = self.get(job_id, tenant)
        while job.version <= version and not job.ended and (left_s := until_s - time.monotonic()) > 0:
            # In short steps, so that the client's socket timeout is never reached.
            step_ms = max(1, min(_WAIT_STEP_MS, int(left_s * 1000)))
            self.redis.xread({keys.job_events(job_id): f"{version}-0"}, count=1, block=step_ms)
            job = self.get(job_id, tenant)
        return job

    # -- move

    def cancel(self, job_id: str, tenant: str | None = "default") -> Job:
        """Drop what waits and stop what runs; finished chunks stay readable. Repeatable.

        Raises:
            NotFound: there is no such job.
            Conflict: it has ended by itself.
        """
        return self._move(job_id, tenant, "cancelled")

    def pause(self, job_id: str, tenant: str | None = "default") -> Job:
        """Pause the job until `resume`; errors as `cancel`. Repeatable."""
        return self._move(job_id, tenant, "paused")

    def resume(self, job_id: str, tenant: str | None = "default") -> Job:
        """Resume a paused job; errors as `cancel`. Repeatable."""
        return self._move(job_id, tenant, "resumed")

    def run_first(self, job_id: str, tenant: str | None = "default") -> Job:
        """Let the job go ahead of all others of its lane until it is done; errors as `cancel`. Repeatable."""
        return self._move(job_id, tenant, "put first")

    def retry_failed(self, job_id: str, tenant: str | None = "default", truncate: Truncate | None = None) -> Job:
        """Queue the failed items of an ended job again, and only those; `truncate`: cut what is too long, from now on.

        Raises:
            NotFound: there is no such job.
            Conflict: it has not ended by itself, or nothing failed.
        """
        return self._move(job_id, tenant, "retried", truncate)

    def delete(self, job_id: str, tenant: str | None = "default") -> Job:
        """Delete the job, whatever its state, and return what it was; the caller removes its blobs.

        Raises:
            NotFound: there is no such job.
        """
        job = self.get(job_id, tenant)
        self.discard(JobRef(job.id, job.lane, job.tenant))
        return job

    # -- inside

    def _create(self, creation: Creation, client: Redis) -> tuple[Job, bool]:
        job, replaces = creation.job, ""
        while True:
            try:
                answer = self._scripts.call(creation.script(self.settings, replaces), client)
            except OutOfMemoryError as error:
                raise store_full() from error
            code, job_id = answer[0], answer[1].decode()
            if code == b"QUEUE_FULL":
                raise _queue_full(answer[2], job.queue_limit)
            if len(answer) > 2:
                _refuse(code, answer[2], job.quota)
            known = self._read(job_id)
            if known is None:
                # The key outlived its job, which was deleted: let it name the new one.
                replaces = job_id
            elif code == b"MISMATCH":
                raise _mismatch()
            else:
                return known, job_id == job.id

    def _read(self, job_id: str) -> Job | None:
        return self.listing.read([job_id])[0]

    def _settle(self, job: Job) -> Job | None:
        """Apply deadlines and expired leases to a job that ends, even where no worker is alive to reap."""
        self._scripts.call(CancelScript(JobKeys.of(job, self.settings), ending="expired"))
        if job.state is JobState.CANCELLING:
            self.leases.reap_job(job)
        return self._read(job.id)

    def _move(self, job_id: str, tenant: str | None, goal: str, truncate: Truncate | None = None) -> Job:
        job = self.get(job_id, tenant)
        params = b"" if truncate is None else orjson.dumps(asdict(replace(job.params, truncate=truncate)))
        names = JobKeys.of(job, self.settings)
        calls: dict[str, Script] = {
            "cancelled": CancelScript(names, ending="cancelled"),
            "paused": PauseScript(names),
            "resumed": ResumeScript(names),
            "put first": FirstScript(names),
            "retried": RetryScript(names, params),
        }
        answer = self._scripts.call(calls[goal])
        if answer in (b"CONFLICT", b"ENDED"):
            raise Conflict(f"the job is {job.state.value}: it cannot be {goal}")
        if answer == b"NOTHING":
            raise Conflict("no item of the job failed: there is nothing to retry")
        return self.get(job_id, tenant)


def _make_durable(connection: Redis) -> None:
    """Wait a moment for this connection's writes to reach the disk.

    A Redis without an append-only file, or an old one, refuses: that is no error.
    """
    with contextlib.suppress(ResponseError):
        connection.execute_command("WAITAOF", 1, 0, _DURABLE_WITHIN_MS)  # type: ignore[no-untyped-call]


def _expire_inputs(connection: Redis, job: Job, chunks: int) -> None:
    """Let the inputs, which are older than their job, expire with it. What is not reached expires a day later."""
    for first in range(0, chunks, _INPUTS_PER_TRIP):
        with connection.pipeline(transaction=False) as pipe:
            for chunk in range(first, min(chunks, first + _INPUTS_PER_TRIP)):
                pipe.pexpireat(keys.job_input(job.id, chunk), int(job.expires_at * 1000))
            pipe.execute()


def _refuse(code: bytes, kept_bytes: int, quota: StoreQuota) -> None:
    if code == b"TOO_LARGE":
        raise TooLarge("the job needs more memory than Redis may ever use for jobs")
    if code == b"TOO_MUCH":
        raise TooLarge(f"The job needs more memory than your key's limit of {quota.limit_bytes} stored bytes.")
    if code == b"FULL":
        raise store_full()
    if code == b"OVER":
        most = f"your key's limit is {quota.limit_bytes}" if quota.limit_bytes else "others need room, too"
        message = f"Your jobs keep {kept_bytes} bytes here, and {most}: DELETE jobs that have ended, or wait."
        raise RateLimited(message, retry_after_s=_ROOM_RETRY_AFTER_S)


def _mismatch() -> IdempotencyMismatch:
    return IdempotencyMismatch("this idempotency key was used before with another payload")


def _check_queue(items: int, limit: int) -> None:
    if items > limit:
        raise TooLarge(f"This job has {items} items; your key's limit is {limit} queued items.")


def _queue_full(waiting: int, limit: int | None) -> RateLimited:
    message = f"Your key's limit is {limit} queued items; {waiting} are waiting."
    return RateLimited(message, retry_after_s=_QUEUE_RETRY_AFTER_S)
