"""How many items a tenant may have in the queue.

Owns the list of a limited tenant's unfinished jobs. It holds across web processes: a job is put on the list before it
is created, and only while nobody else changes the list. Jobs leave it when they have ended, which is seen when it is
read.
"""

from collections.abc import Collection, Mapping
from typing import Any

from redis import WatchError

from app.access.auth import Tenant
from tasks import keys
from tasks.errors import NotFound, RateLimited, StoreUnavailable, TooLarge
from tasks.jobs.store import JobStore

__all__ = ["release_queue", "reserve_queue"]

_TRIES = 20
_RETRY_AFTER_S = 10.0
# A job that is on the list and cannot be found is about to be created, or its process died: after this, it died.
_CREATION_MS = 60_000
_DAY_S = 86_400


def reserve_queue(store: JobStore, tenant: Tenant, items: Mapping[str, int]) -> None:
    """Put jobs that are about to be created on the list; a tenant without the limit has none.

    Args:
        store: where the jobs are.
        tenant: whose they are.
        items: how many items each has, by job id.

    Raises:
        RateLimited: with them, the tenant would have too many items in the queue.
        TooLarge: they are too many by themselves.
        StoreUnavailable: the list is changed by too many others at once.
    """
    most, wanted = tenant.max_queued_items, sum(items.values())
    if most is None:
        return
    if wanted > most:
        raise TooLarge(f"This job has {wanted} items; your key's limit is {most} queued items.")
    for _ in range(_TRIES):
        if _try_to_reserve(store, tenant, items, most):
            return
    raise StoreUnavailable("The queue limit cannot be checked now.")


def release_queue(store: JobStore, tenant: Tenant, job_ids: Collection[str]) -> None:
    """Take jobs that were not created after all off the list."""
    if tenant.max_queued_items is not None and job_ids:
        store.redis.hdel(keys.tenant_queued(tenant.name), *job_ids)


def _try_to_reserve(store: JobStore, tenant: Tenant, items: Mapping[str, int], most: int) -> bool:
    name = keys.tenant_queued(tenant.name)
    with store.redis.pipeline() as pipe:
        pipe.watch(name)  # type: ignore[no-untyped-call]  # redis-py has no annotation here
        known: Any = pipe.hgetall(name)
        seconds, micros = pipe.time()
        now_ms = int(seconds * 1000 + micros // 1000)
        waiting = {
            job_id: _count_waiting(store, tenant, job_id.decode(), line, now_ms) for job_id, line in known.items()
        }
        if sum(waiting.values()) + sum(items.values()) > most:
            message = f"Your key's limit is {most} queued items; {sum(waiting.values())} are waiting."
            raise RateLimited(message, retry_after_s=_RETRY_AFTER_S)
        pipe.multi()
        ended = [job_id for job_id, count in waiting.items() if count == 0]
        if ended:
            pipe.hdel(name, *ended)
        pipe.hset(name, mapping={job_id: f"{count} {now_ms}" for job_id, count in items.items()})
        pipe.expire(name, int(store.settings.job_ttl_s) + _DAY_S)
        try:
            pipe.execute()
        except WatchError:
            return False
    return True


def _count_waiting(store: JobStore, tenant: Tenant, job_id: str, line: bytes, now_ms: int) -> int:
    """Return how many items of a job on the list still wait; 0: it has ended."""
    count, reserved_ms = map(int, line.split())
    try:
        job = store.get(job_id, tenant.name)
    except NotFound:
        return count if now_ms - reserved_ms < _CREATION_MS else 0
    return 0 if job.ended else job.counts.total - job.counts.completed - job.counts.failed
