"""Where inputs and results lie, on a real server and in real files, and that nothing is left behind."""

import errno
from pathlib import Path

import pytest
from redis import Redis

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks import keys
from tasks.bulk import chunk_task
from tasks.errors import ConfigError, StoreRefused, StoreUnavailable
from tasks.jobs.blobs import Blobs, open_blobs
from tasks.jobs.claims import IN_REDIS
from tasks.jobs.job import ChunkInput, JobState
from tasks.jobs.store import JobStore
from tasks.storage.filesystem import storage_errors
from tests.support.job_maker import LANE, assert_expiry, audit, begin, make_completion, submit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def settings(settings: Settings, folder: Path) -> Settings:
    return settings.model_copy(update={"results_url": f"file://{folder}", "results_inline_bytes": 100})


def compute(store: JobStore, blobs: Blobs) -> None:
    for ticket in store.leases.dispatch(LANE):
        claim = store.leases.claim(ticket.job_id, ticket.chunk, "w")
        completion = make_completion(claim)
        store.leases.complete(claim, completion, blobs.stage_result(claim, completion.frame))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_an_input_comes_back_as_it_was(blobs: Blobs) -> None:
    items = ChunkInput(["a", "ü\n\x00😀", ""], None, ["1", None, ""])
    assert blobs.put_input("job_x", 3, items) > 0
    assert blobs.get_input("job_x", 3) == items
    assert blobs.get_input("job_x", 4) is None


def test_texts_are_kept_at_a_fraction_of_their_size(blobs: Blobs) -> None:
    texts = [f"Passage {number} of a corpus of plain English sentences, as they come." for number in range(256)]
    assert blobs.put_input("job_x", 0, ChunkInput(texts)) < sum(map(len, texts)) / 3


def test_results_of_a_large_job_lie_in_files_and_redis_keeps_pointers(
    store: JobStore, blobs: Blobs, folder: Path
) -> None:
    job = submit(store, blobs, ["x"] * 4, result_bytes=101)
    assert store.redis.hget(keys.store_reserved(), job.id) is None
    compute(store, blobs)
    audit(store, blobs, job.id)
    pointers = [chunk.pointer for chunk in store.chunk_table(job.id)]
    owner = (store.redis.get(keys.store_identity()) or b"").decode()
    assert all(pointer.startswith(f"file://{folder}/{owner}/{job.id}/") for pointer in pointers)
    assert store.redis.keys("*result*") == []
    assert len(files(folder)) == 2
    blobs.delete(job.id, store.delete(job.id).chunks)
    assert files(folder) == []


def test_results_of_a_small_job_stay_in_redis(store: JobStore, blobs: Blobs, folder: Path) -> None:
    job = submit(store, blobs, ["x"] * 4, result_bytes=100)
    compute(store, blobs)
    audit(store, blobs, job.id)
    assert [chunk.pointer for chunk in store.chunk_table(job.id)] == [IN_REDIS, IN_REDIS]
    assert not folder.exists()


def test_a_late_result_does_not_touch_the_one_that_was_counted(store: JobStore, blobs: Blobs, folder: Path) -> None:
    job, claim = begin(store, blobs, ["x"] * 2, result_bytes=101)
    staged = blobs.stage_result(claim, b"late")
    store.leases.fail(claim, "ValueError")
    store.leases.dispatch(LANE)
    winner = store.leases.claim(job.id, 0, "v")
    completion = make_completion(winner)
    store.leases.complete(winner, completion, blobs.stage_result(winner, completion.frame))
    store.leases.complete(claim, make_completion(claim), staged)
    blobs.discard(staged)
    blobs.discard(IN_REDIS)
    assert blobs.get_result(job.id, 0, staged) is None
    audit(store, blobs, job.id)
    assert len(files(folder)) == 1


def test_the_files_of_a_job_that_expired_are_swept(store: JobStore, blobs: Blobs, folder: Path) -> None:
    kept, gone = (submit(store, blobs, ["x"] * 2, result_bytes=101) for _ in range(2))
    compute(store, blobs)
    store.redis.delete(keys.job(gone.id))
    chunk_task.reap(store.leases, LANE)
    assert sorted(path.name for path in folder.glob("*/*")) == sorted([kept.id, gone.id])
    store.redis.zincrby(keys.store_orphans(), -3600, gone.id)
    blobs.sweep(store.exists)
    assert [path.name for path in folder.glob("*/*")] == [kept.id]
    audit(store, blobs, kept.id)


