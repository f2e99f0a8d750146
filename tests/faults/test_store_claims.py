"""Claims: answers, leases, completions and the search for bad items, on a real server."""

import pytest

from config.settings import Settings
from tasks import keys
from tasks.jobs.blobs import Blobs
from tasks.jobs.claims import ClaimCode, Completed
from tasks.jobs.job import Counts, JobState
from tasks.jobs.store import JobStore
from tests.support.job_maker import LANE, audit, begin, lapse, make_completion, make_overdue, run_out, submit

# -- 4: claim


def test_a_claim_is_answered_by_what_became_of_the_chunk(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 20)
    assert store.leases.claim(job.id, 0, "w").code is ClaimCode.BUSY  # it has no ticket
    store.leases.dispatch(LANE)
    claim = store.leases.claim(job.id, 0, "w")
    assert (claim.code, claim.attempt, claim.items) == (ClaimCode.OK, 1, 2)
    assert store.leases.claim(job.id, 0, "v").code is ClaimCode.BUSY
    store.leases.complete(claim, make_completion(claim))
    assert store.leases.claim(job.id, 0, "v").code is ClaimCode.DONE
    store.cancel(job.id)
    assert store.leases.claim(job.id, 1, "v").code is ClaimCode.STOP
    store.delete(job.id)
    assert store.leases.claim(job.id, 2, "v").code is ClaimCode.GONE
    assert store.leases.claim("job_never", 0, "v").code is ClaimCode.GONE


