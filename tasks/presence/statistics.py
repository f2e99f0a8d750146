"""Statistics of what is in Redis, for monitoring: depth and age of the lanes, jobs that have not ended, memory.

Only reads. Nothing here changes Redis or blocks it: many small reads, each a snapshot of its own, so the numbers of one
call may be some milliseconds apart.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis import Redis

from tasks import keys
from tasks.lanes import Lane, Service
from tasks.presence.eviction import may_evict

__all__ = ["LaneStatistics", "StoreStatistics", "read_statistics"]

_PER_TRIP = 1000
# Monitoring must stay cheap: unfinished jobs beyond this number are not read.
_MOST_JOBS = 20_000


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """One lane.

    Attributes:
        requests: interactive requests that wait in its list.
        tokens: estimated tokens that wait: in that list and, in a bulk lane, in chunks that are not done.
        jobs_ready: jobs that have chunks without a ticket.
        tickets: chunks that a worker was given and has not claimed yet, or that wait for a moment after a failure.
        claims: chunks that a worker holds.
        messages: Celery messages in the queue.
        stalled_s: for how long chunks have waited without any worker taking one.
    """

    lane: Lane
    requests: int = 0
    tokens: int = 0
    jobs_ready: int = 0
    tickets: int = 0
    claims: int = 0
    messages: int = 0
    stalled_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Everything that is in Redis."""

    lanes: Sequence[LaneStatistics]
    jobs: Mapping[str, int] = field(default_factory=dict)
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    evicts: bool = False
    reserved_bytes: int = 0
    webhooks_waiting: int = 0
    cache_lookups: Mapping[str, int] = field(default_factory=dict)
    # Ends of jobs (`jobs:succeeded`), outcomes of their items (`items:failed`) and `tokens`, since counting began.
    totals: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Raw:
    """What the first trip returns for one lane."""

    requests: int
    tokens: int
    ready: list[bytes]
    in_flight: list[tuple[bytes, float]]
    messages: int
    moved_ms: float


