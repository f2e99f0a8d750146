"""One job, one model: its chunks are computed by workers whose model has the fingerprint that it began with."""

from tasks import keys
from tasks.jobs.blobs import Blobs
from tasks.jobs.claims import ClaimCode, Completed
from tasks.jobs.job import Counts, JobState
from tasks.jobs.leases import Leases
from tasks.jobs.store import JobStore
from tests.support.job_maker import LANE, audit, begin, lapse, make_completion, submit


def worker(store: JobStore, fingerprint: str) -> Leases:
    return Leases(store.redis, store.settings, {"fake": fingerprint})


def test_the_first_claim_sets_the_fingerprint_and_another_model_is_refused(store: JobStore, blobs: Blobs) -> None:
    old, new = worker(store, "fake:a"), worker(store, "fake:b")
    job = submit(store, blobs, ["x"] * 6)
    store.leases.dispatch(LANE)
    claim = old.claim(job.id, 0, "old")
    assert (claim.code, store.get(job.id).fingerprint) == (ClaimCode.OK, "fake:a")
    assert new.claim(job.id, 1, "new").code is ClaimCode.MISFIT
    old.complete(claim, make_completion(claim))
    assert new.claim(job.id, 2, "new").code is ClaimCode.MISFIT
    assert store.get(job.id).fingerprint == "fake:a"


def test_a_job_of_which_nothing_was_computed_takes_the_model_that_is_there(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["x"], fingerprint="fake:a")
    store.leases.dispatch(LANE)
    assert worker(store, "fake:b").claim(job.id, 0, "new").code is ClaimCode.OK
    assert store.get(job.id).fingerprint == "fake:b"


def test_a_job_that_no_worker_fits_says_so_holds_up_no_other_and_goes_on_when_one_comes(
    store: JobStore, blobs: Blobs
) -> None:
    old, new = worker(store, "fake:a"), worker(store, "fake:b")
    job = submit(store, blobs, ["x"] * 40)
    tickets = store.leases.dispatch(LANE)
    done = old.claim(job.id, 0, "old")
    old.complete(done, make_completion(done))
    for ticket in [*tickets[1:], *new.dispatch(LANE)]:
        assert new.claim(ticket.job_id, ticket.chunk, "new").code is ClaimCode.MISFIT
    assert store.get(job.id).waits_for_model
    # It takes no place in the lane's window, and waits without losing anything.
    new.reap(LANE)
    assert new.dispatch(LANE) == []
    assert store.redis.zcard(keys.lane_inflight(LANE)) == 0
    other = submit(store, blobs, ["y"] * 2)
    assert [ticket.job_id for ticket in new.dispatch(LANE)] == [other.id]
    claim = new.claim(other.id, 0, "new")
    new.complete(claim, make_completion(claim))
    old.reap(LANE)
    assert not store.get(job.id).waits_for_model
    while taken := old.dispatch(LANE):
        for ticket in taken:
            claim = old.claim(ticket.job_id, ticket.chunk, "old")
            old.complete(claim, make_completion(claim))
    ended = audit(store, blobs, job.id)
    assert (ended.state, ended.counts) == (JobState.SUCCEEDED, Counts(40, 40))
    assert audit(store, blobs, other.id).fingerprint == "fake:b"


def test_a_late_result_of_another_model_is_not_taken(store: JobStore, blobs: Blobs) -> None:
    old, new = worker(store, "fake:a"), worker(store, "fake:b")
    job = submit(store, blobs, ["x"])
    store.leases.dispatch(LANE)
    frozen = old.claim(job.id, 0, "old")
    lapse(store, job.id)
    store.leases.dispatch(LANE)
    claim = new.claim(job.id, 0, "new")
    assert (claim.code, store.get(job.id).fingerprint) == (ClaimCode.OK, "fake:b")
    assert old.complete(frozen, make_completion(frozen)) is Completed.DUP
    assert new.complete(claim, make_completion(claim)) is Completed.OK
    assert audit(store, blobs, job.id).fingerprint == "fake:b"


def test_failed_items_are_tried_again_by_the_same_model_only(store: JobStore, blobs: Blobs) -> None:
    old, new = worker(store, "fake:a"), worker(store, "fake:b")
    job = submit(store, blobs, ["x"] * 2)
    store.leases.dispatch(LANE)
    claim = old.claim(job.id, 0, "old")
    old.complete(claim, make_completion(claim, failed=1))
    store.retry_failed(job.id)
    store.leases.dispatch(LANE)
    assert new.claim(job.id, 0, "new").code is ClaimCode.MISFIT


def test_a_job_that_waits_for_its_model_can_be_paused_cancelled_and_deleted(store: JobStore, blobs: Blobs) -> None:
    old, new = worker(store, "fake:a"), worker(store, "fake:b")

    def park() -> str:
        job = submit(store, blobs, ["x"] * 6)
        store.leases.dispatch(LANE)
        claim = old.claim(job.id, 0, "old")
        old.complete(claim, make_completion(claim))
        assert new.claim(job.id, 1, "new").code is ClaimCode.MISFIT
        return job.id

    paused = park()
    assert store.pause(paused).state is JobState.PAUSED
    old.reap(LANE)
    assert store.get(paused).state is JobState.PAUSED
    store.resume(paused)
    assert paused in [ticket.job_id for ticket in old.dispatch(LANE)]
    store.cancel(paused)
    cancelled = park()
    assert store.cancel(cancelled).state is JobState.CANCELLED
    audit(store, blobs, cancelled)
    store.delete(park())
    assert store.redis.zcard(keys.lane_misfits(LANE)) == 0


def test_a_worker_that_names_no_fingerprint_is_asked_for_none(store: JobStore, blobs: Blobs) -> None:
    _, claim = begin(store, blobs, ["x"], fingerprint="fake:a")
    assert claim.code is ClaimCode.OK
