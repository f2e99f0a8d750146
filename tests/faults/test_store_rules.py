"""The rules of the job state, one after another, on a real server."""

import threading
from collections.abc import Iterator

import orjson
import pytest
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.blobs import Blobs, open_blobs
from tasks.claims import Claim, ClaimCode, Completed
from tasks.errors import Conflict, IdempotencyMismatch, NotFound, StoreFull, TooLarge
from tasks.jobs import Counts, Idempotency, JobState, NewJob, new_job_id
from tasks.records import read_claim
from tasks.store import JobStore
from tests.job_maker import (
    LANE,
    assert_expiry,
    audit,
    make_completion,
    make_overdue,
    outlive_restart_grace,
    submit,
)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"lease_s": 1.0, "window": 3})


@pytest.fixture
def store(redis: Redis, settings: Settings) -> JobStore:
    return JobStore(redis, settings)


@pytest.fixture
def blobs(redis: Redis, settings: Settings) -> Blobs:
    return open_blobs(redis, settings)


def run_out(store: JobStore, blobs: Blobs) -> None:
    """Work until nothing has a turn any more."""
    while tickets := store.dispatch(LANE):
        for ticket in tickets:
            claim = store.claim(ticket.job_id, ticket.chunk, "w")
            store.complete(claim, make_completion(claim))


# -- 1: safe to run twice, server's time, expiry at birth


def test_a_job_from_its_creation_to_its_end_has_no_key_without_expiry(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["a", "b", "c"], result_bytes=1000, deadline_in_s=60, idempotency=Idempotency("k", "h"))
    assert_expiry(store.redis)
    (first, second) = store.dispatch(LANE)
    assert_expiry(store.redis)
    claim = store.claim(job.id, first.chunk, "w")
    store.mark(claim, [0])
    store.release(claim)
    assert_expiry(store.redis)
    store.pause(job.id)
    store.resume(job.id)
    assert_expiry(store.redis)
    claim = store.claim(job.id, second.chunk, "w")
    store.cancel(job.id)
    assert_expiry(store.redis)
    store.complete(claim, make_completion(claim))
    audit(store, blobs, job.id)


def test_creating_the_same_job_twice_makes_one(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["a", "b", "c"])
    again = submit(store, blobs, ["a", "b", "c"], id=job.id)
    assert again == job
    assert store.redis.lrange(keys.job_pending(job.id), 0, -1) == [b"0", b"1"]


def test_a_claim_that_is_sent_twice_by_the_client_counts_one_attempt(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["a"])
    store.dispatch(LANE)
    args = (0, "w", "nonce", 1000, 30)
    first, second = (read_claim(job.id, 0, store._run("claim", job.id, LANE, args)) for _ in range(2))
    assert first == second
    assert store.chunk_table(job.id)[0].attempts == 1
    assert store._run("claim", job.id, LANE, (0, "w", "other nonce", 1000, 30)) == [b"BUSY"]


def test_a_completion_that_is_sent_twice_counts_once(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["a", "b", "c"])
    ticket, _ = store.dispatch(LANE)
    claim = store.claim(*vars_of(ticket), "w")
    assert store.complete(claim, make_completion(claim))[0] is Completed.OK
    once = store.get(job.id)
    assert store.complete(claim, make_completion(claim))[0] is Completed.DUP
    assert store.get(job.id) == once
    assert once.counts == Counts(3, 2)


def test_scripts_that_the_server_forgets_all_the_time_are_not_missed(
    store: JobStore, blobs: Blobs, redis_url: str
) -> None:
    stop = threading.Event()

    def flush() -> None:
        with Redis.from_url(redis_url) as client:
            while not stop.is_set():
                client.script_flush()

    flusher = threading.Thread(target=flush)
    flusher.start()
    try:
        job = submit(store, blobs, ["x"] * 60)
        run_out(store, blobs)
    finally:
        stop.set()
        flusher.join()
    assert audit(store, blobs, job.id).state is JobState.SUCCEEDED


# -- 2: create


def test_an_idempotency_key_names_the_same_job_again(store: JobStore, blobs: Blobs) -> None:
    key = Idempotency("key", "payload")
    job = submit(store, blobs, ["a"], idempotency=key)
    assert submit(store, blobs, ["a"], idempotency=key).id == job.id
    assert store.find("default", key) == job
    with pytest.raises(IdempotencyMismatch):
        submit(store, blobs, ["b"], idempotency=Idempotency("key", "other payload"))
    with pytest.raises(IdempotencyMismatch):
        store.find("default", Idempotency("key", "other payload"))
    assert submit(store, blobs, ["b"], idempotency=Idempotency("key", "other payload"), tenant="other").id != job.id


