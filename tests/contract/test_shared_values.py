"""Equal texts in chunks of one job, in two workers with an engine each: looked up chunk by chunk."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from redis import Redis

from config.settings import Settings
from tasks.cache.caching_engine import CachingEngine
from tasks.cache.values import ContentCache, job_scope
from tasks.engine import Work
from tasks.errors import EngineClosed
from tests.support.fakes import GatedBackend, fake_model
from tests.support.job_maker import assert_expiry
from workers.engine.device import DeviceEngine
from workers.models.loaded import LoadedModel

JOB = job_scope("job_x")


class Worker:
    """One worker's engine; its device waits for the gate."""

    def __init__(self, settings: Settings, cache: ContentCache) -> None:
        self.model: LoadedModel = fake_model(gated=True)
        assert isinstance(self.model.backend, GatedBackend)
        self.backend = self.model.backend
        self.engine = CachingEngine(
            DeviceEngine(settings, {"fake": self.model}), {"fake": self.model.fingerprint}, cache
        )

    @property
    def rows(self) -> int:
        return sum(map(len, self.backend.passes))

    def close(self) -> None:
        self.backend.gate.set()
        self.engine.close()


@pytest.fixture
def workers(redis: Redis, settings: Settings) -> Iterator[tuple[Worker, Worker]]:
    with ExitStack() as stack:
        pair = Worker(settings, ContentCache(redis, settings)), Worker(settings, ContentCache(redis, settings))
        for worker in pair:
            stack.callback(worker.close)
        yield pair


def work(*texts: str) -> Work:
    return Work("fake", "embeddings", texts, reuse=JOB)


def test_a_chunk_takes_what_an_earlier_one_computed_and_its_own_equal_texts_once(
    workers: tuple[Worker, Worker], redis: Redis
) -> None:
    one, two = workers
    one.backend.gate.set()
    two.backend.gate.set()
    before = one.engine.submit(work("a", "b", "c", "a")).result(20)
    after = two.engine.submit(work("c", "d", "a", "d")).result(20)
    assert (one.rows, two.rows) == (3, 1)
    assert (before.cached, after.cached) == (1, 3)
    np.testing.assert_array_equal(after.values[[0, 2]], before.values[[2, 0]])
    np.testing.assert_array_equal(after.values[1], after.values[3])
    plain = one.engine.submit(Work("fake", "embeddings", ["c", "d", "a", "d"])).result(20)
    np.testing.assert_array_equal(after.values, plain.values)
    np.testing.assert_array_equal(after.tokens, plain.tokens)
    assert_expiry(redis)


def test_two_chunks_at_the_same_moment_wait_for_nobody_and_agree(workers: tuple[Worker, Worker]) -> None:
    one, two = workers
    held, free = one.engine.submit(work("a", "b")), two.engine.submit(work("b", "c"))
    two.backend.gate.set()
    first = free.result(20)
    assert not held.done()
    one.backend.gate.set()
    second = held.result(20)
    assert (one.rows, two.rows) == (2, 2)
    np.testing.assert_array_equal(first.values[0], second.values[1])


def test_a_chunk_that_is_cancelled_or_outlives_its_worker_ends(redis: Redis, settings: Settings) -> None:
    worker = Worker(settings, ContentCache(redis, settings))
    blocked = worker.engine.submit(work("a"))
    assert worker.backend.entered.wait(20)
    waiting, cancelled = (worker.engine.submit(work(text)) for text in "bc")
    assert cancelled.cancel()
    closing = threading.Thread(target=worker.engine.close)
    closing.start()
    with pytest.raises(EngineClosed):
        waiting.result(20)
    worker.backend.gate.set()
    blocked.result(20)
    closing.join(20)
