"""What a user may do with a job and read of it, on a real server."""

import threading
import time

import orjson
import pytest

from tasks import keys
from tasks.engine import JobParams
from tasks.errors import Conflict, NotFound
from tasks.jobs.blobs import Blobs
from tasks.jobs.claims import ClaimCode, Completed
from tasks.jobs.forecast import Forecasts, JobShare
from tasks.jobs.job import Counts, JobState
from tasks.jobs.origin import Origin, set_origin
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
    work_off,
)

# -- moves of a user


def test_cancelling_drops_what_waits_and_keeps_what_is_done(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 20)
    store.leases.dispatch(LANE)
    done, held = store.leases.claim(job.id, 0, "w"), store.leases.claim(job.id, 1, "w")
    store.leases.complete(done, make_completion(done))
    assert store.cancel(job.id).state is JobState.CANCELLING
    assert store.cancel(job.id).state is JobState.CANCELLING
    assert store.leases.dispatch(LANE) == []
    store.leases.release(held)
    cancelled = audit(store, blobs, job.id)
    assert (cancelled.state, cancelled.counts) == (JobState.CANCELLED, Counts(20, 2))
    assert [chunk.state for chunk in store.chunk_table(job.id)] == ["done"] + ["dropped"] * 9
    assert store.cancel(job.id) == cancelled


def test_a_claim_may_finish_while_its_job_is_cancelled(store: JobStore, blobs: Blobs) -> None:
    job, claim = begin(store, blobs, ["x"] * 20)
    store.cancel(job.id)
    assert store.leases.complete(claim, make_completion(claim)) is Completed.OK
    assert audit(store, blobs, job.id).counts == Counts(20, 2)


def test_a_job_whose_workers_are_all_dead_is_cancelled_when_their_leases_have_run_out(
    store: JobStore, blobs: Blobs
) -> None:
    outlive_restart_grace(store)
    job, _ = begin(store, blobs, ["x"])
    assert store.cancel(job.id).state is JobState.CANCELLING
    make_overdue(store.redis, job.id, 0)
    # Nobody reaps; reading the job is enough.
    assert store.get(job.id).state is JobState.CANCELLED