def test_the_key_of_a_deleted_job_is_free_again(store: JobStore, blobs: Blobs) -> None:
    key = Idempotency("key", "payload")
    job = submit(store, blobs, ["a"], idempotency=key)
    store.delete(job.id)
    assert store.find("default", key) is None
    again = submit(store, blobs, ["b"], idempotency=Idempotency("key", "other payload"))
    assert again.id != job.id
    assert store.find("default", Idempotency("key", "other payload")) == again


def test_a_small_job_that_was_answered_at_once_is_kept_like_any_other(store: JobStore, blobs: Blobs) -> None:
    new = NewJob(new_job_id(), "default", "embeddings", "fake", LANE, 2, 6)
    frame = make_completion_frame(2)
    job, created = store.record_finished(new, frame, Counts(2, 1, 1, 0), 5, Idempotency("key", "payload"))
    assert created
    assert (job.state, job.counts, job.tokens) == (JobState.SUCCEEDED, Counts(2, 1, 1, 0), 5)
    assert store.record_finished(
        NewJob(new_job_id(), "default", "embeddings", "fake", LANE, 2, 6),
        frame,
        Counts(2, 2),
        5,
        Idempotency("key", "payload"),
    ) == (job, False)
    assert blobs.get_result(job.id, 0) == frame
    assert store.dispatch(LANE) == []
    audit(store, blobs, job.id)


# -- 3: dispatch


def test_no_more_tickets_are_out_than_the_window_holds(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 20)
    assert [ticket.chunk for ticket in store.dispatch(LANE)] == [0, 1, 2]
    assert store.dispatch(LANE) == []
    claim = store.claim(job.id, 1, "w")
    assert store.dispatch(LANE) == []
    _, head = store.complete(claim, make_completion(claim))
    assert head == job.id
    assert [ticket.chunk for ticket in store.dispatch(LANE, head)] == [3]


def test_the_window_grows_with_the_ready_workers(store: JobStore, blobs: Blobs, settings: Settings) -> None:
    submit(store, blobs, ["x"] * 100)
    store.redis.zadd(keys.lane_workers("fake"), {"a": 2**50, "b": 2**50, "gone": 1})
    assert len(store.dispatch(LANE)) == 2 * 2 * settings.chunks_in_flight


def test_a_small_job_behind_a_huge_one_is_served_within_two_windows(store: JobStore, blobs: Blobs) -> None:
    huge = submit(store, blobs, ["x"] * 1000)
    work_off(store, 30)
    small = submit(store, blobs, ["y"] * 4)
    served = work_off(store, 2 * store.settings.window)
    assert served.count(small.id) == 2
    assert store.get(small.id).state is JobState.SUCCEEDED
    assert not store.get(huge.id).ended


def test_jobs_of_one_priority_take_turns_by_tokens_not_by_arrival(store: JobStore, blobs: Blobs) -> None:
    long_texts = submit(store, blobs, ["word " * 100] * 400)
    short_texts = submit(store, blobs, ["word " * 20] * 400)
    served = work_off(store, 120)
    tokens = {
        job.id: served.count(job.id) * store.get(job.id).estimated_tokens / job.chunks
        for job in (long_texts, short_texts)
    }
    assert 0.8 < tokens[long_texts.id] / tokens[short_texts.id] < 1.25


def test_a_higher_priority_gets_more_turns_and_a_low_one_never_starves(store: JobStore, blobs: Blobs) -> None:
    low = submit(store, blobs, ["x"] * 600, priority="low")
    high = submit(store, blobs, ["x"] * 600, priority="high")
    served = work_off(store, 200)
    assert served.count(high.id) > 5 * served.count(low.id)
    assert served.count(low.id) > 5


def test_a_stream_of_small_high_jobs_does_not_starve_a_low_one(store: JobStore, blobs: Blobs) -> None:
    low = submit(store, blobs, ["x"] * 100, priority="low")
    served: list[str] = []
    for _ in range(150):
        submit(store, blobs, ["y"] * 2, priority="high")
        served += work_off(store, 1)
    assert served.count(low.id) >= 3


