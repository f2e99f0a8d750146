"""Results of chunks that Redis refuses for good: the chunk is given up after its attempts, with the reason."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from redis import Redis

from config.settings import Settings
from tasks.bulk import chunk_task
from tasks.celery import app
from tasks.engine import Outcomes, Work
from tasks.jobs.blobs import Blobs, RedisBlobs
from tasks.jobs.claims import Claim
from tasks.jobs.job import Counts, JobState
from tasks.jobs.store import JobStore
from tests.support.bulk_worker import ThreadEngine, work
from tests.support.job_maker import audit, submit


@pytest.fixture
def small_values(redis: Redis) -> Iterator[None]:
    """Redis takes values of a megabyte at most."""
    before = redis.config_get("proto-max-bulk-len")
    redis.config_set("proto-max-bulk-len", 2**20)
    yield
    redis.config_set("proto-max-bulk-len", before["proto-max-bulk-len"])


class WideEngine(ThreadEngine):
    """Gives vectors of 1,024 numbers."""

    def submit(self, work: Work) -> Future[Outcomes]:
        self.computed.append(list(work.texts))
        size = len(work.texts)
        future: Future[Outcomes] = Future()
        future.set_result(Outcomes(np.zeros((size, 1024), np.float32), np.ones(size, np.int32), np.zeros(size, bool)))
        return future


def test_a_chunk_whose_result_redis_can_never_take_ends_with_an_error_and_its_neighbours_succeed(
    store: JobStore, blobs: Blobs, worker: Redis, small_values: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_task, "_BUSY_DELAY_S", 0.0)
    app.twolane = replace(app.twolane, engine=(engine := WideEngine()), dimensions={"fake": 1024})
    job = submit(store, blobs, ["a text"] * 300, chunk_items=290)
    work(store)
    ended = audit(store, blobs, job.id)
    assert (ended.state, ended.counts) == (JobState.SUCCEEDED, Counts(300, 10, 290))
    assert "proto-max-bulk-len" in (ended.error or "")
    # In one go, and then item by item each time: the settings' three attempts, and not ten times as many.
    attempts = sum(texts == 1 for texts in map(len, engine.computed)) / 290
    assert attempts == store.settings.max_attempts - 1


def test_a_result_that_is_refused_again_and_again_is_given_up_and_can_be_retried(
    store: JobStore,
    blobs: Blobs,
    worker: Redis,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunk_task, "_BUSY_DELAY_S", 0.0)
    job = submit(store, blobs, ["a text"] * 2)
    # Something else lies where the result of the chunk goes.
    refused = {"left": settings.max_attempts}

    def stage_result(claim: Claim, frame: bytes) -> str:
        if refused["left"]:
            refused["left"] -= 1
            store.redis.lpush("twolane:a-list", "x")
            store.redis.get("twolane:a-list")
        return RedisBlobs.stage_result(blobs, claim, frame)

    monkeypatch.setattr(blobs, "stage_result", stage_result)
    work(store)
    store.redis.delete("twolane:a-list")
    ended = audit(store, blobs, job.id)
    assert (ended.state, ended.counts) == (JobState.FAILED, Counts(2, 0, 2))
    assert "holds something else" in (ended.error or "")
    # A retry is a fresh start.
    store.retry_failed(job.id)
    work(store)
    assert audit(store, blobs, job.id).counts == Counts(2, 2, 0)
