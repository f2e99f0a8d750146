"""What workers do with chunks: taking turns, claims with a lease, completions, and reaping.

Owns the calls of those transitions. What users do with a job is in `tasks.jobs.store`; what a worker does with a claim
is in `tasks.bulk.chunk_task`.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import orjson
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.jobs.claims import IN_REDIS, Claim, ClaimCode, Completed, Completion, Ticket
from tasks.jobs.job import Job
from tasks.jobs.records import read_claim
from tasks.jobs.transitions import (
    BeginScript,
    CancelScript,
    ClaimScript,
    CompleteScript,
    DispatchScript,
    FitScript,
    HeartbeatScript,
    JobKeys,
    JobRef,
    MarkScript,
    NoteScript,
    ReapScript,
    ReleaseScript,
    ResumeScript,
)
from tasks.keys import Key
from tasks.lanes import Lane, Service
from tasks.presence.activity import hour_now, minute_now
from tasks.scripts import Script, Scripts

__all__ = ["Leases"]

_REAP_ENTRIES = 200
# Attempts after which a chunk's remaining items become errors, as a multiple of `max_attempts`: far more than finding a
# bad item takes, so that a chunk whose workers were merely killed is not condemned.
_CEILING_FACTOR = 10
_REFS_KEPT = 10_000
_LONGEST_DELAY_S = 60.0  # before a chunk that was given back waits again


class OverdueScript(Script):
    """List up to `most` that is overdue in a lane; for `grace_s` after a start of Redis, no claims.

    What is held for longer than `longest_ms`, since Redis' clock stepped back, is held for so long from now on.
    """

    inflight: Key
    deadlines: Key
    later: Key
    grace_s: float
    longest_ms: int
    most: int


class Leases:
    """Transitions of chunks. Thread-safe. All methods raise `redis.RedisError` when Redis does not answer.

    Args:
        redis: client without `decode_responses`.
        settings: window, lease and time limits.
        fingerprints: of the models that this process computes with now, by slug; one that is not there is not compared.
    """

    def __init__(self, redis: Redis, settings: Settings, fingerprints: Mapping[str, str] | None = None) -> None:
        self.redis = redis
        self.settings = settings
        self._scripts = Scripts(redis)
        # Read anew at each claim, since models are loaded and unloaded.
        self._fingerprints = {} if fingerprints is None else fingerprints
        self._refs: dict[str, JobRef] = {}

    def dispatch(self, lane: Lane, most: int | None = None, most_tokens: int | None = None) -> list[Ticket]:
        """Issue tickets (see `Ticket`) by fair queueing, between tenants first and then between the jobs of one.

        Args:
            lane: the lane.
            most: how many at most; None: until nothing waits or the lane is full.
            most_tokens: stop at a larger chunk, but for one of a single item; None: take any.
        """
        tickets: list[Ticket] = []
        while (most is None or len(tickets) < most) and (head := self._find_head(lane)) is not None:
            code, number = self._offer(head, most_tokens)
            if code == b"TICKET":
                tickets.append(Ticket(head.id, int(number)))
            elif code != b"NEXT":
                break
        return tickets

    def count_messages(self, lane: Lane, wanted: int | None = None) -> int:
        """Return how many chunk messages should be added to those that wait in the lane's queue.

        Args:
            lane: the lane.
            wanted: what the caller wants to add; None: one for each chunk that workers can hold, if no message is left.
        """
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.zcard(keys.lane_ready(lane))
            pipe.llen(keys.lane_messages(lane))
            pipe.zcard(keys.lane_workers(lane.model))
            ready, waiting, workers = map(int, pipe.execute())
        if not ready:
            return 0
        if wanted is None:
            return 0 if waiting else max(1, workers) * self.settings.chunks_in_flight
        return max(0, min(wanted, max(self.settings.window, workers * self._tickets_per_worker) - waiting))

    def has_turns(self, lane: Lane) -> bool:
        """Return whether a chunk waits in the lane."""
        return bool(self.redis.exists(keys.lane_ready(lane)))

    def claim(self, job_id: str, chunk: int, worker_id: str, lease_s: float | None = None) -> Claim:
        """Take a chunk; the attempt is counted before anything is computed.

        Args:
            job_id: the job.
            chunk: number of the chunk.
            worker_id: who takes it.
            lease_s: how long the claim holds without a heartbeat; None: as the settings say.
        """
        job = self.find(job_id)
        if job is None:
            return Claim(ClaimCode.GONE, job_id, chunk)
        fingerprint = self._fingerprints.get(job.lane.model, "")
        call = ClaimScript(
            self._keys(job),
            number=chunk,
            worker_id=worker_id,
            nonce=secrets.token_hex(4),
            lease_ms=self._lease_ms(lease_s),
            max_attempts=self.settings.max_attempts * _CEILING_FACTOR,
            # The first failure only makes the worker look for the item that is to blame.
            max_failures=max(2, self.settings.max_attempts),
            fingerprint=fingerprint,
        )
        return replace(read_claim(job_id, chunk, self._scripts.call(call)), fingerprint=fingerprint)

    def heartbeat(self, claim: Claim, progress: int, lease_s: float | None = None) -> bool:
        """Renew the lease if `progress`, counted from the claim, has grown; return whether to stop."""
        job = self.find(claim.job_id)
        if job is None:
            return True
        lease_ms = self._lease_ms(lease_s)
        call = HeartbeatScript(self._keys(job), claim.chunk, claim.fence, progress=progress, lease_ms=lease_ms)
        return bool(self._scripts.call(call) != b"GO")

    def mark(self, claim: Claim, positions: Sequence[int], lease_s: float | None = None) -> bool:
        """Note which items the device gets next, so that they are known if it dies of them; return whether to stop.

        The items that were noted before count as survived. The lease is renewed.
        """
        job = self.find(claim.job_id)
        if job is None:
            return True
        noted, lease_ms = orjson.dumps(list(positions)), self._lease_ms(lease_s)
        call = MarkScript(self._keys(job), claim.chunk, claim.fence, noted=noted, lease_ms=lease_ms)
        return bool(self._scripts.call(call) != b"GO")

    def complete(self, claim: Claim, completion: Completion, pointer: str = IN_REDIS) -> Completed:
        """Store the result and count it once; return what became of it.

        Args:
            claim: the claim.
            completion: counts and frame.
            pointer: where the frame lies already; in Redis it is stored here, in the same step in which it is counted.
        """
        job = self.find(claim.job_id)
        if job is None:
            return Completed.GONE
        call = CompleteScript(
            self._keys(job),
            minute=keys.activity_minute(minute_now()),
            hour=keys.activity_hour(hour_now()),
            result=keys.job_result(claim.job_id, claim.chunk),
            input=keys.job_input(claim.job_id, claim.chunk),
            number=claim.chunk,
            fence=claim.fence,
            completed=completion.completed,
            failed=completion.failed,
            truncated=completion.truncated,
            tokens=completion.tokens,
            pointer=pointer,
            size_bytes=len(completion.frame),
            frame=completion.frame if pointer == IN_REDIS else b"",
            error=completion.error,
            cached=completion.cached,
            fingerprint=claim.fingerprint,
            failures=orjson.dumps(completion.failures),
        )
        return Completed(self._scripts.call(call).decode())

    def release(self, claim: Claim, delay_s: float = 0.0) -> bool:
        """Give the chunk back as if it had not been claimed; return whether the claim still held.

        Args:
            claim: the claim.
            delay_s: no new ticket before that; for a worker that is busy, not gone.
        """
        return self._release(claim, int(delay_s * 1000))

    def fail(self, claim: Claim, reason: str, delay_s: float = 0.0) -> bool:
        """Give the chunk back with its attempt counted; return whether the claim still held. Else as `release`."""
        return self._release(claim, int(min(delay_s, _LONGEST_DELAY_S) * 1000), reason)

    def reap(self, lane: Lane) -> None:
        """Take back overdue tickets and claims, end jobs whose deadline has passed, and let those begin that may."""
        entries, expired, waiting = self._list_overdue(lane)
        for job_id in expired:
            self._scripts.call(CancelScript(self._keys(self._place(job_id.decode(), lane)), ending="expired"))
        for job_id in waiting:
            self._scripts.call(BeginScript(self._keys(self._place(job_id.decode(), lane))))
        self._take_up_misfits(lane)
        self._take_up_earlier_turns(lane)
        self._reap(lane, entries)

    def reap_job(self, job: JobRef | Job) -> None:
        """Take back the overdue claims of one job, so that it ends even where no worker is alive to reap."""
        own = f"{job.id}:".encode()
        self._reap(job.lane, [entry for entry in self._list_overdue(job.lane)[0] if entry.startswith(own)])

    def take_back(self, job_id: str, chunk: int, worker_id: str) -> bool:
        """Take a chunk back from a worker that is not well, before its lease ends; return whether it held the chunk."""
        job = self.find(job_id)
        if job is None:
            return False
        call = ReapScript(self._keys(job), chunk, worker_id=worker_id)
        return bool(self._scripts.call(call) == b"BACK")

    def note(self, job_id: str, event: str, detail: Mapping[str, object]) -> None:
        """Write into the event log of a job what was seen of one who computes it."""
        job = self.find(job_id)
        if job is not None:
            self._scripts.call(NoteScript(self._keys(job), event, orjson.dumps(detail)))

    def find(self, job_id: str) -> JobRef | None:
        """Return what the keys of a job are made of, None when it is gone. It never changes, so it is read once."""
        ref = self._refs.get(job_id)
        if ref is None:
            model, tenant = cast("list[bytes | None]", self.redis.hmget(keys.job(job_id), ["lane", "tenant"]))
            if model is None or tenant is None:
                return None
            if len(self._refs) >= _REFS_KEPT:
                self._refs.clear()
            ref = self._refs[job_id] = JobRef(job_id, Lane(model.decode(), Service.BULK), tenant.decode())
        return ref

    def exists(self, job_id: str) -> bool:
        """Return whether there is a job of that id, of whatever tenant."""
        return bool(self.redis.exists(keys.job(job_id)))

    # -- inside

    def _keys(self, job: JobRef) -> JobKeys:
        return JobKeys.of(job, self.settings)

    def _place(self, job_id: str, lane: Lane) -> JobRef:
        """Return a job for a script that also cleans up after a deleted one: that belongs to no tenant."""
        return self.find(job_id) or JobRef(job_id, lane, "")

    def _lease_ms(self, lease_s: float | None) -> int:
        return int((self.settings.lease_s if lease_s is None else lease_s) * 1000)

    def _release(self, claim: Claim, delay_ms: int, failure: str = "") -> bool:
        job = self.find(claim.job_id)
        if job is None:
            return False
        call = ReleaseScript(
            self._keys(job), claim.chunk, claim.fence, delay_ms=delay_ms, counts=bool(failure), reason=failure
        )
        return bool(self._scripts.call(call) == b"OK")

    @property
    def _tickets_per_worker(self) -> int:
        return 2 * self.settings.chunks_in_flight

    def _find_head(self, lane: Lane) -> JobRef | None:
        """Return the job whose turn it is; its ID is empty where all of the tenant expired, which the script sees."""
        for tenant in cast("list[bytes]", self.redis.zrange(keys.lane_ready(lane), 0, 0)):
            jobs = cast("list[bytes]", self.redis.zrange(keys.lane_turns(lane, tenant.decode()), 0, 0))
            return JobRef(jobs[0].decode() if jobs else "", lane, tenant.decode())
        return None

    def _offer(self, job: JobRef, most_tokens: int | None) -> tuple[bytes, bytes]:
        call = DispatchScript(
            self._keys(job),
            workers=keys.lane_workers(job.lane.model),
            window=self.settings.window,
            tickets_per_worker=self._tickets_per_worker,
            timeout_ms=int(self.settings.ticket_timeout_s * 1000),
            most_tokens=most_tokens,
        )
        return cast("tuple[bytes, bytes]", self._scripts.call(call))

    def _take_up_earlier_turns(self, lane: Lane) -> None:
        """Give the jobs a turn that processes of an earlier version put in line; resuming one twice changes nothing."""
        for job_id in cast("list[bytes]", self.redis.zrange(keys.lane_earlier_turns(lane), 0, -1)):
            self._scripts.call(ResumeScript(self._keys(self._place(job_id.decode(), lane))))
            self.redis.zrem(keys.lane_earlier_turns(lane), job_id)

    def _take_up_misfits(self, lane: Lane) -> None:
        """Give the jobs their turn again that wait for a worker with this one's model."""
        if not (fingerprint := self._fingerprints.get(lane.model)):
            return
        waiting = cast("list[bytes]", self.redis.zrange(keys.lane_misfits(lane), 0, -1))
        for job_id in waiting:
            self._scripts.call(FitScript(self._keys(self._place(job_id.decode(), lane)), fingerprint))

    def _list_overdue(self, lane: Lane) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """Return chunks that are overdue, jobs whose deadline has passed, and jobs that may begin by now."""
        settings = self.settings
        longest_s = max(settings.lease_s + settings.pass_timeout_s, settings.ticket_timeout_s, _LONGEST_DELAY_S)
        call = OverdueScript(
            keys.lane_inflight(lane),
            keys.lane_deadlines(lane),
            keys.lane_later(lane),
            grace_s=settings.lease_s,
            longest_ms=int(longest_s * 1000),
            most=_REAP_ENTRIES,
        )
        entries, expired, waiting = self._scripts.call(call)
        return entries, expired, waiting

    def _reap(self, lane: Lane, entries: Sequence[bytes]) -> None:
        for entry in entries:
            job_id, _, number = entry.decode().rpartition(":")
            self._scripts.call(ReapScript(self._keys(self._place(job_id, lane)), int(number), worker_id=""))
