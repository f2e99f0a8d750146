"""How fast jobs move and when they end: one estimate for a job, a list, a dry run and the drain of a lane.

Owns the estimate. Tenants share the speed of a lane, and jobs that of their tenant (`dispatch.lua`): when
job j ends, job i has had `min(left_i, left_j * part_i / part_j)` tokens computed, where a part is the tenant's share by
the job's part of its tenant's weights. Their sum over the lane's speed is the time left of j. The speed is what running
jobs show; before any does, what the ready workers announce. Reads Redis only.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson
from redis import Redis

from tasks import keys
from tasks.jobs.job import WEIGHTS, Job, JobProgress
from tasks.lanes import Lane

__all__ = ["Backlog", "Forecasts", "JobShare"]

_STEP_S = 10
_RECENT_S = 60
# Jobs beyond these are not read: a lane with so many is drained in a time that nobody wants to the second.
_MOST_JOBS = 1000
_CACHE_S = 1.0
_FIELDS = ("state", "tenant", "share", "weight", "estimated_tokens", "done_estimate", "tokens", "recent", "started_ms")


@dataclass(frozen=True, slots=True)
class JobShare:
    """One unfinished job of a lane: estimated tokens that are left, its weights, tokens per second of late."""

    left_tokens: float
    weight: float
    tokens_per_s: float
    tenant: str = "default"
    share: float = WEIGHTS["normal"]


@dataclass(frozen=True, slots=True)
class Backlog:
    """The unfinished jobs of a lane, those that are paused apart.

    Attributes:
        shares: by job ID.
        positions: jobs ahead in the queue, by ID of those that have chunks to hand out.
        tokens_per_s: speed of the lane; 0: unknown.
    """

    shares: Mapping[str, JobShare] = field(default_factory=dict)
    positions: Mapping[str, int] = field(default_factory=dict)
    tokens_per_s: float = 0.0

    @property
    def tokens(self) -> float:
        """Tokens that wait."""
        return sum(share.left_tokens for share in self.shares.values())

    def drain_s(self) -> float | None:
        """Return when nothing waits any more, in seconds; None: nobody works on what waits, or nothing is known."""
        return self._over_speed(self.tokens)

    def eta_s(self, job_id: str, job: JobShare) -> float | None:
        """Return when a job ends that may or may not be among these."""
        if job.left_tokens <= 0:
            return 0.0
        others = [share for name, share in self.shares.items() if name != job_id]
        weights: dict[str, float] = defaultdict(float)
        for one in (job, *others):
            weights[one.tenant] += one.weight

        def part(one: JobShare) -> float:
            return one.share * one.weight / weights[one.tenant]

        computed = (min(one.left_tokens, job.left_tokens * part(one) / part(job)) for one in others)
        return self._over_speed(job.left_tokens + sum(computed))

    def _over_speed(self, tokens: float) -> float | None:
        if tokens <= 0:
            return 0.0
        return tokens / self.tokens_per_s if self.tokens_per_s > 0 else None


class Forecasts:
    """Forecasts for all lanes. Thread-safe; what was read is used for a second.

    Args:
        redis: the server.
        announced: speed that the ready workers of a model (a slug) announce, in tokens per second; 0: none.
        cache_s: for how long a reading is used.
    """

    def __init__(self, redis: Redis, announced: Callable[[str], float], cache_s: float = _CACHE_S) -> None:
        self._redis = redis
        self._announced = announced
        self._cache_s = cache_s
        self._lock = threading.Lock()
        self._read: dict[Lane, tuple[float, Backlog]] = {}

    def backlog(self, lane: Lane) -> Backlog:
        """Return what waits in a bulk lane.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        with self._lock:
            at_s, backlog = self._read.get(lane, (float("-inf"), Backlog()))
            if time.monotonic() - at_s >= self._cache_s:
                backlog = self._ask(lane)
                self._read[lane] = time.monotonic(), backlog
            return backlog

    def progress(self, job: Job) -> JobProgress:
        """Return speed and time left of an unfinished job, and the speed of the whole run of one that has ended.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        if job.ended:
            return _look_back(job)
        backlog = self.backlog(job.lane)
        share, position = backlog.shares.get(job.id), backlog.positions.get(job.id)
        if share is None:
            # Paused, or created a moment ago.
            waits = job.state == "queued"
            new = JobShare(job.estimated_tokens, WEIGHTS[job.priority], 0.0, job.tenant)
            eta_s = backlog.eta_s(job.id, new) if waits else None
            if eta_s is not None and job.not_before is not None:
                eta_s += max(0.0, job.not_before - time.time())
            return JobProgress(eta_s=eta_s, position=position)
        eta_s = backlog.eta_s(job.id, share)
        return JobProgress(share.tokens_per_s or None, eta_s, position)

    def estimate_s(self, lane: Lane, job: JobShare) -> float | None:
        """Return when a job would end if it were created now; None: unknown."""
        return self.backlog(lane).eta_s("", job)

    def _ask(self, lane: Lane) -> Backlog:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.zrange(keys.lane_ready(lane), 0, -1)
        pipeline.zrange(keys.lane_inflight(lane), 0, -1)
        pipeline.time()
        tenants, in_flight, (seconds, micros) = pipeline.execute()
        positions = self._positions(lane, tenants)
        job_ids = list(dict.fromkeys([*positions, *(entry.decode().rpartition(":")[0] for entry in in_flight)]))
        shares = self._shares(job_ids, seconds + micros / 1e6)
        measured = sum(share.tokens_per_s for share in shares.values())
        return Backlog(shares, positions, measured or self._announced(lane.model))

    def _positions(self, lane: Lane, tenants: Sequence[bytes]) -> dict[str, int]:
        """Return the turns before that of each job; as tenants take turns, each earlier one of its own is a round."""
        pipeline = self._redis.pipeline(transaction=False)
        for tenant in tenants:
            pipeline.zrange(keys.lane_turns(lane, tenant.decode()), 0, _MOST_JOBS - 1)
        ranks = [
            (rank * len(tenants) + place, job_id.decode())
            for place, jobs in enumerate(pipeline.execute())
            for rank, job_id in enumerate(jobs)
        ]
        return {job_id: place for place, job_id in sorted(ranks)[:_MOST_JOBS]}

    def _shares(self, job_ids: Sequence[str], now_s: float) -> dict[str, JobShare]:
        pipeline = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hmget(keys.job(job_id), _FIELDS)
        records = pipeline.execute() if job_ids else []
        return {
            job_id: _read_share(dict(zip(_FIELDS, values, strict=True)), now_s)
            for job_id, values in zip(job_ids, records, strict=True)
            if values[0] in (b"queued", b"running")
        }


def _read_share(record: Mapping[str, bytes | None], now_s: float) -> JobShare:
    def number(name: str) -> float:
        return float(record[name] or 0)

    left, done, tokens = number("estimated_tokens") - number("done_estimate"), number("done_estimate"), number("tokens")
    # What was done shows how far the estimate is from what the model reads.
    left *= tokens / done if done > 0 and tokens > 0 else 1.0
    started_s = number("started_ms") / 1000
    speed = _recent_speed(orjson.loads(record["recent"] or b"[]"), started_s, now_s)
    weight, share = number("weight") or 1.0, number("share") or WEIGHTS["normal"]
    return JobShare(max(0.0, left), weight, speed, (record["tenant"] or b"default").decode(), share)


def _recent_speed(recent: Sequence[tuple[int, int]], started_s: float, now_s: float) -> float:
    """Return tokens per second of the last minute, from counts in steps of ten seconds; 0: nothing was counted."""
    steps = [(step * _STEP_S, tokens) for step, tokens in recent if step * _STEP_S > now_s - _RECENT_S - _STEP_S]
    if not steps or not started_s:
        return 0.0
    return sum(tokens for _, tokens in steps) / max(1.0, now_s - max(started_s, steps[0][0]))


def _look_back(job: Job) -> JobProgress:
    if job.started_at is None or job.ended_at is None or job.ended_at <= job.started_at:
        return JobProgress()
    return JobProgress(tokens_per_s=job.tokens / (job.ended_at - job.started_at))
