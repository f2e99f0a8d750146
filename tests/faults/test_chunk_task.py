"""Chunks as a worker runs them: the task's own code, the real broker and store, an engine in this process.

A worker's death is an exception that nothing in the product catches: what follows it does not run, as after kill -9.
"""

import threading
import time
from concurrent.futures import Future
from dataclasses import replace

import pytest
from redis import Redis

from config.settings import Settings
from tasks import frames, keys
from tasks.bulk import chunk_task
from tasks.bulk.chunk_task import WorkerContext, publish_messages, run_chunk
from tasks.bulk.device_sharing import DeviceProgress, ProgressWatch
from tasks.bulk.turns_watch import TurnsWatch
from tasks.celery import app, publisher
from tasks.connections import connect
from tasks.engine import Outcomes, Work
from tasks.errors import EngineClosed, ModelNotFound
from tasks.jobs.blobs import Blobs
from tasks.jobs.claims import ClaimCode
from tasks.jobs.job import Counts, JobState
from tasks.jobs.leases import Leases
from tasks.jobs.store import JobStore
from tests.support.bulk_worker import ThreadEngine, results, work
from tests.support.fakes import fake_model
from tests.support.job_maker import (
    LANE,
    audit,
    make_completion,
    make_overdue,
    submit,
    take_messages,
)
from tests.support.polling import wait_until
from workers.engine import DeviceEngine


def test_a_chunk_whose_model_is_swapped_under_it_goes_back_without_an_attempt_and_waits_for_the_old_one(
    store: JobStore, blobs: Blobs, worker: Redis, settings: Settings
) -> None:
    job = submit(store, blobs, ["a text"] * 4, chunk_items=2)
    begun = Leases(store.redis, settings, {"fake": "fake:before"})
    begun.dispatch(LANE, 1)
    done = begun.claim(job.id, 0, "worker")
    begun.complete(done, make_completion(done))
    with DeviceEngine(settings, {"fake": fake_model()}) as swapped:
        # It claims by the model that it had, and the engine has the next one when the texts come.
        app.twolane = replace(app.twolane, leases=begun, engine=swapped)
        run_chunk("fake")
    chunk = store.chunk_table(job.id)[1]
    assert chunk.attempts == 0
    after = Leases(store.redis, settings, {"fake": "fake:test"})
    assert after.claim(job.id, 1, "worker").code is ClaimCode.MISFIT
    assert store.get(job.id).waits_for_model
    assert store.get(job.id).fingerprint == "fake:before"


def test_a_message_for_a_model_that_was_unloaded_meanwhile_is_passed_on(
    store: JobStore, blobs: Blobs, worker: Redis, engine: ThreadEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_task, "_BUSY_DELAY_S", 0.0)
    job = submit(store, blobs, ["a text"] * 2)
    app.twolane = replace(app.twolane, serves=lambda _: False)
    run_chunk("fake")
    assert (take_messages(store.redis), engine.computed) == (["fake"], [])
    app.twolane = replace(app.twolane, serves=lambda slug: slug == "fake")
    run_chunk("fake")
    assert store.get(job.id).state is JobState.SUCCEEDED


def test_a_job_is_computed_in_order_and_every_ticket_delivered_three_times_counts_once(
    store: JobStore, blobs: Blobs, worker: Redis, engine: ThreadEngine
) -> None:
    texts = ["x" * (number % 7 + 1) for number in range(101)]
    job = submit(store, blobs, texts, chunk_items=4)
    work(store, times=3)
    ended = audit(store, blobs, job.id)
    assert (ended.state, ended.counts, ended.chunks_done) == (JobState.SUCCEEDED, Counts(101, 101), 26)
    assert ended.tokens == sum(map(len, texts))
    assert results(store, blobs, job.id) == ([float(len(text)) for text in texts], {})
    assert len(engine.computed) == 26


@pytest.mark.parametrize(("chunk_items", "bad"), [(8, 11), (1024, 701)], ids=["singly", "in groups"])
def test_a_text_that_ends_its_worker_is_found_in_three_crashes_and_its_neighbours_succeed(
    store: JobStore, blobs: Blobs, worker: Redis, engine: ThreadEngine, chunk_items: int, bad: int
) -> None:
    size = 2 * chunk_items
    texts = [f"text {number}" for number in range(size)]
    texts[bad] = "die now"
    job = submit(store, blobs, texts, chunk_items=chunk_items)
    work(store)
    assert engine.deaths == 3
    assert audit(store, blobs, job.id).counts == Counts(size, size - 1, 1)
    values, errors = results(store, blobs, job.id)
    assert errors == {bad: "worker_crashed"}
    assert all(value > 0 for position, value in enumerate(values) if position != bad)


