"""Tickets: the window, turns between jobs, and what happens to the overdue, on a real server."""

from config.settings import Settings
from tasks import keys
from tasks.bulk.chunk_task import publish_tickets, reap
from tasks.jobs.blobs import Blobs
from tasks.jobs.job import Counts, JobState
from tasks.jobs.store import JobStore
from tests.support.job_maker import (
    LANE,
    audit,
    begin,
    make_completion,
    make_overdue,
    outlive_restart_grace,
    run_out,
    submit,
    take_tickets,
    work_off,
)

# -- 3: dispatch


def test_no_more_tickets_are_out_than_the_window_holds(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 20)
    assert [ticket.chunk for ticket in store.leases.dispatch(LANE)] == [0, 1, 2]
    assert store.leases.dispatch(LANE) == []
    claim = store.leases.claim(job.id, 1, "w")
    assert store.leases.dispatch(LANE) == []
    _, head = store.leases.complete(claim, make_completion(claim))
    assert head == job.id
    assert [ticket.chunk for ticket in store.leases.dispatch(LANE, head)] == [3]


def test_the_window_grows_with_the_ready_workers(store: JobStore, blobs: Blobs, settings: Settings) -> None:
    submit(store, blobs, ["x"] * 100)
    store.redis.zadd(keys.lane_workers("fake"), {"a": 2**50, "b": 2**50, "gone": 1})
    assert len(store.leases.dispatch(LANE)) == 2 * 2 * settings.chunks_in_flight


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
    run_out(store)
    assert audit(store, blobs, one.id).counts == Counts(5, 5)
    assert audit(store, blobs, other.id).counts == Counts(3, 3)


# -- 7: reap


def test_an_overdue_claim_goes_back_and_its_attempt_stays_counted(store: JobStore, blobs: Blobs) -> None:
    outlive_restart_grace(store)
    job, _ = begin(store, blobs, ["x"] * 10)
    make_overdue(store.redis, job.id, 0)
    assert store.leases.reap(LANE) == []
    assert [ticket.chunk for ticket in store.leases.dispatch(LANE)] == [0]
    assert store.leases.claim(job.id, 0, "v").attempt == 2


def test_the_chunk_of_a_dead_worker_goes_ahead_of_the_tickets_that_wait(store: JobStore, blobs: Blobs) -> None:
    outlive_restart_grace(store)
    job = submit(store, blobs, ["x"] * 50)
    publish_tickets(store.leases, LANE)
    waiting = take_tickets(store.redis)
    assert [chunk for _, chunk in waiting] == [0, 1, 2]
    store.leases.claim(job.id, 1, "w")
    make_overdue(store.redis, job.id, 1)
    # The tickets of 0 and 2 still wait; this is their second copy, behind which the first claim's chunk would stand.
    for chunk in (0, 2):
        make_overdue(store.redis, job.id, chunk)
    assert reap(store.leases, LANE) == 3
    assert take_tickets(store.redis)[0] == (job.id, 1)


def test_what_another_process_has_reaped_already_is_left_alone(store: JobStore, blobs: Blobs) -> None:
    job, _ = begin(store, blobs, ["x"])
    assert store.leases._reap(LANE, [f"{job.id}:0".encode()]) == []
    assert store.chunk_table(job.id)[0].state == "claimed"


def test_an_overdue_ticket_is_published_again_with_growing_delays(store: JobStore, blobs: Blobs) -> None:
    outlive_restart_grace(store)
    job = submit(store, blobs, ["x"])
    store.leases.dispatch(LANE)
    delays_s = []
    for _ in range(6):
        make_overdue(store.redis, job.id, 0)
        assert [ticket.chunk for ticket in store.leases.reap(LANE)] == [0]
        assert store.leases.reap(LANE) == []
        (_, until_ms) = store.redis.zrange(keys.lane_inflight(LANE), 0, -1, withscores=True)[0]
        delays_s.append(round(until_ms / 1000 - store.redis.time()[0], -1))
    assert delays_s == [40, 80, 160, 300, 300, 300]


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
    assert patient.leases.reap(LANE) == []
    assert store.leases.heartbeat(claim, 1) is False