def test_an_ended_job_cannot_be_moved(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"])
    run_out(store)
    for move in (store.cancel, store.pause, store.resume, store.retry_failed):
        with pytest.raises(Conflict):
            move(job.id)


def test_a_paused_job_lets_others_pass_and_goes_on_where_it_was(store: JobStore, blobs: Blobs) -> None:
    job, claim = begin(store, blobs, ["x"] * 8)
    assert store.pause(job.id).state is JobState.PAUSED
    other = submit(store, blobs, ["y"])
    assert [ticket.job_id for ticket in store.leases.dispatch(LANE)] == [other.id]
    assert store.leases.claim(job.id, 1, "w").code is ClaimCode.STOP
    store.leases.release(claim)
    assert store.resume(job.id).state is JobState.RUNNING
    assert [ticket.chunk for ticket in store.leases.dispatch(LANE)] == [0, 1]
    assert store.leases.claim(job.id, 0, "w").attempt == 1
    store.cancel(job.id)


def test_a_job_ends_at_its_deadline(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 8, deadline_in_s=0.001)
    ended = store.wait(job.id, "default", job.version, 5)
    assert ended.state is JobState.EXPIRED
    audit(store, blobs, job.id)


def test_the_reaper_ends_a_job_at_its_deadline_when_its_claims_are_over(store: JobStore, blobs: Blobs) -> None:
    outlive_restart_grace(store)
    job, claim = begin(store, blobs, ["x"] * 8, deadline_in_s=1000)
    store.redis.hset(keys.job(job.id), "deadline_ms", 1)
    store.redis.zadd(keys.lane_deadlines(LANE), {job.id: 1})
    store.leases.reap(LANE)
    assert store.leases.heartbeat(claim, 1) is True
    store.leases.complete(claim, make_completion(claim))
    assert audit(store, blobs, job.id).state is JobState.EXPIRED


def test_only_the_failed_items_are_computed_again(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 6)
    claims = [store.leases.claim(job.id, ticket.chunk, "w") for ticket in store.leases.dispatch(LANE)]
    for claim in claims:
        store.leases.complete(claim, make_completion(claim, failed=1 if claim.chunk == 1 else 0))
    assert store.get(job.id).counts == Counts(6, 5, 1)
    again = store.retry_failed(job.id)
    assert (again.state, again.counts) == (JobState.RUNNING, Counts(6, 5, 0))
    # A message from before the retry must not pass for its result.
    assert store.leases.complete(claims[1], make_completion(claims[1])) is Completed.DUP
    assert [ticket.chunk for ticket in store.leases.dispatch(LANE)] == [1]
    claim = store.leases.claim(job.id, 1, "w")
    assert (claim.redo, claim.attempt, claim.pointer) == (True, 1, "redis")
    repeat = make_completion(claim)
    store.leases.complete(claim, type(repeat)(1, 0, 0, 3, repeat.frame, ""))
    assert audit(store, blobs, job.id).counts == Counts(6, 6, 0)


def test_a_retry_that_is_cancelled_leaves_the_job_as_it_was(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 6)
    for ticket in store.leases.dispatch(LANE):
        claim = store.leases.claim(job.id, ticket.chunk, "w")
        store.leases.complete(claim, make_completion(claim, failed=1))
    store.retry_failed(job.id)
    store.leases.dispatch(LANE)
    claim = store.leases.claim(job.id, 0, "w")
    store.cancel(job.id)
    store.leases.release(claim)
    assert audit(store, blobs, job.id).counts == Counts(6, 3, 3)


def test_a_deleted_job_is_gone_for_everybody(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 8, result_bytes=100, deadline_in_s=100)
    store.leases.dispatch(LANE)
    claim, held = store.leases.claim(job.id, 0, "w"), store.leases.claim(job.id, 1, "w")
    store.leases.complete(claim, make_completion(claim))
    blobs.delete(job.id, store.delete(job.id).chunks)
    with pytest.raises(NotFound):
        store.get(job.id)
    assert store.leases.heartbeat(held, 1) is True
    assert store.leases.complete(held, make_completion(held)) is Completed.GONE
    assert store.redis.keys(f"*{job.id}*") == []
    assert store.redis.zcard(keys.lane_inflight(LANE)) == 0
    assert store.listing.find("default") == []
    assert store.redis.hget(keys.store_reserved(), job.id) is None


# -- read


def test_another_tenants_job_is_not_found(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"], tenant="one")
    assert store.get(job.id, "one").tenant == "one"
    for read in (store.get, store.cancel, store.pause, store.resume, store.retry_failed, store.delete):
        with pytest.raises(NotFound):
            read(job.id, "other")
    assert store.listing.find("other") == []


def test_jobs_are_listed_newest_first_in_pages_without_the_expired(store: JobStore, blobs: Blobs) -> None:
    jobs = [submit(store, blobs, ["x"], id=f"job_{number}") for number in range(5)]
    store.redis.delete(keys.job(jobs[2].id))
    store.cancel(jobs[1].id)
    assert [job.id for job in store.listing.find("default", limit=2)] == ["job_4", "job_3"]
    assert [job.id for job in store.listing.find("default", limit=9, after="job_3")] == ["job_1", "job_0"]
    assert [job.id for job in store.listing.find("default", wanted=lambda job: job.state is JobState.CANCELLED)] == [
        "job_1"
    ]
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
    announced = Forecasts(store.redis, lambda _: 10.0, cache_s=0)
    assert announced.progress(job).tokens_per_s is None
    assert {announced.progress(job).position, announced.progress(behind).position} == {0, 1}
    drained_s = announced.backlog(LANE).drain_s()
    assert (
        announced.progress(job).eta_s == announced.progress(behind).eta_s == drained_s == 2 * job.estimated_tokens / 10
    )
    assert (
        announced.estimate_s(LANE, JobShare(1, 4, 0)) == 3 / 10
    )  # a small one has a third of the device until it ends
    assert announced.estimate_s(LANE, JobShare(10**6, 4, 0)) == (10**6 + 2 * job.estimated_tokens) / 10
    work_off(store, 6)
    progress = Forecasts(store.redis, lambda _: 0.0, cache_s=0).progress(store.get(job.id))
    assert progress.tokens_per_s is not None
    assert progress.eta_s is not None
    assert progress.tokens_per_s > 0
    assert progress.eta_s > 0


def test_without_a_speed_there_is_no_time_left_and_a_job_that_ended_has_the_speed_of_its_run(
    store: JobStore, blobs: Blobs
) -> None:
    forecasts = Forecasts(store.redis, lambda _: 0.0, cache_s=0)
    job = submit(store, blobs, ["x"] * 4)
    assert forecasts.progress(job).eta_s is None
    time.sleep(0.01)  # by the clock of Redis, which counts milliseconds
    run_out(store)
    speed = forecasts.progress(store.get(job.id)).tokens_per_s
    assert speed is None or speed > 0
    assert forecasts.backlog(LANE).drain_s() == 0


def test_the_log_of_a_job_says_what_happened_who_asked_and_in_which_request(store: JobStore, blobs: Blobs) -> None:
    set_origin(Origin("acme/ops", "req_1"))
    job = submit(store, blobs, ["x"] * 2)
    store.pause(job.id)
    store.resume(job.id)
    set_origin(Origin())
    store.leases.dispatch(LANE)
    claim = store.leases.claim(job.id, 0, "w-1")
    assert store.leases.fail(claim, "ValueError")
    store.leases.dispatch(LANE)
    store.leases.claim(job.id, 0, "w-2")
    lapse(store, job.id)
    run_out(store)
    log = store.listing.log(job.id)
    assert [event["event"] for event in log] == [
        *("created", "paused", "resumed", "started", "chunk_failed", "worker_lost", "succeeded")
    ]
    assert [(event.get("by"), event.get("request_id")) for event in log[:4]] == [("acme/ops", "req_1")] * 3 + [
        (None, None)
    ]
    assert (log[4]["worker"], log[4]["reason"], log[4]["chunk"]) == ("w-1", "ValueError", 0)
    assert (log[5]["worker"], log[5]["attempt"]) == ("w-2", 2)
    assert_expiry(store.redis)


def test_the_log_of_a_job_keeps_the_newest_lines(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"])
    for _ in range(120):
        store.pause(job.id)
        store.resume(job.id)
    log = store.listing.log(job.id)
    assert len(log) == 200
    assert log[-1]["event"] == "resumed"


def test_the_list_of_all_tenants_has_the_jobs_of_each_and_forgets_what_is_deleted(
    store: JobStore, blobs: Blobs
) -> None:
    mine, other = submit(store, blobs, ["x"]), submit(store, blobs, ["y"], tenant="other")
    assert {job.id for job in store.listing.find(None)} == {mine.id, other.id}
    assert set(store.listing.tenants()) == {"default", "other"}
    assert store.cancel(other.id, None).state is JobState.CANCELLED
    store.delete(other.id, None)
    assert [job.id for job in store.listing.find(None)] == [mine.id]


def test_the_chunk_table_is_read_in_parts(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 7)
    assert [chunk.start for chunk in store.chunk_table(job.id)] == [0, 2, 4, 6]
    assert [chunk.start for chunk in store.chunk_table(job.id, 1, 2)] == [2, 4]
    assert store.chunk_table(job.id, 4, 2) == []
    with pytest.raises(NotFound):
        store.chunk_table("job_never")
    assert orjson.loads(store.redis.hget(keys.job_chunks(job.id), "3"))["items"] == 1


def test_a_job_that_is_put_first_has_every_turn_until_it_is_done(store: JobStore, blobs: Blobs) -> None:
    long, urgent = submit(store, blobs, ["x"] * 40), submit(store, blobs, ["y"] * 40)
    submit(store, blobs, ["z"] * 40, tenant="other")
    assert work_off(store, 6).count(urgent.id) < 4
    store.run_first(urgent.id)
    assert store.listing.log(urgent.id)[-1]["event"] == "put_first"
    store.pause(urgent.id)
    store.resume(urgent.id)  # it keeps its place
    assert work_off(store, 16) == [urgent.id] * 16
    run_out(store)
    assert {store.get(job.id).state for job in (long, urgent)} == {JobState.SUCCEEDED}
    with pytest.raises(Conflict, match="put first"):
        store.run_first(urgent.id)


def test_a_retry_may_cut_what_was_too_long(store: JobStore, blobs: Blobs) -> None:
    job, claim = begin(store, blobs, ["x", "y"], params=JobParams(truncate="none"))
    store.leases.complete(claim, make_completion(claim, failed=1))
    assert store.retry_failed(job.id, truncate="end").params.truncate == "end"
    store.leases.dispatch(LANE)
    again = store.leases.claim(job.id, 0, "w")
    assert (again.params.truncate, again.redo) == ("end", True)
