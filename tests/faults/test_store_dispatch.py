"""Tickets: the window, turns between jobs, and what happens to the overdue, on a real server."""

import pytest
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.bulk.chunk_task import publish_messages, reap
from tasks.jobs.blobs import Blobs
from tasks.jobs.job import Counts, JobState
from tasks.jobs.store import JobStore
from tests.support.job_maker import (
    LANE,
    assert_expiry,
    audit,
    begin,
    lapse,
    make_completion,
    make_overdue,
    outlive_restart_grace,
    run_out,
    submit,
    take_messages,
    work_off,
)

# -- 3: dispatch


def test_no_more_tickets_are_out_than_the_window_holds(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 20)
    assert [ticket.chunk for ticket in store.leases.dispatch(LANE)] == [0, 1, 2]
    assert store.leases.dispatch(LANE) == []
    claim = store.leases.claim(job.id, 1, "w")
    assert store.leases.dispatch(LANE) == []
    store.leases.complete(claim, make_completion(claim))
    assert [ticket.chunk for ticket in store.leases.dispatch(LANE)] == [3]


def test_the_window_grows_with_the_ready_workers(store: JobStore, blobs: Blobs, settings: Settings) -> None:
    submit(store, blobs, ["x"] * 100)
    store.redis.zadd(keys.lane_workers("fake"), {"a": 2**50, "b": 2**50, "gone": 1})
    assert len(store.leases.dispatch(LANE)) == 2 * 2 * settings.chunks_in_flight


def test_a_small_job_behind_a_huge_one_has_the_next_turn(store: JobStore, blobs: Blobs) -> None:
    huge = submit(store, blobs, ["x"] * 1000)
    work_off(store, 30)
    small = submit(store, blobs, ["y"])
    assert small.id in work_off(store, 2)
    assert store.get(small.id).state is JobState.SUCCEEDED
    assert not store.get(huge.id).ended


def test_tenants_get_the_same_however_many_jobs_each_has(store: JobStore, blobs: Blobs) -> None:
    many = [submit(store, blobs, ["x"] * 60, tenant="many").id for _ in range(9)]
    one = submit(store, blobs, ["x"] * 60, tenant="one").id
    served = work_off(store, 40)
    assert abs(served.count(one) - 20) <= 1
    assert all(2 <= served.count(job_id) <= 3 for job_id in many)


def test_tenants_get_turns_by_their_share(store: JobStore, blobs: Blobs) -> None:
    heavy = submit(store, blobs, ["x"] * 200, tenant="heavy", share=12).id
    submit(store, blobs, ["x"] * 200, tenant="light", share=4)
    assert abs(work_off(store, 40).count(heavy) - 30) <= 1


def test_an_idle_tenant_has_the_next_turn_among_fifty_busy_ones(store: JobStore, blobs: Blobs) -> None:
    for number in range(50):
        for _ in range(1 + number % 3):
            submit(store, blobs, ["x"] * 20, tenant=f"t{number}")
    work_off(store, 120)
    newcomer = submit(store, blobs, ["y"], tenant="idle").id
    assert newcomer in work_off(store, 3)


def test_a_tenant_pays_for_what_was_computed_and_not_for_what_was_estimated(store: JobStore, blobs: Blobs) -> None:
    long = submit(store, blobs, ["word " * 20] * 120, tenant="long").id
    submit(store, blobs, ["x"] * 120, tenant="short")
    served = work_off(store, 36, tokens=30)
    assert 0.7 < served.count(long) / (36 - served.count(long)) < 1.4


def test_a_job_that_waits_ages(store: JobStore, blobs: Blobs) -> None:
    low = submit(store, blobs, ["x"] * 200, priority="low")
    submit(store, blobs, ["x"] * 200, priority="high")
    served = []
    for _ in range(40):
        store.redis.hincrby(keys.job(low.id), "turn_ms", -3_600_000)
        served += work_off(store, 1)
    assert served.count(low.id) > 10


