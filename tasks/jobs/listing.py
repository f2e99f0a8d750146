"""Reads what there is of jobs: those of a tenant or of all, and what happened to one.

Owns the reading of lists and of the event log. Changes nothing but lists that name jobs which are gone.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import orjson
from redis import Redis

from tasks import keys
from tasks.errors import NotFound
from tasks.jobs.job import Job
from tasks.jobs.records import read_job

__all__ = ["JobListing"]

_PAGE = 100


class JobListing:
    """Lists of jobs. Thread-safe. All methods raise `redis.RedisError` when Redis does not answer.

    Args:
        redis: client without `decode_responses`.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def find(
        self,
        tenant: str | None,
        limit: int = 20,
        after: str | None = None,
        wanted: Callable[[Job], bool] = lambda _: True,
        most_read: int | None = None,
    ) -> Sequence[Job]:
        """Return jobs, newest first, beginning behind the job `after`.

        Args:
            tenant: whose; None: of all tenants.
            limit: how many at most.
            after: the last job of the page before.
            wanted: which jobs count.
            most_read: how many are looked at; None: as many as it takes.

        Raises:
            NotFound: there is no job `after`.
        """
        listed = keys.all_jobs() if tenant is None else keys.tenant_jobs(tenant)
        first = self._rank(listed, after)
        until = None if most_read is None else first + most_read
        found: list[Job] = []
        while len(found) < limit and (until is None or first < until):
            ids = cast("list[bytes]", self._redis.zrevrange(listed, first, first + _PAGE - 1))
            jobs = self.read([job_id.decode() for job_id in ids])
            gone = [job_id for job_id, job in zip(ids, jobs, strict=True) if job is None]
            if gone:
                self._redis.zrem(listed, *gone)
            found += [job for job in jobs if job is not None and wanted(job)]
            if len(ids) < _PAGE:
                break
            first += _PAGE - len(gone)
        return found[:limit]

    def read(self, job_ids: Sequence[str]) -> Sequence[Job | None]:
        """Return these jobs, None for each that is gone."""
        pipeline = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hgetall(keys.job(job_id))
        return [read_job(record) if record else None for record in pipeline.execute()]

    def tenants(self) -> dict[str, float]:
        """Return the tenants that have created jobs, with the time of the last one (seconds since the epoch)."""
        named = cast("list[tuple[bytes, float]]", self._redis.zrevrange(keys.all_tenants(), 0, -1, withscores=True))
        return {name.decode(): at_ms / 1000 for name, at_ms in named}

    def count_of(self, tenant: str) -> int:
        """Return how many jobs of the tenant are kept."""
        return self._redis.zcard(keys.tenant_jobs(tenant))

    def log(self, job_id: str) -> list[dict[str, Any]]:
        """Return what happened to a job, oldest first.

        Returns:
            Objects with `event`, `at` (seconds since the epoch) and, where they are known, `by` (tenant and name of a
            key), `request_id`, `chunk`, `worker`, `attempt`, `reason`, `items`, `chunks` and `failed`.
        """
        lines = cast("list[bytes]", self._redis.lrange(keys.job_log(job_id), 0, -1))
        events = [orjson.loads(line) for line in lines]
        return [{"at": event.pop("at_ms") / 1000, **event} for event in events]

    def _rank(self, listed: str, after: str | None) -> int:
        if after is None:
            return 0
        rank = cast("int | None", self._redis.zrevrank(listed, after))
        if rank is None:
            raise NotFound(f"there is no job {after!r}")
        return rank + 1
