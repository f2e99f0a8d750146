"""Which worker holds which chunks, and until when.

Owns the reading of claims by worker, for operators. Claims themselves are made and ended by `tasks.jobs.leases`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import orjson
from redis import Redis

from tasks import keys
from tasks.lanes import Lane, Service

__all__ = ["Holding", "read_holdings"]


@dataclass(frozen=True, slots=True)
class Holding:
    """One chunk that a worker holds.

    Attributes:
        job_id, chunk: which one.
        attempt: 1 for the first claim of the chunk.
        held_s: for how long it has been held.
        left_s: in how many seconds it is taken back, if the worker shows no progress; negative: it is overdue.
    """

    job_id: str
    chunk: int
    attempt: int
    held_s: float
    left_s: float


def read_holdings(redis: Redis, models: Iterable[str]) -> Mapping[str, list[Holding]]:
    """Return the chunks of the models (slugs) that are claimed, by worker ID.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    pipeline = redis.pipeline(transaction=False)
    for model in models:
        pipeline.zrange(keys.lane_inflight(Lane(model, Service.BULK)), 0, -1, withscores=True)
    pipeline.time()
    *lanes, (seconds, micros) = pipeline.execute()
    now_s = seconds + micros / 1e6
    entries = [(*_split(entry), until_ms / 1000) for lane in lanes for entry, until_ms in lane]
    for job_id, number, _ in entries:
        pipeline.hget(keys.job_chunks(job_id), number)
    lines = pipeline.execute() if entries else []
    found: dict[str, list[Holding]] = {}
    for (job_id, number, until_s), line in zip(entries, lines, strict=True):
        chunk = orjson.loads(line) if line else {}
        if chunk.get("state") == "claimed" and "worker" in chunk:
            # The fence is the time of the claim in milliseconds, see `claim.lua`.
            held_s = max(0.0, now_s - chunk["fence"] / 1000)
            holding = Holding(job_id, int(number), chunk.get("attempts", 1), held_s, until_s - now_s)
            found.setdefault(chunk["worker"], []).append(holding)
    return found


def _split(entry: bytes) -> tuple[str, str]:
    job_id, _, number = entry.decode().rpartition(":")
    return job_id, number
