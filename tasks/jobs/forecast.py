"""How fast jobs move and when they end: one estimate for a job, a list, a dry run and the drain of a lane.

Owns the estimate. Jobs of a lane share its speed by their weights (`dispatch.lua`), so when job j ends, job i has had
`min(left_i, left_j * weight_i / weight_j)` tokens computed; their sum over the lane's speed is the time left of j, and
of the last job the time in which the lane is drained. The speed is what running jobs show; before any does, what the
ready workers announce. Reads Redis only.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson
from redis import Redis

from tasks import keys
from tasks.jobs.job import Job, JobProgress, Priority
from tasks.jobs.records import WEIGHTS
from tasks.lanes import Lane

__all__ = ["Backlog", "Forecasts", "JobShare"]

_STEP_S = 10
_RECENT_S = 60
# Jobs beyond these are not read: a lane with so many is drained in a time that nobody wants to the second.
_MOST_JOBS = 1000
_CACHE_S = 1.0
_FIELDS = ("state", "weight", "estimated_tokens", "done_estimate", "tokens", "recent", "started_ms")


@dataclass(frozen=True, slots=True)
class JobShare:
    """One unfinished job of a lane: estimated tokens that are left, its weight, tokens per second of late."""

    left_tokens: float
    weight: float
    tokens_per_s: float


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

    def eta_s(self, job_id: str, tokens: float, weight: float) -> float | None:
        """Return when a job ends that may or may not be among these and has so many tokens left."""
        if tokens <= 0:
            return 0.0
        others = (share for name, share in self.shares.items() if name != job_id)
        return self._over_speed(tokens + sum(min(one.left_tokens, tokens * one.weight / weight) for one in others))

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
            eta_s = backlog.eta_s(job.id, job.estimated_tokens, WEIGHTS[job.priority]) if waits else None
            return JobProgress(eta_s=eta_s, position=position)
        eta_s = backlog.eta_s(job.id, share.left_tokens, share.weight)
        return JobProgress(share.tokens_per_s or None, eta_s, position)

    def estimate_s(self, lane: Lane, tokens: int, priority: Priority) -> float | None:
        """Return when a job of so many tokens would end if it were created now; None: unknown."""
        return self.backlog(lane).eta_s("", tokens, WEIGHTS[priority])

    def _ask(self, lane: Lane) -> Backlog:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.zrange(keys.lane_ready(lane), 0, _MOST_JOBS - 1)
        pipeline.zrange(keys.lane_inflight(lane), 0, -1)
        pipeline.time()
        ready, in_flight, (seconds, micros) = pipeline.execute()
        positions = {job_id.decode(): rank for rank, job_id in enumerate(ready)}
        job_ids = list(dict.fromkeys([*positions, *(entry.decode().rpartition(":")[0] for entry in in_flight)]))
        shares = self._shares(job_ids, seconds + micros / 1e6)
        measured = sum(share.tokens_per_s for share in shares.values())
        return Backlog(shares, positions, measured or self._announced(lane.model))

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
    return JobShare(max(0.0, left), number("weight") or 1.0, speed)


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