def test_a_claim_starts_the_job(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"])
    store.leases.dispatch(LANE)
    assert store.get(job.id).state is JobState.QUEUED
    store.leases.claim(job.id, 0, "w")
    running = store.get(job.id)
    assert running.state is JobState.RUNNING
    assert running.started_at is not None
    assert running.version > job.version


def test_a_chunk_that_ends_worker_after_worker_without_a_culprit_is_given_up_at_last(
    store: JobStore, blobs: Blobs, settings: Settings
) -> None:
    job = submit(store, blobs, ["x"])
    codes = []
    for _ in range(settings.max_attempts * 10 + 1):
        store.leases.dispatch(LANE)
        codes.append(store.leases.claim(job.id, 0, "w").code)
        lapse(store, job.id)
    assert codes == [ClaimCode.OK] * settings.max_attempts * 10 + [ClaimCode.POISON]


# -- 5: heartbeat


def test_a_heartbeat_renews_the_lease_only_when_work_has_moved(store: JobStore, blobs: Blobs) -> None:
    job, claim = begin(store, blobs, ["x"])
    entry = f"{job.id}:0"
    for progress, renewed in [(0, False), (1, True), (1, False), (5, True), (4, False)]:
        store.redis.zadd(keys.lane_inflight(LANE), {entry: 1})
        assert store.leases.heartbeat(claim, progress) is False
        assert (store.redis.zscore(keys.lane_inflight(LANE), entry) != 1) is renewed


def test_the_heartbeat_of_a_lost_claim_says_stop_and_renews_nothing(store: JobStore, blobs: Blobs) -> None:
    job, old = begin(store, blobs, ["x"])
    lapse(store, job.id)
    store.leases.dispatch(LANE)
    new = store.leases.claim(job.id, 0, "v")
    make_overdue(store.redis, job.id, 0)
    assert store.leases.heartbeat(old, 9) is True
    assert store.leases.mark(old, [0]) is True
    assert store.redis.zscore(keys.lane_inflight(LANE), f"{job.id}:0") == 1
    assert store.leases.heartbeat(new, 1) is False


@pytest.mark.parametrize("move", ["cancel", "pause"])
def test_a_heartbeat_says_stop_when_the_job_does(store: JobStore, blobs: Blobs, move: str) -> None:
    job, claim = begin(store, blobs, ["x"])
    getattr(store, move)(job.id)
    assert store.leases.heartbeat(claim, 1) is True


# -- 6: complete


def test_the_last_completion_ends_the_job_and_leaves_nothing_behind(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["a", "b", "c"], result_bytes=99)
    run_out(store)
    ended = audit(store, blobs, job.id)
    assert (ended.state, ended.counts, ended.tokens) == (JobState.SUCCEEDED, Counts(3, 3), 9)
    assert blobs.get_input(job.id, 0) is None
    assert store.redis.hget(keys.store_reserved(), "total") == b"0"


def test_a_late_result_counts_if_nobody_was_faster(store: JobStore, blobs: Blobs) -> None:
    job, old = begin(store, blobs, ["x"])
    lapse(store, job.id)
    assert store.leases.complete(old, make_completion(old)) is Completed.OK
    assert store.leases.dispatch(LANE) == []
    audit(store, blobs, job.id)


def test_a_late_result_takes_the_chunk_from_whoever_holds_it_since(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 6)
    store.leases.dispatch(LANE)
    old, held = store.leases.claim(job.id, 0, "w"), store.leases.claim(job.id, 1, "w")
    lapse(store, job.id)
    store.leases.complete(old, make_completion(old))
    # The claim that was taken back is not counted off a second time.
    assert store.cancel(job.id).state is JobState.CANCELLING
    assert store.leases.release(old) is False
    assert store.leases.fail(old, "ValueError") is False
    assert store.get(job.id).state is JobState.CANCELLING
    store.leases.release(held)
    assert audit(store, blobs, job.id).counts == Counts(6, 2)


def test_who_lost_a_claim_cannot_give_it_back(store: JobStore, blobs: Blobs) -> None:
    job, old = begin(store, blobs, ["x"])
    lapse(store, job.id)
    store.leases.dispatch(LANE)
    new = store.leases.claim(job.id, 0, "v")
    assert store.leases.release(old) is False
    assert store.leases.claim(job.id, 0, "u").code is ClaimCode.BUSY
    assert store.leases.heartbeat(new, 1) is False


def test_of_two_results_the_first_one_counts(store: JobStore, blobs: Blobs) -> None:
    job, frozen = begin(store, blobs, ["x", "y"])
    lapse(store, job.id)
    store.leases.dispatch(LANE)
    other = store.leases.claim(job.id, 0, "v")
    assert store.leases.complete(other, make_completion(other)) is Completed.OK
    assert store.leases.complete(frozen, make_completion(frozen, failed=2)) is Completed.DUP
    assert audit(store, blobs, job.id).counts == Counts(2, 2)


def test_a_job_fails_only_if_nothing_could_be_computed(store: JobStore, blobs: Blobs) -> None:
    half, none = submit(store, blobs, ["a"] * 4), submit(store, blobs, ["b"] * 4)
    for ticket in [*store.leases.dispatch(LANE), *store.leases.dispatch(LANE)]:
        claim = store.leases.claim(ticket.job_id, ticket.chunk, "w")
        failed = 2 if ticket.job_id == none.id or ticket.chunk == 0 else 0
        store.leases.complete(claim, make_completion(claim, failed=failed))
    for ticket in store.leases.dispatch(LANE):
        claim = store.leases.claim(ticket.job_id, ticket.chunk, "w")
        store.leases.complete(claim, make_completion(claim, failed=2 if ticket.job_id == none.id else 0))
    assert audit(store, blobs, half.id).state is JobState.SUCCEEDED
    failed_job = audit(store, blobs, none.id)
    assert (failed_job.state, failed_job.error) == (JobState.FAILED, "item 0: bad")


# -- 8: poison


def crash(store: JobStore, job_id: str) -> None:
    lapse(store, job_id)
    store.leases.dispatch(LANE)


def test_an_item_that_was_alone_on_the_device_in_two_deaths_is_the_culprit(store: JobStore, blobs: Blobs) -> None:
    job, _ = begin(store, blobs, ["x"] * 9, chunk_items=9)
    crash(store, job.id)
    second = store.leases.claim(job.id, 0, "w")
    assert second.suspects == ()
    store.leases.mark(second, [3])
    store.leases.mark(second, [7])
    crash(store, job.id)
    third = store.leases.claim(job.id, 0, "w")
    assert (third.suspects, third.poison) == ((7,), ())
    store.leases.mark(third, [7])
    crash(store, job.id)
    fourth = store.leases.claim(job.id, 0, "w")
    assert (fourth.suspects, fourth.poison) == ((), (7,))
    store.leases.complete(fourth, make_completion(fourth, failed=1))
    store.retry_failed(job.id)
    store.leases.dispatch(LANE)
    assert store.leases.claim(job.id, 0, "w").poison == ()


def test_a_chunk_whose_workers_are_killed_at_random_moments_has_no_culprit(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 9, chunk_items=9)
    store.leases.dispatch(LANE)
    for killed_at in [4, 2, 7, 2, 4, 8, 1, 2, 6, 5]:
        claim = store.leases.claim(job.id, 0, "w")
        assert claim.poison == ()
        # Suspects come early in the plan, and a worker that gets past them clears them.
        for position in [*claim.suspects, *range(killed_at + 1)]:
            store.leases.mark(claim, [position])
        crash(store, job.id)
    assert store.leases.claim(job.id, 0, "w").poison == ()


def test_a_group_that_died_accuses_its_items_but_convicts_none(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"] * 9, chunk_items=9)
    store.leases.dispatch(LANE)
    for _ in range(3):
        claim = store.leases.claim(job.id, 0, "w")
        store.leases.mark(claim, [1, 2])
        crash(store, job.id)
    claim = store.leases.claim(job.id, 0, "w")
    assert (claim.suspects, claim.poison) == ((1, 2), ())
    store.leases.mark(claim, [1])
    store.leases.mark(claim, [2])
    crash(store, job.id)
    claim = store.leases.claim(job.id, 0, "w")
    assert (claim.suspects, claim.poison) == ((), (2,))