def read_statistics(redis: Redis, models: Iterable[str]) -> StoreStatistics:
    """Read both lanes of the models (slugs), and what they share.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    lanes = [Lane(model, service) for model in models for service in (Service.INTERACTIVE, Service.BULK)]
    raw, (now_s, memory, reserved, holders) = _read_lanes(redis, lanes)
    webhooks, lookups, totals = _read_counts(redis)
    jobs = _read_jobs(redis, _job_ids(raw, holders))
    waiting = Counter[str]()
    for model, state, tokens in jobs:
        # What is paused or being cancelled waits for nobody.
        waiting[model] += tokens if state in {"queued", "running"} else 0
    statistics = []
    for lane, part in zip(lanes, raw, strict=True):
        backlog = waiting[lane.model] if lane.service is Service.BULK else 0
        statistics.append(_describe(redis, lane, part, backlog, now_s))
    return StoreStatistics(
        lanes=statistics,
        jobs=Counter(state for _, state, _ in jobs),
        memory_bytes=int(memory["used_memory"]),
        memory_limit_bytes=int(memory["maxmemory"]),
        evicts=may_evict(memory),
        reserved_bytes=int(reserved or 0),
        webhooks_waiting=webhooks,
        cache_lookups=lookups,
        totals=totals,
    )


def _read_lanes(redis: Redis, lanes: Sequence[Lane]) -> tuple[list[_Raw], tuple[float, Any, Any, list[bytes]]]:
    pipeline = redis.pipeline(transaction=False)
    for lane in lanes:
        pipeline.llen(keys.lane_requests(lane))
        pipeline.hget(keys.lane_load(lane), "waiting")
        pipeline.zrange(keys.lane_ready(lane), 0, -1)
        pipeline.zrange(keys.lane_inflight(lane), 0, -1, withscores=True)
        pipeline.llen(keys.lane_messages(lane))
        pipeline.hget(keys.lane_shares(lane), "moved")
    pipeline.time()
    pipeline.info("memory")
    pipeline.hget(keys.store_reserved(), "total")
    pipeline.zrange(keys.store_reserved_until(), 0, _MOST_JOBS - 1)
    answers = pipeline.execute()
    (seconds, micros), memory, reserved, holders = answers[-4:]
    raw = [
        # The count of an empty list is healed by its next request, so it is not believed until then.
        _Raw(
            requests,
            int(tokens or 0) if requests else 0,
            _read_turns(redis, lane, tenants),
            flight,
            messages,
            float(moved or 0),
        )
        for lane, (requests, tokens, tenants, flight, messages, moved) in zip(
            lanes, zip(*[iter(answers[:-4])] * 6, strict=True), strict=True
        )
    ]
    return raw, (seconds + micros / 1e6, memory, reserved, holders)


def _read_turns(redis: Redis, lane: Lane, tenants: Sequence[bytes]) -> list[bytes]:
    """Return the jobs of these tenants that have a turn in a bulk lane."""
    pipeline = redis.pipeline(transaction=False)
    for tenant in tenants:
        pipeline.zrange(keys.lane_turns(lane, tenant.decode()), 0, _MOST_JOBS - 1)
    return [job for jobs in pipeline.execute() for job in jobs][:_MOST_JOBS]


def _read_counts(redis: Redis) -> tuple[int, Mapping[str, int], Mapping[str, int]]:
    pipeline = redis.pipeline(transaction=False)
    pipeline.zrange(keys.webhook_tenants(), 0, -1)
    pipeline.hgetall(keys.cache_lookups())
    pipeline.hgetall(keys.job_totals())
    tenants, *tables = pipeline.execute()
    lookups, totals = ({name.decode(): int(count) for name, count in table.items()} for table in tables)
    for tenant in tenants:
        pipeline.zcard(keys.webhooks_due(tenant.decode()))
    return sum(pipeline.execute()), lookups, totals


def _job_ids(raw: Iterable[_Raw], holders: Iterable[bytes]) -> list[str]:
    """Return the jobs that have not ended: they wait, are in flight, or hold a reservation for their results."""
    found = set(holders)
    for part in raw:
        found.update(part.ready, (entry.rpartition(b":")[0] for entry, _ in part.in_flight))
    return [job_id.decode() for job_id in found][:_MOST_JOBS]


def _read_jobs(redis: Redis, job_ids: Sequence[str]) -> list[tuple[str, str, int]]:
    """Return lane, state and waiting tokens of the jobs that still exist."""
    found = []
    for first in range(0, len(job_ids), _PER_TRIP):
        pipeline = redis.pipeline(transaction=False)
        for job_id in job_ids[first : first + _PER_TRIP]:
            pipeline.hmget(keys.job(job_id), ["lane", "state", "estimated_tokens", "done_estimate"])
        for lane, state, estimate, done in pipeline.execute():
            if state is not None:
                found.append((lane.decode(), state.decode(), max(0, int(estimate) - int(done or 0))))
    return found


def _describe(redis: Redis, lane: Lane, raw: _Raw, backlog: int, now_s: float) -> LaneStatistics:
    pipeline = redis.pipeline(transaction=False)
    for entry, _ in raw.in_flight:
        job_id, _, number = entry.decode().rpartition(":")
        pipeline.hget(keys.job_chunks(job_id), number)
    chunks = [orjson.loads(line) if line else {} for line in pipeline.execute()] if raw.in_flight else []
    return LaneStatistics(
        lane=lane,
        requests=raw.requests,
        tokens=raw.tokens + backlog,
        jobs_ready=len(raw.ready),
        tickets=sum(chunk.get("state") == "ticket" for chunk in chunks),
        claims=sum(chunk.get("state") == "claimed" for chunk in chunks),
        messages=raw.messages,
        stalled_s=max(0.0, now_s - raw.moved_ms / 1000) if raw.ready else 0.0,
    )