def test_only_a_small_chunk_is_taken_beside_those_that_are_held(store: JobStore, blobs: Blobs) -> None:
    submit(store, blobs, ["word " * 50] * 4)
    assert store.leases.dispatch(LANE, 1, most_tokens=20) == []
    store.leases.dispatch(LANE)
    small = submit(store, blobs, ["word " * 50])
    assert [ticket.job_id for ticket in store.leases.dispatch(LANE, 1, most_tokens=20)] == [small.id]


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
    run_out(store)
    assert audit(store, blobs, one.id).counts == Counts(5, 5)
    assert audit(store, blobs, other.id).counts == Counts(3, 3)


# -- 7: reap


def test_an_overdue_claim_goes_back_and_its_attempt_stays_counted(store: JobStore, blobs: Blobs) -> None:
    outlive_restart_grace(store)
    job, _ = begin(store, blobs, ["x"] * 10)
    make_overdue(store.redis, job.id, 0)
    store.leases.reap(LANE)
    assert [ticket.chunk for ticket in store.leases.dispatch(LANE)] == [0]
    assert store.leases.claim(job.id, 0, "v").attempt == 2


def test_a_message_is_published_for_each_chunk_that_is_wanted_and_none_twice(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 50)
    assert publish_messages(store.leases, LANE, job.chunks) == store.settings.window
    assert publish_messages(store.leases, LANE, job.chunks) == reap(store.leases, LANE) == 0
    assert take_messages(store.redis) == ["fake"] * store.settings.window
    # All were lost.
    assert reap(store.leases, LANE) == store.settings.chunks_in_flight
    work_off(store, 50)
    take_messages(store.redis)
    assert reap(store.leases, LANE) == publish_messages(store.leases, LANE, 1) == 0


def test_what_another_process_has_reaped_already_is_left_alone(store: JobStore, blobs: Blobs) -> None:
    job, _ = begin(store, blobs, ["x"])
    store.leases._reap(LANE, [f"{job.id}:0".encode()])
    assert store.chunk_table(job.id)[0].state == "claimed"


def test_the_chunk_of_a_worker_that_died_before_it_claimed_waits_again(store: JobStore, blobs: Blobs) -> None:
    outlive_restart_grace(store)
    job = submit(store, blobs, ["x"])
    store.leases.dispatch(LANE)
    make_overdue(store.redis, job.id, 0)
    store.leases.reap(LANE)
    assert store.chunk_table(job.id)[0].state == "pending"
    assert [ticket.chunk for ticket in store.leases.dispatch(LANE)] == [0]


