"""The end of a job is noted for its webhook in the step that ends it, whichever way it ends, and once."""

from typing import Any

import pytest
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.jobs.blobs import Blobs
from tasks.jobs.job import Job, JobState, Webhook
from tasks.jobs.outbox import Attempt, Outbox
from tasks.jobs.store import JobStore
from tests.support.job_maker import LANE, assert_expiry, lapse, make_completion, run_out, submit

HOOK = Webhook("https://example.com/hook", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_timeout_s": 0.05, "webhook_retry_s": 0.05})


@pytest.fixture
def outbox(redis: Redis, settings: Settings) -> Outbox:
    return Outbox(redis, settings)


def begin(store: JobStore, blobs: Blobs, **fields: Any) -> Job:
    return submit(store, blobs, ["a", "b", "c"], webhook=HOOK, **fields)


def check_noted(store: JobStore, outbox: Outbox, job: Job, event: str, number: int = 1) -> None:
    """The end waits, once, and can be taken once."""
    state = store.get(job.id).webhook
    assert state is not None
    assert (state.url, state.status, state.attempts) == (HOOK.url, "pending", 0)
    (taken,) = outbox.take(10)
    assert (taken.job.id, taken.webhook, taken.event, taken.number) == (job.id, HOOK, event, number)
    assert outbox.take(10) == []
    assert_expiry(store.redis)


def test_a_job_without_a_webhook_leaves_no_note(store: JobStore, blobs: Blobs, outbox: Outbox) -> None:
    job = submit(store, blobs, ["a"])
    run_out(store)
    assert store.get(job.id).webhook is None
    assert outbox.take(10) == []


def test_a_job_that_runs_has_nothing_to_tell(store: JobStore, blobs: Blobs, outbox: Outbox) -> None:
    job = begin(store, blobs)
    state = store.get(job.id).webhook
    assert state is not None
    assert state.status == "waiting"
    assert "whsec" not in repr(store.get(job.id))
    assert outbox.take(10) == []


def test_the_last_completion_notes_the_end_and_a_copy_of_it_does_not(
    store: JobStore, blobs: Blobs, outbox: Outbox
) -> None:
    job = begin(store, blobs)
    claims = [store.leases.claim(ticket.job_id, ticket.chunk, "w") for ticket in store.leases.dispatch(LANE)]
    for claim in (*claims, *claims):
        store.leases.complete(claim, make_completion(claim))
    check_noted(store, outbox, job, "succeeded")


def test_a_job_of_which_nothing_could_be_computed_notes_that_it_failed(
    store: JobStore, blobs: Blobs, outbox: Outbox
) -> None:
    job = begin(store, blobs)
    for ticket in store.leases.dispatch(LANE):
        claim = store.leases.claim(ticket.job_id, ticket.chunk, "w")
        store.leases.complete(claim, make_completion(claim, failed=claim.items))
    check_noted(store, outbox, job, "failed")


def test_a_cancelled_job_notes_its_end_when_its_last_claim_is_gone(
    store: JobStore, blobs: Blobs, outbox: Outbox
) -> None:
    job = begin(store, blobs)
    ticket = store.leases.dispatch(LANE)[0]
    claim = store.leases.claim(ticket.job_id, ticket.chunk, "w")
    for _ in range(2):
        store.cancel(job.id)
    assert outbox.take(10) == []
    store.leases.release(claim)
    check_noted(store, outbox, job, "cancelled")


def test_a_claim_that_died_in_a_cancelled_job_lets_the_reaper_note_its_end(
    store: JobStore, blobs: Blobs, outbox: Outbox
) -> None:
    job = begin(store, blobs)
    ticket = store.leases.dispatch(LANE)[0]
    store.leases.claim(ticket.job_id, ticket.chunk, "w")
    store.cancel(job.id)
    lapse(store, job.id, ticket.chunk)
    check_noted(store, outbox, job, "cancelled")


def test_a_job_whose_deadline_has_passed_notes_that_it_expired(store: JobStore, blobs: Blobs, outbox: Outbox) -> None:
    job = begin(store, blobs, deadline_in_s=0.001)
    store.leases.reap(LANE)
    assert store.get(job.id).state is JobState.EXPIRED
    check_noted(store, outbox, job, "expired")


def test_a_retried_job_forgets_the_end_that_was_not_told_and_notes_the_next_one(
    store: JobStore, blobs: Blobs, outbox: Outbox
) -> None:
    job = begin(store, blobs)
    for ticket in store.leases.dispatch(LANE):
        claim = store.leases.claim(ticket.job_id, ticket.chunk, "w")
        store.leases.complete(claim, make_completion(claim, failed=1))
    (first,) = outbox.take(10)
    store.retry_failed(job.id)
    assert store.redis.zcard(keys.webhooks_due("default")) == 0
    run_out(store)
    # The attempt for the first end comes back late: it says nothing of the second one.
    outbox.settle(first, Attempt(answer=204))
    check_noted(store, outbox, job, "succeeded", number=2)


def test_attempts_follow_each_other_with_growing_delays_and_end(
    store: JobStore, blobs: Blobs, outbox: Outbox, redis: Redis
) -> None:
    job = begin(store, blobs)
    run_out(store)
    delays_s, version = [], store.get(job.id).version
    for attempt in range(1, 9):
        redis.zadd(keys.webhooks_due("default"), {job.id: 1})
        redis.zadd(keys.webhook_tenants(), {"default": 1})
        (taken,) = outbox.take(10)
        assert taken.attempts == attempt - 1
        outbox.settle(taken, Attempt(answer=500, error="the receiver answered 500"))
        now = store.get(job.id)
        assert now.webhook is not None
        assert now.version > version
        assert (now.webhook.attempts, now.webhook.answer) == (attempt, 500)
        version = now.version
        if now.webhook.next_attempt_at is not None:
            delays_s.append(now.webhook.next_attempt_at - (now.webhook.last_attempt_at or 0))
    assert delays_s == pytest.approx([0.05 * step for step in (1, 60, 360, 1440, 3600, 7200, 10080)], abs=0.002)
    assert now.webhook.status == "failed"
    assert redis.zcard(keys.webhooks_due("default")) == 0
    assert_expiry(redis)


def test_tenants_take_turns_however_many_ends_one_of_them_has(
    store: JobStore, blobs: Blobs, outbox: Outbox, redis: Redis
) -> None:
    for tenant in ["many"] * 5 + ["few", "other"]:
        store.cancel(begin(store, blobs, tenant=tenant).id, tenant)
        redis.zadd(keys.webhook_tenants(), {tenant: 1})
    assert sorted(taken.job.tenant for taken in outbox.take(3)) == ["few", "many", "other"]
    assert outbox.take(1, {"many"}) == []
    assert [taken.job.tenant for taken in outbox.take(10)] == ["many"] * 4
    assert_expiry(redis)


def test_an_end_that_an_earlier_version_noted_is_sent(
    store: JobStore, blobs: Blobs, outbox: Outbox, redis: Redis
) -> None:
    job = begin(store, blobs)
    run_out(store)
    redis.delete(keys.webhook_tenants(), keys.webhooks_due("default"))
    redis.zadd(keys.webhooks_earlier(), {job.id: 1, "job_gone": 2})
    assert [taken.job.id for taken in outbox.take(10)] == [job.id]
    assert redis.exists(keys.webhooks_earlier()) == 0


def test_an_end_whose_job_is_gone_leaves_the_list(store: JobStore, blobs: Blobs, outbox: Outbox, redis: Redis) -> None:
    job = begin(store, blobs)
    run_out(store)
    redis.delete(keys.job(job.id))
    assert outbox.take(10) == []
    assert redis.zcard(keys.webhooks_due("default")) == 0
