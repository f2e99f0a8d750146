"""Values that were computed before, on a real server and with a real engine that shows what it computes."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.cache.caching_engine import CachingEngine
from tasks.cache.values import CachedValue, ContentCache, digest_items, job_scope, tenant_scope
from tasks.connections import connect
from tasks.engine import JobParams, Work
from tasks.errors import EngineClosed, NoWorker
from tests.support.fakes import GatedBackend, fake_model
from tests.support.job_maker import assert_expiry
from workers.engine.device import DeviceEngine
from workers.models.loaded import LoadedModel

A, B = tenant_scope("a"), tenant_scope("b")


@pytest.fixture
def cache(redis: Redis, settings: Settings) -> ContentCache:
    return ContentCache(redis, settings)


@pytest.fixture
def model() -> LoadedModel:
    return fake_model(gated=True)


@pytest.fixture
def backend(model: LoadedModel) -> GatedBackend:
    assert isinstance(model.backend, GatedBackend)
    model.backend.gate.set()
    return model.backend


@pytest.fixture
def engine(
    settings: Settings, model: LoadedModel, backend: GatedBackend, cache: ContentCache
) -> Iterator[CachingEngine]:
    reusing = CachingEngine(DeviceEngine(settings, {"fake": model}), {"fake": model.fingerprint}, cache)
    yield reusing
    backend.gate.set()
    reusing.close()


def entry(*values: float, tokens: int = 3, truncated: bool = False) -> CachedValue:
    return CachedValue(np.array(values, np.float32), tokens, truncated)


def work(texts: Sequence[str], reuse: str = A, **fields: Any) -> Work:
    return Work("fake", "embeddings", texts, reuse=reuse, params=JobParams(**fields))


def rows(backend: GatedBackend) -> int:
    return sum(map(len, backend.passes))


# -- the cache


def test_what_is_kept_comes_back_bit_for_bit_and_only_in_its_scope(cache: ContentCache, redis: Redis) -> None:
    kept = {b"one": entry(0.1, -2.5, tokens=7, truncated=True), b"two": entry(1e-38, 3.0)}
    cache.keep(A, kept)
    found = cache.find(A, [b"two", b"three", b"one"])
    assert {digest: one.pack() for digest, one in found.items()} == {d: one.pack() for d, one in kept.items()}
    assert found[b"one"].truncated
    assert cache.find(B, [b"one", b"two"]) == {}
    assert_expiry(redis)


def test_more_entries_than_one_call_takes_are_kept_and_found(cache: ContentCache) -> None:
    digests = [b"%d" % number for number in range(1234)]
    cache.keep(A, {digest: entry(float(digest)) for digest in digests})
    found = cache.find(A, digests)
    assert [found[digest].value[0] for digest in digests] == list(range(1234))


def test_the_oldest_make_room_and_the_bytes_are_counted_exactly(redis: Redis, settings: Settings) -> None:
    size = len(entry(1.0).pack()) + 200
    cache = ContentCache(redis, settings.model_copy(update={"cache_max_bytes": 10 * size}))
    for number in range(25):
        cache.keep(A, {b"%02d" % number: entry(float(number))})
    found = cache.find(A, [b"%02d" % number for number in range(25)])
    assert sorted(found) == [b"%02d" % number for number in range(15, 25)]
    assert int(redis.get(keys.cache_bytes(A)) or 0) == 10 * size  # type: ignore[arg-type]
    assert redis.hlen(keys.cache_values(A)) == redis.zcard(keys.cache_times(A)) == 10


def test_an_entry_is_not_found_after_its_time_and_leaves_with_the_next_one(
    cache: ContentCache, redis: Redis, settings: Settings
) -> None:
    cache.keep(A, {b"old": entry(1.0), b"new": entry(2.0)})
    age_ms = int(settings.cache_ttl_s * 1000) + 5
    redis.zincrby(keys.cache_times(A), -age_ms, "old")
    assert list(cache.find(A, [b"old", b"new"])) == [b"new"]
    cache.keep(A, {b"next": entry(3.0)})
    assert redis.hkeys(keys.cache_values(A)) == [b"new", b"next"]


def test_values_of_a_job_do_not_stay_as_long_as_those_of_a_tenant(cache: ContentCache, redis: Redis) -> None:
    cache.keep(job_scope("job_x"), {b"one": entry(1.0)})
    assert 0 < redis.pttl(keys.cache_values(job_scope("job_x"))) <= 600_000  # type: ignore[operator]


def test_items_are_the_same_only_if_everything_that_makes_their_value_is() -> None:
    plain = work(["a"])
    others = [
        work(["b"]), work(["a"], instruction="x"), work(["a"], dimensions=3), work(["a"], truncate="start"),
        Work("fake", "rerank", ["a"], queries=[""]), Work("fake", "rerank", [""], queries=["a"]),
    ]  # fmt: skip
    digests = [digest_items(one, "f")[0] for one in (plain, *others)] + [digest_items(plain, "g")[0]]
    assert len(set(digests)) == len(digests)
    assert digest_items(work(["a"], reuse=B), "f") == digest_items(plain, "f")


# -- the engine in front of it


def test_only_what_was_not_computed_before_is_computed(engine: CachingEngine, backend: GatedBackend) -> None:
    first = engine.submit(work(["a", "b"])).result(10)
    second = engine.submit(work(["b", "c", "a", "c"])).result(10)
    assert (first.cached, second.cached) == (0, 3)
    assert rows(backend) == 3
    plain = engine.submit(work(["b", "c", "a", "c"], reuse="")).result(10)
    assert plain.cached is None
    assert rows(backend) == 6
    np.testing.assert_array_equal(second.values, plain.values)
    np.testing.assert_array_equal(second.tokens, plain.tokens)
    np.testing.assert_array_equal(second.truncated, plain.truncated)


def test_work_that_was_all_computed_before_never_reaches_the_device(
    engine: CachingEngine, backend: GatedBackend
) -> None:
    first = engine.submit(work(["a long text " * 50, "b"])).result(10)
    backend.gate.clear()
    again = engine.submit(work(["a long text " * 50, "b"])).result(10)
    assert again.cached == 2
    assert again.truncated.tolist() == [True, False]
    np.testing.assert_array_equal(again.values, first.values)


def test_scores_are_taken_over_like_vectors(engine: CachingEngine, backend: GatedBackend) -> None:
    pairs = Work("fake", "rerank", ["x", "y"], queries=["q", "q"], reuse=A)
    first, again = (engine.submit(pairs).result(10) for _ in range(2))
    assert again.cached == 2
    assert again.values.shape == (2,)
    np.testing.assert_array_equal(again.values, first.values)
    other = Work("fake", "rerank", ["x", "y"], queries=["q", "r"], reuse=A)
    assert engine.submit(other).result(10).cached == 1


def test_one_scope_sees_nothing_of_another(engine: CachingEngine, backend: GatedBackend) -> None:
    engine.submit(work(["a"])).result(10)
    assert engine.submit(work(["a"], reuse=B)).result(10).cached == 0
    assert rows(backend) == 2


def test_an_item_that_failed_is_not_kept(engine: CachingEngine, backend: GatedBackend) -> None:
    long = "word " * 500
    for _ in range(2):
        outcomes = engine.submit(work([long, "short", long], truncate="none")).result(10)
        assert sorted(outcomes.errors) == [0, 2]
    assert outcomes.cached == 1


def test_a_cache_that_does_not_answer_is_done_without(
    settings: Settings, model: LoadedModel, backend: GatedBackend
) -> None:
    nobody = ContentCache(connect("redis://127.0.0.1:1/0", name="test-cache"), settings)
    engine = CachingEngine(DeviceEngine(settings, {"fake": model}), {"fake": model.fingerprint}, nobody)
    try:
        assert [engine.submit(work(["a"])).result(10).cached for _ in range(2)] == [0, 0]
    finally:
        engine.close()


def test_errors_and_cancellation_pass_through(engine: CachingEngine, backend: GatedBackend) -> None:
    with pytest.raises(NoWorker):
        engine.submit(Work("other", "embeddings", ["a"], reuse=A))
    backend.gate.clear()
    running = engine.submit(work(["a"]))
    assert backend.entered.wait(10)
    waiting = engine.submit(work(["b"]))
    assert waiting.cancel()
    backend.gate.set()
    assert running.result(10).cached == 0
    assert engine.submit(work(["c"])).result(10).cached == 0
    assert rows(backend) == 2


def test_work_that_waits_when_the_engine_closes_ends(engine: CachingEngine, backend: GatedBackend) -> None:
    backend.gate.clear()
    running = engine.submit(work(["a"]))
    assert backend.entered.wait(10)
    waiting = engine.submit(work(["b"]))
    opener = threading.Timer(0.1, backend.gate.set)
    opener.start()
    engine.close()
    opener.join()
    assert running.done()
    with pytest.raises(EngineClosed):
        waiting.result(10)