def test_jobs_that_an_earlier_version_put_in_line_get_their_turn(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"])
    for key in (keys.lane_ready(LANE), keys.lane_turns(LANE, "default")):
        store.redis.delete(key)
    store.redis.zadd(keys.lane_earlier_turns(LANE), {job.id: 1})
    store.leases.reap(LANE)
    assert store.redis.exists(keys.lane_earlier_turns(LANE)) == 0
    assert work_off(store, 1) == [job.id]


def test_what_is_left_of_a_vanished_job_is_swept_out(store: JobStore, blobs: Blobs) -> None:
    outlive_restart_grace(store)
    gone, waiting = submit(store, blobs, ["x"] * 4), submit(store, blobs, ["y"] * 20)
    store.leases.dispatch(LANE)
    store.redis.delete(keys.job(gone.id), keys.job_chunks(gone.id), keys.job_pending(gone.id))
    for entry in store.redis.zrange(keys.lane_inflight(LANE), 0, -1):
        make_overdue(store.redis, *entry.decode().rsplit(":", 1))
    store.leases.reap(LANE)
    store.leases.dispatch(LANE)
    assert {entry.split(b":")[0] for entry in store.redis.zrange(keys.lane_inflight(LANE), 0, -1)} == {
        waiting.id.encode()
    }


def test_nothing_is_reaped_just_after_the_server_came_back(store: JobStore, blobs: Blobs, settings: Settings) -> None:
    patient = JobStore(store.redis, settings.model_copy(update={"lease_s": 10_000.0}))
    job, claim = begin(store, blobs, ["x"])
    make_overdue(store.redis, job.id, 0)
    patient.leases.reap(LANE)
    assert store.chunk_table(job.id)[0].state == "claimed"
    assert store.leases.heartbeat(claim, 1) is False


# -- jobs that may not begin yet


def reach(redis: Redis, job_id: str) -> None:
    """Let the time come before which the job may not begin."""
    redis.hset(keys.job(job_id), "not_before_ms", 1)
    assert redis.zadd(keys.lane_later(LANE), {job_id: 1}, xx=True, ch=True) == 1


def test_a_job_has_no_turn_before_its_time(store: JobStore, blobs: Blobs, redis: Redis) -> None:
    job = submit(store, blobs, ["a", "b", "c"], begin_in_s=3600)
    store.leases.reap(LANE)
    assert store.leases.dispatch(LANE) == []
    assert store.get(job.id).not_before == pytest.approx(job.created_at + 3600)
    assert_expiry(redis)
    reach(redis, job.id)
    store.leases.reap(LANE)
    assert redis.zcard(keys.lane_later(LANE)) == 0
    run_out(store)
    assert audit(store, blobs, job.id).state is JobState.SUCCEEDED


def test_a_job_that_is_paused_when_its_time_comes_waits_for_its_owner(
    store: JobStore, blobs: Blobs, redis: Redis
) -> None:
    job = submit(store, blobs, ["a"], begin_in_s=3600)
    store.pause(job.id)
    reach(redis, job.id)
    store.leases.reap(LANE)
    assert store.leases.dispatch(LANE) == []
    store.resume(job.id)
    assert [ticket.job_id for ticket in store.leases.dispatch(LANE)] == [job.id]


def test_resuming_or_putting_first_does_not_begin_a_job_before_its_time(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["a"], begin_in_s=3600)
    store.pause(job.id)
    store.resume(job.id)
    store.run_first(job.id)
    assert store.leases.dispatch(LANE) == []


@pytest.mark.parametrize("end", ["cancel", "delete", "expire"])
def test_a_job_that_ends_before_its_time_leaves_nothing(store: JobStore, blobs: Blobs, redis: Redis, end: str) -> None:
    job = submit(store, blobs, ["a"], begin_in_s=3600, deadline_in_s=7200)
    if end == "expire":
        redis.hset(keys.job(job.id), "deadline_ms", 1)
        redis.zadd(keys.lane_deadlines(LANE), {job.id: 1})
        store.leases.reap(LANE)
        assert store.get(job.id).state is JobState.EXPIRED
    else:
        getattr(store, end)(job.id)
    assert redis.zcard(keys.lane_later(LANE)) == redis.zcard(keys.lane_deadlines(LANE)) == 0


def test_a_clock_of_redis_that_steps_back_an_hour_holds_no_lease_for_that_hour(
    store: JobStore, blobs: Blobs, settings: Settings
) -> None:
    """All times that were noted are an hour ahead then."""
    job, _ = begin(store, blobs, ["x"] * 2)
    outlive_restart_grace(store)
    entry = f"{job.id}:0"
    store.redis.zincrby(keys.lane_inflight(LANE), 3_600_000, entry)
    store.redis.hincrby(keys.job(job.id), "turn_ms", 3_600_000)
    store.leases.reap(LANE)
    now_ms = float(store.redis.time()[0]) * 1000
    held_ms = float(store.redis.zscore(keys.lane_inflight(LANE), entry) or 0) - now_ms
    assert held_ms <= (settings.lease_s + settings.pass_timeout_s + 2) * 1000
    lapse(store, job.id)
    # The wait of the job counts as none, and its next turn costs what it costs.
    before = float(store.redis.hget(keys.job(job.id), "vtime") or 0)
    assert store.leases.dispatch(LANE)
    assert float(store.redis.hget(keys.job(job.id), "vtime") or 0) > before
    run_out(store)