def test_a_second_stack_with_another_redis_takes_no_result_of_the_first(
    store: JobStore, blobs: Blobs, folder: Path, settings: Settings, tmp_path: Path
) -> None:
    job = submit(store, blobs, ["x"] * 2, result_bytes=101)
    compute(store, blobs)
    with EmbeddedServer(tmp_path / "other") as server, Redis.from_url(server.url) as other:
        swept = open_blobs(other, settings.model_copy(update={"redis_url": server.url}))
        for _ in range(2):
            swept.sweep(lambda _: False)
            other.zadd(keys.store_orphans(), {job.id: 1}, xx=True)
    audit(store, blobs, job.id)
    assert [path.name for path in folder.glob("*/*")] == [job.id]


def test_a_job_that_redis_has_again_keeps_its_files(store: JobStore, blobs: Blobs, folder: Path) -> None:
    """A failover, or a backup that is restored."""
    job = submit(store, blobs, ["x"] * 2, result_bytes=101)
    compute(store, blobs)
    blobs.sweep(lambda _: False)
    blobs.sweep(store.exists)
    assert store.redis.exists(keys.store_orphans()) == 0
    audit(store, blobs, job.id)


def test_an_upload_that_broke_off_is_swept_and_one_that_goes_on_is_not(
    store: JobStore, blobs: Blobs, redis: Redis
) -> None:
    for chunk in range(3):
        blobs.put_input("job_broken", chunk, ChunkInput(["x"]))
        blobs.put_input("job_going_on", chunk, ChunkInput(["x"]))
    assert_expiry(redis)
    redis.zadd(keys.store_uploads(), {"job_broken": 1})
    blobs.sweep(store.exists)
    assert redis.keys("*job_broken*") == []
    assert len(redis.keys("*job_going_on*")) == 3
    job = submit(store, blobs, ["x"] * 6, id="job_going_on")
    assert redis.zcard(keys.store_uploads()) == 0
    compute(store, blobs)
    assert audit(store, blobs, job.id).state is JobState.SUCCEEDED


def test_a_sweep_never_takes_the_texts_of_a_job(store: JobStore, blobs: Blobs, redis: Redis) -> None:
    job = submit(store, blobs, ["x"] * 6)
    redis.zadd(keys.store_uploads(), {job.id: 1})
    blobs.sweep(store.exists)
    assert blobs.get_input(job.id, 2) is not None


def test_reaping_sweeps_once_in_a_while(store: JobStore, blobs: Blobs, redis: Redis) -> None:
    for expected in (0, 1):
        blobs.put_input("job_broken", 0, ChunkInput(["x"]))
        redis.zadd(keys.store_uploads(), {"job_broken": 1})
        chunk_task.reap(store.leases, LANE)
        assert redis.exists(keys.job_input("job_broken", 0)) == expected
    assert_expiry(redis)


def test_a_results_url_that_nobody_can_read_stops_the_process(redis: Redis, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="TWOLANE_RESULTS_URL"):
        open_blobs(redis, settings.model_copy(update={"results_url": "nosuchscheme://x/y"}))


def test_a_pointer_into_files_without_a_results_url_is_a_mistake_of_the_operator(
    redis: Redis, settings: Settings
) -> None:
    with pytest.raises(ConfigError):
        open_blobs(redis, settings.model_copy(update={"results_url": ""})).get_result("job_x", 0, "file:///x")


def test_a_folder_that_may_not_be_written_is_a_refusal_and_not_an_absence() -> None:
    with pytest.raises(StoreRefused, match="Read-only"), storage_errors():
        raise OSError(errno.EROFS, "not in these words")
    with pytest.raises(StoreUnavailable) as away, storage_errors():
        raise OSError(errno.EIO, "a broken cable")
    assert away.type is StoreUnavailable


def test_results_lie_in_object_storage_too(redis: Redis, settings: Settings) -> None:
    settings = settings.model_copy(update={"results_url": "memory://results"})
    store, blobs = JobStore(redis, settings), open_blobs(redis, settings)
    job = submit(store, blobs, ["x"] * 4, result_bytes=101)
    compute(store, blobs)
    audit(store, blobs, job.id)
    pointer = store.chunk_table(job.id)[0].pointer
    assert pointer.startswith("memory://")
    redis.delete(keys.job(job.id))
    blobs.sweep(store.exists)
    redis.zincrby(keys.store_orphans(), -3600, job.id)
    blobs.sweep(store.exists)
    assert blobs.get_result(job.id, 0, pointer) is None