def test_several_bad_texts_in_one_chunk_are_all_found(
    store: JobStore, blobs: Blobs, worker: Redis, engine: ThreadEngine
) -> None:
    texts = ["die" if number in (0, 3, 7) else "fine" for number in range(9)]
    job = submit(store, blobs, texts, chunk_items=9)
    work(store)
    assert engine.deaths == 1 + 2 * 3
    assert audit(store, blobs, job.id).counts == Counts(9, 6, 3)
    assert results(store, blobs, job.id)[1] == dict.fromkeys((0, 3, 7), "worker_crashed")


def test_a_chunk_of_nothing_but_bad_texts_ends_too(
    store: JobStore, blobs: Blobs, worker: Redis, engine: ThreadEngine
) -> None:
    job = submit(store, blobs, ["die"] * 3, chunk_items=3)
    work(store)
    assert audit(store, blobs, job.id).state is JobState.FAILED
    assert engine.deaths <= 3 * 3


@pytest.mark.parametrize(("text", "code"), [("fail", "item_failed"), ("bug", "internal_error")])
def test_an_error_of_the_whole_chunk_is_narrowed_down_to_its_item(
    store: JobStore, blobs: Blobs, worker: Redis, text: str, code: str
) -> None:
    job = submit(store, blobs, ["a", "b", text, "d"], chunk_items=4)
    work(store)
    ended = audit(store, blobs, job.id)
    assert ended.counts == Counts(4, 3, 1)
    assert results(store, blobs, job.id)[1] == {2: code}
    assert "a path that nobody should see" not in ended.error


def test_a_job_that_no_worker_can_compute_fails_with_the_reason(
    store: JobStore, blobs: Blobs, worker: Redis, engine: ThreadEngine
) -> None:
    engine.raises = ModelNotFound("this worker has no model fake")
    job = submit(store, blobs, ["a", "b"])
    work(store)
    ended = audit(store, blobs, job.id)
    assert (ended.state, ended.counts) == (JobState.FAILED, Counts(2, 0, 2))
    assert "model_not_found" in ended.error
    frame = blobs.get_result(job.id, 0)
    assert frame is not None
    assert frames.unpack(frame)[1]["values"].shape == (2, 64)


def test_a_worker_that_goes_away_gives_its_chunk_back_without_an_attempt(
    store: JobStore, blobs: Blobs, worker: Redis, engine: ThreadEngine
) -> None:
    job = submit(store, blobs, ["a"])
    engine.raises = EngineClosed("the worker is going away")
    work(store)
    (chunk,) = store.chunk_table(job.id)
    assert (chunk.state, chunk.attempts) == ("ticket", 0)
    engine.raises = None
    make_overdue(store.redis, job.id, 0)
    assert chunk_task.reap(store.leases, LANE) > 0
    work(store)
    assert audit(store, blobs, job.id).counts == Counts(1, 1)


def test_a_text_that_is_lost_is_an_error_and_not_an_endless_retry(store: JobStore, blobs: Blobs, worker: Redis) -> None:
    job = submit(store, blobs, ["a", "b", "c"])
    store.redis.delete(keys.job_input(job.id, 0))
    work(store)
    assert audit(store, blobs, job.id).counts == Counts(3, 1, 2)
    assert results(store, blobs, job.id)[1] == {0: "input_lost", 1: "input_lost"}


def test_retrying_the_failed_items_computes_nothing_else(
    store: JobStore, blobs: Blobs, worker: Redis, engine: ThreadEngine
) -> None:
    job = submit(store, blobs, ["a", "bad", "c", "d"])
    work(store)
    assert audit(store, blobs, job.id).counts == Counts(4, 3, 1)
    engine.computed.clear()
    store.retry_failed(job.id)
    work(store)
    assert engine.computed == [["bad"]]
    assert audit(store, blobs, job.id).counts == Counts(4, 3, 1)


def test_messages_that_the_broker_loses_are_published_again(store: JobStore, blobs: Blobs, worker: Redis) -> None:
    job = submit(store, blobs, ["a"] * 6)
    publish_messages(store.leases, LANE, job.chunks)
    assert len(take_messages(store.redis)) == 3  # and nobody got them
    assert chunk_task.reap(store.leases, LANE) > 0
    for model in take_messages(store.redis):
        run_chunk(model)
    work(store)
    assert audit(store, blobs, job.id).state is JobState.SUCCEEDED


def test_a_broker_that_is_away_leaves_a_created_job_to_the_reaper(
    store: JobStore, blobs: Blobs, worker: Redis, settings: Settings
) -> None:
    away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    job = submit(store, blobs, ["a"])
    assert publish_messages(Leases(store.redis, away), LANE, 1) == 0
    publisher(away).close()
    assert chunk_task.reap(store.leases, LANE) > 0
    work(store)
    assert audit(store, blobs, job.id).state is JobState.SUCCEEDED