def test_two_jobs_do_not_mix(store: JobStore, blobs: Blobs) -> None:
    one, other = submit(store, blobs, ["a"] * 5), submit(store, blobs, ["b"] * 3)
    run_out(store, blobs)
    assert audit(store, blobs, one.id).counts == Counts(5, 5)
    assert audit(store, blobs, other.id).counts == Counts(3, 3)


# -- 4: claim


def test_a_claim_is_answered_by_what_became_of_the_chunk(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 20)
    assert store.claim(job.id, 0, "w").code is ClaimCode.BUSY  # it has no ticket
    store.dispatch(LANE)
    claim = store.claim(job.id, 0, "w")
    assert (claim.code, claim.attempt, claim.items) == (ClaimCode.OK, 1, 2)
    assert store.claim(job.id, 0, "v").code is ClaimCode.BUSY
    store.complete(claim, make_completion(claim))
    assert store.claim(job.id, 0, "v").code is ClaimCode.DONE
    store.cancel(job.id)
    assert store.claim(job.id, 1, "v").code is ClaimCode.STOP
    store.delete(job.id)
    assert store.claim(job.id, 2, "v").code is ClaimCode.GONE
    assert store.claim("job_never", 0, "v").code is ClaimCode.GONE


def test_a_claim_starts_the_job(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"])
    store.dispatch(LANE)
    assert store.get(job.id).state is JobState.QUEUED
    store.claim(job.id, 0, "w")
    running = store.get(job.id)
    assert running.state is JobState.RUNNING
    assert running.started_at is not None
    assert running.version > job.version


def test_a_chunk_that_ends_worker_after_worker_without_a_culprit_is_given_up_at_last(
    store: JobStore, blobs: Blobs, settings: Settings
) -> None:
    outlive_restart_grace(store.redis, settings)
    job = submit(store, blobs, ["x"])
    codes = []
    for _ in range(settings.max_attempts * 10 + 1):
        store.dispatch(LANE)
        codes.append(store.claim(job.id, 0, "w").code)
        make_overdue(store.redis, job.id, 0)
        store.reap(LANE)
    assert codes == [ClaimCode.OK] * settings.max_attempts * 10 + [ClaimCode.POISON]


# -- 5: heartbeat


def test_a_heartbeat_renews_the_lease_only_when_work_has_moved(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"])
    store.dispatch(LANE)
    claim = store.claim(job.id, 0, "w")
    entry = f"{job.id}:0"
    for progress, renewed in [(0, False), (1, True), (1, False), (5, True), (4, False)]:
        store.redis.zadd(keys.lane_inflight(LANE), {entry: 1})
        assert store.heartbeat(claim, progress) is False
        assert (store.redis.zscore(keys.lane_inflight(LANE), entry) != 1) is renewed


def test_the_heartbeat_of_a_lost_claim_says_stop_and_renews_nothing(
    store: JobStore, blobs: Blobs, settings: Settings
) -> None:
    outlive_restart_grace(store.redis, settings)
    job = submit(store, blobs, ["x"])
    store.dispatch(LANE)
    old = store.claim(job.id, 0, "w")
    make_overdue(store.redis, job.id, 0)
    store.reap(LANE)
    store.dispatch(LANE)
    new = store.claim(job.id, 0, "v")
    make_overdue(store.redis, job.id, 0)
    assert store.heartbeat(old, 9) is True
    assert store.mark(old, [0]) is True
    assert store.redis.zscore(keys.lane_inflight(LANE), f"{job.id}:0") == 1
    assert store.heartbeat(new, 1) is False


@pytest.mark.parametrize("move", ["cancel", "pause"])
def test_a_heartbeat_says_stop_when_the_job_does(store: JobStore, blobs: Blobs, move: str) -> None:
    job = submit(store, blobs, ["x"])
    store.dispatch(LANE)
    claim = store.claim(job.id, 0, "w")
    getattr(store, move)(job.id)
    assert store.heartbeat(claim, 1) is True


# -- 6: complete


def test_the_last_completion_ends_the_job_and_leaves_nothing_behind(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["a", "b", "c"], result_bytes=99)
    run_out(store, blobs)
    ended = audit(store, blobs, job.id)
    assert (ended.state, ended.counts, ended.tokens) == (JobState.SUCCEEDED, Counts(3, 3), 9)
    assert blobs.get_input(job.id, 0) is None
    assert store.redis.hget(keys.store_reserved(), "total") == b"0"


def test_a_late_result_counts_if_nobody_was_faster(store: JobStore, blobs: Blobs, settings: Settings) -> None:
    outlive_restart_grace(store.redis, settings)
    job = submit(store, blobs, ["x"])
    store.dispatch(LANE)
    old = store.claim(job.id, 0, "w")
    make_overdue(store.redis, job.id, 0)
    store.reap(LANE)
    assert store.complete(old, make_completion(old))[0] is Completed.OK
    assert store.dispatch(LANE) == []
    audit(store, blobs, job.id)


def test_a_late_result_takes_the_chunk_from_whoever_holds_it_since(
    store: JobStore, blobs: Blobs, settings: Settings
) -> None:
    outlive_restart_grace(store.redis, settings)
    job = submit(store, blobs, ["x"] * 6)
    store.dispatch(LANE)
    old, held = store.claim(job.id, 0, "w"), store.claim(job.id, 1, "w")
    make_overdue(store.redis, job.id, 0)
    store.reap(LANE)
    store.complete(old, make_completion(old))
    # The claim that was taken back is not counted off a second time.
    assert store.cancel(job.id).state is JobState.CANCELLING
    assert store.release(old) is False
    assert store.fail(old) is False
    assert store.get(job.id).state is JobState.CANCELLING
    store.release(held)
    assert audit(store, blobs, job.id).counts == Counts(6, 2)


def test_who_lost_a_claim_cannot_give_it_back(store: JobStore, blobs: Blobs, settings: Settings) -> None:
    outlive_restart_grace(store.redis, settings)
    job = submit(store, blobs, ["x"])
    store.dispatch(LANE)
    old = store.claim(job.id, 0, "w")
    make_overdue(store.redis, job.id, 0)
    store.reap(LANE)
    store.dispatch(LANE)
    new = store.claim(job.id, 0, "v")
    assert store.release(old) is False
    assert store.claim(job.id, 0, "u").code is ClaimCode.BUSY
    assert store.heartbeat(new, 1) is False


def test_of_two_results_the_first_one_counts(store: JobStore, blobs: Blobs, settings: Settings) -> None:
    outlive_restart_grace(store.redis, settings)
    job = submit(store, blobs, ["x", "y"])
    store.dispatch(LANE)
    frozen = store.claim(job.id, 0, "w")
    make_overdue(store.redis, job.id, 0)
    store.reap(LANE)
    store.dispatch(LANE)
    other = store.claim(job.id, 0, "v")
    assert store.complete(other, make_completion(other))[0] is Completed.OK
    assert store.complete(frozen, make_completion(frozen, failed=2))[0] is Completed.DUP
    assert audit(store, blobs, job.id).counts == Counts(2, 2)


def test_a_job_fails_only_if_nothing_could_be_computed(store: JobStore, blobs: Blobs) -> None:
    half, none = submit(store, blobs, ["a"] * 4), submit(store, blobs, ["b"] * 4)
    for ticket in [*store.dispatch(LANE), *store.dispatch(LANE)]:
        claim = store.claim(ticket.job_id, ticket.chunk, "w")
        failed = 2 if ticket.job_id == none.id or ticket.chunk == 0 else 0
        store.complete(claim, make_completion(claim, failed=failed))
    for ticket in store.dispatch(LANE):
        claim = store.claim(ticket.job_id, ticket.chunk, "w")
        store.complete(claim, make_completion(claim, failed=2 if ticket.job_id == none.id else 0))
    assert audit(store, blobs, half.id).state is JobState.SUCCEEDED
    failed_job = audit(store, blobs, none.id)
    assert (failed_job.state, failed_job.error) == (JobState.FAILED, "item 0: bad")


# -- 7: reap


def test_an_overdue_claim_goes_back_and_its_attempt_stays_counted(
    store: JobStore, blobs: Blobs, settings: Settings
) -> None:
    outlive_restart_grace(store.redis, settings)
    job = submit(store, blobs, ["x"] * 10)
    store.dispatch(LANE)
    store.claim(job.id, 0, "w")
    make_overdue(store.redis, job.id, 0)
    assert store.reap(LANE) == []
    assert [ticket.chunk for ticket in store.dispatch(LANE)] == [0]
    assert store.claim(job.id, 0, "v").attempt == 2


def test_what_another_process_has_reaped_already_is_left_alone(
    store: JobStore, blobs: Blobs, settings: Settings
) -> None:
    job = submit(store, blobs, ["x"])
    store.dispatch(LANE)
    store.claim(job.id, 0, "w")
    assert store._reap(LANE, [f"{job.id}:0".encode()]) == []
    assert store.chunk_table(job.id)[0].state == "claimed"


def test_an_overdue_ticket_is_published_again_with_growing_delays(
    store: JobStore, blobs: Blobs, settings: Settings
) -> None:
    outlive_restart_grace(store.redis, settings)
    job = submit(store, blobs, ["x"])
    store.dispatch(LANE)
    delays_s = []
    for _ in range(6):
        make_overdue(store.redis, job.id, 0)
        assert [ticket.chunk for ticket in store.reap(LANE)] == [0]
        assert store.reap(LANE) == []
        (_, until_ms) = store.redis.zrange(keys.lane_inflight(LANE), 0, -1, withscores=True)[0]
        delays_s.append(round(until_ms / 1000 - store.redis.time()[0], -1))
    assert delays_s == [40, 80, 160, 300, 300, 300]


def test_what_is_left_of_a_vanished_job_is_swept_out(store: JobStore, blobs: Blobs, settings: Settings) -> None:
    outlive_restart_grace(store.redis, settings)
    gone, waiting = submit(store, blobs, ["x"] * 4), submit(store, blobs, ["y"] * 20)
    store.dispatch(LANE)
    store.redis.delete(keys.job(gone.id), keys.job_chunks(gone.id), keys.job_pending(gone.id))
    for entry in store.redis.zrange(keys.lane_inflight(LANE), 0, -1):
        make_overdue(store.redis, *entry.decode().rsplit(":", 1))
    store.reap(LANE)
    store.dispatch(LANE)
    assert {entry.split(b":")[0] for entry in store.redis.zrange(keys.lane_inflight(LANE), 0, -1)} == {
        waiting.id.encode()
    }


def test_nothing_is_reaped_just_after_the_server_came_back(store: JobStore, blobs: Blobs, settings: Settings) -> None:
    patient = JobStore(store.redis, settings.model_copy(update={"lease_s": 10_000.0}))
    job = submit(store, blobs, ["x"])
    store.dispatch(LANE)
    claim = store.claim(job.id, 0, "w")
    make_overdue(store.redis, job.id, 0)
    assert patient.reap(LANE) == []
    assert store.heartbeat(claim, 1) is False


# -- 8: poison


def crash(store: JobStore, job_id: str) -> None:
    make_overdue(store.redis, job_id, 0)
    store.reap(LANE)
    store.dispatch(LANE)


def test_an_item_that_was_alone_on_the_device_in_two_deaths_is_the_culprit(
    store: JobStore, blobs: Blobs, settings: Settings
) -> None:
    outlive_restart_grace(store.redis, settings)
    job = submit(store, blobs, ["x"] * 9, chunk_items=9)
    store.dispatch(LANE)
    store.claim(job.id, 0, "w")
    crash(store, job.id)
    second = store.claim(job.id, 0, "w")
    assert second.suspects == ()
    store.mark(second, [3])
    store.mark(second, [7])
    crash(store, job.id)
    third = store.claim(job.id, 0, "w")
    assert (third.suspects, third.poison) == ((7,), ())
    store.mark(third, [7])
    crash(store, job.id)
    fourth = store.claim(job.id, 0, "w")
    assert (fourth.suspects, fourth.poison) == ((), (7,))
    store.complete(fourth, make_completion(fourth, failed=1))
    store.retry_failed(job.id)
    store.dispatch(LANE)
    assert store.claim(job.id, 0, "w").poison == ()


def test_a_chunk_whose_workers_are_killed_at_random_moments_has_no_culprit(
    store: JobStore, blobs: Blobs, settings: Settings
) -> None:
    outlive_restart_grace(store.redis, settings)
    job = submit(store, blobs, ["x"] * 9, chunk_items=9)
    store.dispatch(LANE)
    for killed_at in [4, 2, 7, 2, 4, 8, 1, 2, 6, 5]:
        claim = store.claim(job.id, 0, "w")
        assert claim.poison == ()
        # Suspects come early in the plan, and a worker that gets past them clears them.
        for position in [*claim.suspects, *range(killed_at + 1)]:
            store.mark(claim, [position])
        crash(store, job.id)
    assert store.claim(job.id, 0, "w").poison == ()


def test_a_group_that_died_accuses_its_items_but_convicts_none(
    store: JobStore, blobs: Blobs, settings: Settings
) -> None:
    outlive_restart_grace(store.redis, settings)
    job = submit(store, blobs, ["x"] * 9, chunk_items=9)
    store.dispatch(LANE)
    for _ in range(3):
        claim = store.claim(job.id, 0, "w")
        store.mark(claim, [1, 2])
        crash(store, job.id)
    claim = store.claim(job.id, 0, "w")
    assert (claim.suspects, claim.poison) == ((1, 2), ())
    store.mark(claim, [1])
    store.mark(claim, [2])
    crash(store, job.id)
    claim = store.claim(job.id, 0, "w")
    assert (claim.suspects, claim.poison) == ((), (2,))


# -- 9: full store


@pytest.fixture
def small_server(redis: Redis) -> Iterator[int]:
    """The server with a limit of twice what it uses now, and a bit."""
    limit = 2 * int(redis.info("memory")["used_memory"]) + 8 * 2**20
    redis.config_set("maxmemory", limit)
    yield limit
    redis.config_set("maxmemory", 0)


def test_a_full_store_refuses_new_jobs_but_takes_every_result(store: JobStore, blobs: Blobs, small_server: int) -> None:
    job = submit(store, blobs, ["x"] * 2)
    with pytest.raises(TooLarge):
        submit(store, blobs, ["x"], result_bytes=small_server)
    with pytest.raises(TooLarge):
        store.check_room(small_server)
    for number in range(10**6):
        if int(store.redis.info("memory")["used_memory"]) > 0.75 * small_server:
            break
        store.redis.set(f"filler {number}", b"x" * 2**16, ex=100)
    with pytest.raises(StoreFull) as refused:
        submit(store, blobs, ["x"])
    assert refused.value.retry_after_s > 0
    with pytest.raises(StoreFull):
        store.check_room(1)
    store.redis.config_set("maxmemory", small_server // 2)  # now nothing new fits at all
    with pytest.raises(StoreFull):
        submit(store, blobs, ["x"])
    run_out(store, blobs)
    assert audit(store, blobs, job.id).state is JobState.SUCCEEDED


def test_what_accepted_jobs_still_need_is_reserved_and_given_back(
    store: JobStore, blobs: Blobs, redis: Redis, settings: Settings
) -> None:
    room = 2**20
    used = int(redis.info("memory")["used_memory"])
    limited = JobStore(redis, settings.model_copy(update={"store_max_bytes": used + room}))
    job = submit(limited, blobs, ["x"] * 4, result_bytes=room // 2)
    with pytest.raises(StoreFull):
        submit(limited, blobs, ["x"], result_bytes=room // 2)
    ticket, _ = limited.dispatch(LANE)
    claim = limited.claim(*vars_of(ticket), "w")
    limited.complete(claim, make_completion(claim))
    assert redis.hget(keys.store_reserved(), "total") == str(room // 4).encode()
    limited.cancel(job.id)
    submit(limited, blobs, ["x"], result_bytes=room // 2)


def test_the_reservation_of_a_job_that_expired_unfinished_is_given_back(
    store: JobStore, blobs: Blobs, redis: Redis, settings: Settings
) -> None:
    limited = JobStore(redis, settings.model_copy(update={"store_max_bytes": 2**40}))
    job = submit(limited, blobs, ["x"], result_bytes=1000)
    redis.delete(keys.job(job.id), keys.job_chunks(job.id), keys.job_pending(job.id))
    redis.zadd(keys.store_reserved_until(), {job.id: 1})
    submit(limited, blobs, ["x"], result_bytes=10)
    assert redis.hget(keys.store_reserved(), "total") == b"10"


# -- moves of a user


def test_cancelling_drops_what_waits_and_keeps_what_is_done(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 20)
    store.dispatch(LANE)
    done, held = store.claim(job.id, 0, "w"), store.claim(job.id, 1, "w")
    store.complete(done, make_completion(done))
    assert store.cancel(job.id).state is JobState.CANCELLING
    assert store.cancel(job.id).state is JobState.CANCELLING
    assert store.dispatch(LANE) == []
    store.release(held)
    cancelled = audit(store, blobs, job.id)
    assert (cancelled.state, cancelled.counts) == (JobState.CANCELLED, Counts(20, 2))
    assert [chunk.state for chunk in store.chunk_table(job.id)] == ["done"] + ["dropped"] * 9
    assert store.cancel(job.id) == cancelled


def test_a_claim_may_finish_while_its_job_is_cancelled(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 20)
    store.dispatch(LANE)
    claim = store.claim(job.id, 0, "w")
    store.cancel(job.id)
    assert store.complete(claim, make_completion(claim))[0] is Completed.OK
    assert audit(store, blobs, job.id).counts == Counts(20, 2)


def test_a_job_whose_workers_are_all_dead_is_cancelled_when_their_leases_have_run_out(
    store: JobStore, blobs: Blobs, settings: Settings
) -> None:
    outlive_restart_grace(store.redis, settings)
    job = submit(store, blobs, ["x"])
    store.dispatch(LANE)
    store.claim(job.id, 0, "w")
    assert store.cancel(job.id).state is JobState.CANCELLING
    make_overdue(store.redis, job.id, 0)
    # Nobody reaps; reading the job is enough.
    assert store.get(job.id).state is JobState.CANCELLED


def test_an_ended_job_cannot_be_moved(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"])
    run_out(store, blobs)
    for move in (store.cancel, store.pause, store.resume, store.retry_failed):
        with pytest.raises(Conflict):
            move(job.id)


def test_a_paused_job_lets_others_pass_and_goes_on_where_it_was(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 8)
    store.dispatch(LANE)
    claim = store.claim(job.id, 0, "w")
    assert store.pause(job.id).state is JobState.PAUSED
    other = submit(store, blobs, ["y"])
    assert [ticket.job_id for ticket in store.dispatch(LANE)] == [other.id]
    assert store.claim(job.id, 1, "w").code is ClaimCode.STOP
    store.release(claim)
    assert store.resume(job.id).state is JobState.RUNNING
    assert [ticket.chunk for ticket in store.dispatch(LANE)] == [0, 1]
    assert store.claim(job.id, 0, "w").attempt == 1
    store.cancel(job.id)


def test_a_job_ends_at_its_deadline(store: JobStore, blobs: Blobs, settings: Settings) -> None:
    job = submit(store, blobs, ["x"] * 8, deadline_in_s=0.001)
    ended = store.wait(job.id, "default", job.version, 5)
    assert ended.state is JobState.EXPIRED
    audit(store, blobs, job.id)


def test_the_reaper_ends_a_job_at_its_deadline_when_its_claims_are_over(
    store: JobStore, blobs: Blobs, settings: Settings
) -> None:
    outlive_restart_grace(store.redis, settings)
    job = submit(store, blobs, ["x"] * 8, deadline_in_s=1000)
    store.dispatch(LANE)
    claim = store.claim(job.id, 0, "w")
    store.redis.hset(keys.job(job.id), "deadline_ms", 1)
    store.redis.zadd(keys.lane_deadlines(LANE), {job.id: 1})
    store.reap(LANE)
    assert store.heartbeat(claim, 1) is True
    store.complete(claim, make_completion(claim))
    assert audit(store, blobs, job.id).state is JobState.EXPIRED


def test_only_the_failed_items_are_computed_again(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 6)
    claims = [store.claim(job.id, ticket.chunk, "w") for ticket in store.dispatch(LANE)]
    for claim in claims:
        store.complete(claim, make_completion(claim, failed=1 if claim.chunk == 1 else 0))
    assert store.get(job.id).counts == Counts(6, 5, 1)
    again = store.retry_failed(job.id)
    assert (again.state, again.counts) == (JobState.RUNNING, Counts(6, 5, 0))
    # A message from before the retry must not pass for its result.
    assert store.complete(claims[1], make_completion(claims[1]))[0] is Completed.DUP
    assert [ticket.chunk for ticket in store.dispatch(LANE)] == [1]
    claim = store.claim(job.id, 1, "w")
    assert (claim.redo, claim.attempt, claim.pointer) == (True, 1, "redis")
    repeat = make_completion(claim)
    store.complete(claim, type(repeat)(1, 0, 0, 3, repeat.frame, ""))
    assert audit(store, blobs, job.id).counts == Counts(6, 6, 0)


def test_a_retry_that_is_cancelled_leaves_the_job_as_it_was(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 6)
    for ticket in store.dispatch(LANE):
        claim = store.claim(job.id, ticket.chunk, "w")
        store.complete(claim, make_completion(claim, failed=1))
    store.retry_failed(job.id)
    store.dispatch(LANE)
    claim = store.claim(job.id, 0, "w")
    store.cancel(job.id)
    store.release(claim)
    assert audit(store, blobs, job.id).counts == Counts(6, 3, 3)


def test_a_deleted_job_is_gone_for_everybody(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 8, result_bytes=100, deadline_in_s=100)
    store.dispatch(LANE)
    claim, held = store.claim(job.id, 0, "w"), store.claim(job.id, 1, "w")
    store.complete(claim, make_completion(claim))
    blobs.delete(job.id, store.delete(job.id).chunks)
    with pytest.raises(NotFound):
        store.get(job.id)
    assert store.heartbeat(held, 1) is True
    assert store.complete(held, make_completion(held))[0] is Completed.GONE
    assert store.redis.keys(f"*{job.id}*") == []
    assert store.redis.zcard(keys.lane_inflight(LANE)) == 0
    assert store.list("default") == []
    assert store.redis.hget(keys.store_reserved(), job.id) is None


# -- read


def test_another_tenants_job_is_not_found(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"], tenant="one")
    assert store.get(job.id, "one").tenant == "one"
    for read in (store.get, store.cancel, store.pause, store.resume, store.retry_failed, store.delete):
        with pytest.raises(NotFound):
            read(job.id, "other")
    assert store.list("other") == []


def test_jobs_are_listed_newest_first_in_pages_without_the_expired(store: JobStore, blobs: Blobs) -> None:
    jobs = [submit(store, blobs, ["x"], id=f"job_{number}") for number in range(5)]
    store.redis.delete(keys.job(jobs[2].id))
    store.cancel(jobs[1].id)
    assert [job.id for job in store.list("default", limit=2)] == ["job_4", "job_3"]
    assert [job.id for job in store.list("default", limit=9, after="job_3")] == ["job_1", "job_0"]
    assert [job.id for job in store.list("default", states={JobState.CANCELLED})] == ["job_1"]
    assert store.redis.zscore(keys.tenant_jobs("default"), "job_2") is None


def test_a_reader_that_waits_is_woken_by_the_next_change(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"])
    seen: list[JobState] = []
    reader = threading.Thread(target=lambda: seen.append(store.wait(job.id, "default", job.version, 30).state))
    reader.start()
    store.cancel(job.id)
    reader.join(10)
    assert seen == [JobState.CANCELLED]
    assert store.wait(job.id, "default", 10**6, 30).state is JobState.CANCELLED  # an ended job changes no more


def test_progress_tells_speed_time_left_and_place_in_the_queue(store: JobStore, blobs: Blobs) -> None:
    job, behind = submit(store, blobs, ["x"] * 20), submit(store, blobs, ["y"] * 20)
    assert store.progress(job).tokens_per_s is None
    assert {store.progress(job).position, store.progress(behind).position} == {0, 1}
    work_off(store, 6)
    progress = store.progress(store.get(job.id))
    assert progress.tokens_per_s is not None
    assert progress.eta_s is not None
    assert progress.tokens_per_s > 0
    assert progress.eta_s > 0


def vars_of(ticket: object) -> tuple[str, int]:
    return ticket.job_id, ticket.chunk  # type: ignore[attr-defined]


def make_completion_frame(items: int) -> bytes:
    return make_completion(Claim(ClaimCode.OK, "job_x", 0, items=items)).frame


def work_off(store: JobStore, chunks: int) -> list[str]:
    """Complete so many chunks in the order of their tickets, refilling the window; return their jobs."""
    queue = [(entry.decode().rsplit(":", 1)) for entry in store.redis.zrange(keys.lane_inflight(LANE), 0, -1)]
    served = []
    for _ in range(chunks):
        queue += [[ticket.job_id, str(ticket.chunk)] for ticket in store.dispatch(LANE)]
        if not queue:
            break
        job_id, number = queue.pop(0)
        claim = store.claim(job_id, int(number), "w")
        store.complete(claim, make_completion(claim))
        served.append(job_id)
    return served


def test_the_chunk_table_is_read_in_parts(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 7)
    assert [chunk.start for chunk in store.chunk_table(job.id)] == [0, 2, 4, 6]
    assert [chunk.start for chunk in store.chunk_table(job.id, 1, 2)] == [2, 4]
    assert store.chunk_table(job.id, 4, 2) == []
    with pytest.raises(NotFound):
        store.chunk_table("job_never")
    assert orjson.loads(store.redis.hget(keys.job_chunks(job.id), "3"))["items"] == 1
