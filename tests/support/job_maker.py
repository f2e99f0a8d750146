"""Jobs for tests of Redis: made, worked on without Celery, and audited at the end."""

import base64
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import orjson
from redis import Redis

from tasks import frames, keys
from tasks.bulk.outcomes import pack_outcomes
from tasks.engine import Outcomes
from tasks.jobs.blobs import Blobs
from tasks.jobs.chunking import ChunkLimits, Item, cut_chunks
from tasks.jobs.claims import Claim, Completion
from tasks.jobs.job import Idempotency, Job, NewJob, new_job_id
from tasks.jobs.store import JobStore
from tasks.lanes import Lane, Service

__all__ = [
    "LANE",
    "assert_expiry",
    "audit",
    "begin",
    "lapse",
    "make_completion",
    "make_overdue",
    "outlive_restart_grace",
    "run_out",
    "submit",
    "take_messages",
    "work_off",
]

LANE = Lane("fake", Service.BULK)


def submit(
    store: JobStore,
    blobs: Blobs,
    texts: Sequence[str],
    *,
    chunk_items: int = 2,
    idempotency: Idempotency | None = None,
    **fields: Any,
) -> Job:
    """Store the texts and create a job of them, as the web tier does."""
    job_id = str(fields.pop("id", new_job_id()))
    chunks = []
    for record, items in cut_chunks([Item(text) for text in texts], ChunkLimits(chunk_items, 10**6, 10**6, 512)):
        blobs.put_input(job_id, record.index, items)
        chunks.append(record)
    described: dict[str, Any] = {"tenant": "default", "operation": "embeddings", "model": "fake", "lane": LANE}
    described |= {"total": len(texts), "estimated_tokens": sum(chunk.tokens for chunk in chunks)}
    job, _ = store.create(NewJob(id=job_id, **(described | fields)), chunks, idempotency)
    return job


def begin(store: JobStore, blobs: Blobs, texts: Sequence[str], **fields: Any) -> tuple[Job, Claim]:
    """Submit a job whose first chunk is claimed by the worker `w`."""
    job = submit(store, blobs, texts, **fields)
    store.leases.dispatch(LANE)
    return job, store.leases.claim(job.id, 0, "w")


def make_completion(claim: Claim, *, failed: int = 0) -> Completion:
    """The outcome of a claim whose first items failed; every vector is (start of the chunk, position)."""
    size = claim.items
    values = np.array([(claim.start, position) for position in range(size)], np.float32).reshape(size, 2)
    outcomes = Outcomes(values, np.full(size, 3, np.int32), np.zeros(size, np.bool_))
    frame = pack_outcomes(claim.start, None, outcomes)
    failures = {"item_failed": failed} if failed else {}
    return Completion(size - failed, failed, 0, 3 * size, frame, "item 0: bad" if failed else "", failures=failures)


def make_overdue(redis: Redis, job_id: str, chunk: int) -> None:
    """Let the time of a ticket or a claim run out, without waiting for it."""
    assert redis.zadd(keys.lane_inflight(LANE), {f"{job_id}:{chunk}": 1}, xx=True, ch=True) == 1


def outlive_restart_grace(store: JobStore) -> None:
    """Wait until the server runs long enough for claims to be reaped."""
    lease_s = store.settings.lease_s
    until_s = time.monotonic() + lease_s + 5
    while cast("dict[str, int]", store.redis.info("server"))["uptime_in_seconds"] < lease_s:
        assert time.monotonic() < until_s
        time.sleep(0.05)


def lapse(store: JobStore, job_id: str, chunk: int = 0) -> None:
    """Let the time of a ticket or a claim run out, and the reaper see it."""
    outlive_restart_grace(store)
    make_overdue(store.redis, job_id, chunk)
    store.leases.reap(LANE)


def take_messages(redis: Redis) -> list[str]:
    """Take all messages of the lane out of the broker: the argument of `run_chunk` of each."""
    found = []
    while message := cast("bytes | None", redis.rpop(keys.lane_messages(LANE))):
        (model,), _, _ = orjson.loads(base64.b64decode(orjson.loads(message)["body"]))
        found.append(model)
    return found


def run_out(store: JobStore) -> None:
    """Work until nothing has a turn any more."""
    while tickets := store.leases.dispatch(LANE):
        for ticket in tickets:
            claim = store.leases.claim(ticket.job_id, ticket.chunk, "w")
            store.leases.complete(claim, make_completion(claim))


def work_off(store: JobStore, chunks: int, tokens: int | None = None) -> list[str]:
    """Complete so many chunks in their turns, each of so many tokens or as was estimated; return their jobs."""
    served = []
    for _ in range(chunks):
        for ticket in store.leases.dispatch(LANE, 1):
            claim = store.leases.claim(ticket.job_id, ticket.chunk, "w")
            line = cast("bytes", store.redis.hget(keys.job_chunks(ticket.job_id), str(ticket.chunk)))
            spent = orjson.loads(line)["tokens"] if tokens is None else tokens
            store.leases.complete(claim, replace(make_completion(claim), tokens=spent))
            served.append(ticket.job_id)
    return served


def audit(store: JobStore, blobs: Blobs, job_id: str, tenant: str = "default") -> Job:
    """What must hold of an ended job: one outcome per item, exact counts, nothing held, every key with an expiry."""
    job, redis = store.get(job_id, tenant), store.redis
    assert job.ended
    seen: list[int] = []
    completed = failed = 0
    for chunk in store.chunk_table(job_id):
        assert chunk.state in ("done", "dropped")
        if chunk.state == "done":
            frame = blobs.get_result(job_id, chunk.index, chunk.pointer)
            assert frame is not None
            header, columns = frames.unpack(frame)
            assert len(columns["tokens"]) == header["items"] == chunk.items
            seen += range(header["start"], header["start"] + header["items"])
            completed, failed = completed + chunk.completed, failed + chunk.failed
    assert seen == sorted(set(seen))
    assert (job.counts.completed, job.counts.failed) == (completed, failed)
    if job.state in ("succeeded", "failed"):
        assert seen == list(range(job.counts.total))
        assert job.counts.completed + job.counts.failed == job.counts.total
    assert [entry for entry in redis.zrange(keys.lane_inflight(LANE), 0, -1) if job_id.encode() in entry] == []
    assert redis.zscore(keys.lane_turns(LANE, job.tenant), job_id) is None
    assert redis.hget(keys.store_reserved(), job_id) is None
    assert_expiry(redis)
    return job


def assert_expiry(redis: Redis) -> None:
    """Every key of ours has an expiry; the broker's own are Celery's business."""
    ours = [key for key in redis.scan_iter("*") if not key.startswith(keys.BROKER_PREFIX.encode())]
    assert [key for key in ours if redis.pttl(key) == -1] == []