def test_a_job_that_is_cancelled_while_it_is_computed_stops(
    store: JobStore, blobs: Blobs, worker: Redis, engine: ThreadEngine
) -> None:
    job = submit(store, blobs, ["a", "b"])
    held: Future[Outcomes] = Future()
    engine.submit = lambda work: (store.cancel(job.id), held)[1]  # type: ignore[method-assign]
    run_chunk("fake")
    assert held.cancelled()
    assert audit(store, blobs, job.id).state is JobState.CANCELLED


def test_a_device_that_hangs_loses_its_claim_and_takes_no_other_chunk_until_it_moves(
    store: JobStore, blobs: Blobs, worker: Redis, engine: ThreadEngine, settings: Settings
) -> None:
    impatient = settings.model_copy(update={"lease_s": 0.2, "ticket_timeout_s": 0.2})
    hasty = JobStore(store.redis, impatient)
    app.twolane = WorkerContext(hasty.leases, blobs, engine, impatient, "this process", dimensions={"fake": 64})
    job = submit(store, blobs, ["a", "b", "c"])
    compute = engine.submit
    engine.submit = lambda work: Future()  # type: ignore[method-assign]
    stop = threading.Event()
    reaper = threading.Thread(target=lambda: [store.leases.reap(LANE) for _ in iter(lambda: stop.wait(0.02), True)])
    reaper.start()
    try:
        run_chunk("fake")
        hung = store.chunk_table(job.id)[0]  # taken back, and waiting again
        assert (hung.state, hung.attempts) == ("pending", 1)
        run_chunk("fake")
        assert [chunk.attempts for chunk in store.chunk_table(job.id)] == [1, 0]
    finally:
        stop.set()
        reaper.join()
    engine.submit = compute  # type: ignore[method-assign]
    engine.passes += 1
    app.twolane = WorkerContext(
        store.leases, blobs, engine, settings, "this process", app.twolane.sharing, {"fake": 64}
    )
    work(store)
    assert audit(store, blobs, job.id).counts == Counts(3, 3)


def count_commands(redis: Redis) -> int:
    statistics = redis.info("commandstats")
    return sum(statistics[f"cmdstat_{name}"]["calls"] for name in ("exists", "zrange", "evalsha"))


def test_a_worker_whose_places_are_taken_asks_for_a_small_chunk_only_when_turns_change(
    store: JobStore, blobs: Blobs, worker: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_task, "_LOOK_EVERY_S", 3600.0)
    held = app.twolane.sharing.held
    assert all(held.enter(settings.chunks_in_flight, 0) for _ in range(settings.chunks_in_flight))
    watch = TurnsWatch(connect(settings.redis_url, name="turns", block_s=1.0), held)
    watch.start()
    wait_until(lambda: held.turns(LANE) > 0, 20)
    large = submit(store, blobs, ["word " * 2000] * 16, chunk_items=16)
    (waiting := threading.Thread(target=run_chunk, args=("fake",))).start()
    try:
        time.sleep(0.2)
        before = count_commands(store.redis)
        time.sleep(0.5)
        assert count_commands(store.redis) - before <= 8
        small = submit(store, blobs, ["a"])
        waiting.join(20)
        assert audit(store, blobs, small.id).counts == Counts(1, 1)
        assert store.get(large.id).state is JobState.QUEUED
    finally:
        held.close()
        watch.stop()


def test_a_worker_that_is_going_away_takes_no_chunk(store: JobStore, blobs: Blobs, worker: Redis) -> None:
    job = submit(store, blobs, ["a"])
    app.twolane.sharing.held.close()
    run_chunk("fake")
    assert store.get(job.id).state is JobState.QUEUED


def test_the_lease_grows_with_the_slowest_pass(settings: Settings) -> None:
    device = DeviceProgress()
    assert device.lease_s(settings) == settings.lease_s
    device.learn(5.0)
    assert device.lease_s(settings) == 10.0
    device.learn(10**6)
    assert device.lease_s(settings) == settings.lease_s + settings.pass_timeout_s
    assert device.wait_until_moving(lambda: 0, 0)
    device.suspect(ProgressWatch(device, 7))
    assert not device.wait_until_moving(lambda: 7, 0)
    assert device.wait_until_moving(lambda: 8, 0)
    assert device.wait_until_moving(lambda: 8, 0)


def test_a_deleted_job_leaves_nothing_to_the_worker_that_still_computes_it(
    store: JobStore, blobs: Blobs, worker: Redis, engine: ThreadEngine
) -> None:
    job = submit(store, blobs, ["a", "b"])
    compute = engine.submit

    def delete_meanwhile(work: Work) -> Future[Outcomes]:
        blobs.delete(job.id, store.delete(job.id).chunks)
        return compute(work)

    engine.submit = delete_meanwhile  # type: ignore[method-assign]
    run_chunk("fake")
    assert store.redis.keys(f"*{job.id}*") == []
