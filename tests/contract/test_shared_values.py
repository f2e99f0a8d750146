"""Equal texts in chunks of one job that run at the same moment, in two workers with an engine each."""

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.cache.caching_engine import ReusingEngine
from tasks.cache.store import ContentCache, digest_items, job_scope
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
        self.engine = ReusingEngine(DeviceEngine(settings, {"fake": self.model}), {"fake": "one print"}, cache)

    @property
    def rows(self) -> int:
        return sum(map(len, self.backend.passes))

    def close(self) -> None:
        self.backend.gate.set()
        self.engine.close()


@pytest.fixture
def patient(settings: Settings) -> Settings:
    return settings.model_copy(update={"lease_s": 60.0})


@pytest.fixture
def workers(redis: Redis, patient: Settings) -> Iterator[tuple[Worker, Worker]]:
    with ExitStack() as stack:
        pair = Worker(patient, ContentCache(redis, patient)), Worker(patient, ContentCache(redis, patient))
        for worker in pair:
            stack.callback(worker.close)
        yield pair


def work(*texts: str) -> Work:
    return Work("fake", "embeddings", texts, reuse=JOB)


def test_two_chunks_with_the_same_texts_compute_each_once(workers: tuple[Worker, Worker], redis: Redis) -> None:
    one, two = workers
    first = one.engine.submit(work("a", "b", "c", "a"))
    second = two.engine.submit(work("c", "d", "a", "d"))
    # The second goes on with what is its own, and both are held by their devices now.
    two.backend.gate.set()
    assert not second.done()
    one.backend.gate.set()
    before, after = first.result(20), second.result(20)
    assert (one.rows, two.rows) == (3, 1)
    assert (before.cached, after.cached) == (1, 3)
    np.testing.assert_array_equal(after.values[[0, 2]], before.values[[2, 0]])
    np.testing.assert_array_equal(after.values[1], after.values[3])
    plain = one.engine.submit(Work("fake", "embeddings", ["c", "d", "a", "d"])).result(20)
    np.testing.assert_array_equal(after.values, plain.values)
    np.testing.assert_array_equal(after.tokens, plain.tokens)
    assert redis.hlen(keys.cache_claims(JOB)) == 0
    assert_expiry(redis)


def test_two_chunks_that_wait_for_each_other_both_end(workers: tuple[Worker, Worker]) -> None:
    one, two = workers
    first = [one.engine.submit(work("a", "b")), two.engine.submit(work("c", "d"))]
    crossed = [one.engine.submit(work("c", "a", "e")), two.engine.submit(work("b", "d", "f"))]
    for worker in workers:
        worker.backend.gate.set()
    assert sum(future.result(20).cached or 0 for future in (*first, *crossed)) == 4
    assert one.rows + two.rows == 6


def test_texts_whose_owner_gave_up_are_computed_by_who_waits(workers: tuple[Worker, Worker]) -> None:
    one, two = workers
    two.backend.gate.set()
    blocked, first = one.engine.submit(work("z")), one.engine.submit(work("a", "b"))
    second = two.engine.submit(work("b", "c"))
    assert first.cancel()
    one.backend.gate.set()
    blocked.result(20)
    assert second.result(20).cached == 0
    assert two.rows == 2


def test_nobody_waits_for_a_dead_owner_for_ever(redis: Redis, settings: Settings) -> None:
    hasty = settings.model_copy(update={"lease_s": 0.4})
    worker = Worker(hasty, ContentCache(redis, hasty))
    try:
        worker.backend.gate.set()
        ContentCache(redis, settings).claim(JOB, digest_items(work("a"), "one print"), "a dead one")
        assert worker.engine.submit(work("a", "b")).result(20).values.shape[0] == 2
        assert worker.rows == 2
    finally:
        worker.close()


def test_who_waits_when_the_worker_ends_is_told(redis: Redis, patient: Settings) -> None:
    cache = ContentCache(redis, patient)
    worker = Worker(patient, cache)
    cache.claim(JOB, digest_items(work("a"), "one print"), "another")
    waiting = worker.engine.submit(work("a"))
    cancelled = worker.engine.submit(work("a"))
    assert cancelled.cancel()
    worker.close()
    with pytest.raises(EngineClosed):
        waiting.result(20)


def test_a_claim_may_be_repeated_and_only_its_owner_gives_it_back(redis: Redis, settings: Settings) -> None:
    cache = ContentCache(redis, settings)
    for _ in range(2):
        assert cache.claim(JOB, [b"x", b"y"], "one").busy == frozenset()
    assert cache.claim(JOB, [b"x", b"z"], "two").busy == {b"x"}
    cache.release(JOB, [b"x", b"z"], "other")
    assert cache.claim(JOB, [b"x"], "two").busy == {b"x"}
    for _ in range(2):
        cache.release(JOB, [b"x", b"y"], "one")
    assert cache.claim(JOB, [b"x"], "two").busy == frozenset()
    assert_expiry(redis)
