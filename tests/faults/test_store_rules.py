"""The rules of the job state about creation and memory, on a real server."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.errors import IdempotencyMismatch, RateLimited, StoreFull, TooLarge
from tasks.jobs.blobs import Blobs
from tasks.jobs.claims import Claim, ClaimCode, Completed
from tasks.jobs.job import Counts, Idempotency, JobState, NewJob, StoreQuota, new_job_id
from tasks.jobs.records import read_claim
from tasks.jobs.store import JobStore
from tasks.jobs.transitions import ClaimScript, JobKeys, JobRef
from tasks.scripts import Scripts
from tests.support.job_maker import LANE, assert_expiry, audit, make_completion, run_out, submit

UPLOAD = JobRef("job_upload", LANE, "default")

# -- 1: safe to run twice, server's time, expiry at birth


def test_a_job_from_its_creation_to_its_end_has_no_key_without_expiry(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["a", "b", "c"], result_bytes=1000, deadline_in_s=60, idempotency=Idempotency("k", "h"))
    assert_expiry(store.redis)
    (first, second) = store.leases.dispatch(LANE)
    assert_expiry(store.redis)
    claim = store.leases.claim(job.id, first.chunk, "w")
    store.leases.mark(claim, [0])
    store.leases.release(claim)
    assert_expiry(store.redis)
    store.pause(job.id)
    store.resume(job.id)
    assert_expiry(store.redis)
    claim = store.leases.claim(job.id, second.chunk, "w")
    store.cancel(job.id)
    assert_expiry(store.redis)
    store.leases.complete(claim, make_completion(claim))
    audit(store, blobs, job.id)


def test_creating_the_same_job_twice_makes_one(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["a", "b", "c"])
    again = submit(store, blobs, ["a", "b", "c"], id=job.id)
    assert again == job
    assert store.redis.lrange(keys.job_pending(job.id), 0, -1) == [b"0", b"1"]


def test_a_claim_that_is_sent_twice_by_the_client_counts_one_attempt(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["a"])
    store.leases.dispatch(LANE)
    scripts, names = Scripts(store.redis), JobKeys.of(job, store.settings)
    call = ClaimScript(names, 0, "w", "nonce", lease_ms=1000, max_attempts=30, max_failures=3, fingerprint="")
    first, second = (read_claim(job.id, 0, scripts.call(call)) for _ in range(2))
    assert first == second
    assert store.chunk_table(job.id)[0].attempts == 1
    assert scripts.call(replace(call, nonce="other nonce")) == [b"BUSY"]


def test_a_completion_that_is_sent_twice_counts_once(store: JobStore, blobs: Blobs) -> None:
    job = submit(store, blobs, ["a", "b", "c"])
    ticket, _ = store.leases.dispatch(LANE)
    claim = store.leases.claim(ticket.job_id, ticket.chunk, "w")
    assert store.leases.complete(claim, make_completion(claim)) is Completed.OK
    once = store.get(job.id)
    assert store.leases.complete(claim, make_completion(claim)) is Completed.DUP
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
        run_out(store)
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
    frame = make_completion(Claim(ClaimCode.OK, "job_x", 0, items=2)).frame
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
    assert store.leases.dispatch(LANE) == []
    audit(store, blobs, job.id)


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
        store.check_room(UPLOAD, small_server)
    for number in range(10**6):
        if int(store.redis.info("memory")["used_memory"]) > 0.75 * small_server:
            break
        store.redis.set(f"filler {number}", b"x" * 2**16, ex=100)
    with pytest.raises(StoreFull) as refused:
        submit(store, blobs, ["x"])
    assert refused.value.retry_after_s > 0
    with pytest.raises(StoreFull):
        store.check_room(UPLOAD, 1)
    store.redis.config_set("maxmemory", small_server // 2)  # now nothing new fits at all
    with pytest.raises(StoreFull):
        submit(store, blobs, ["x"])
    run_out(store)
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
    ticket, _ = limited.leases.dispatch(LANE)
    claim = limited.leases.claim(ticket.job_id, ticket.chunk, "w")
    limited.leases.complete(claim, make_completion(claim))
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


# -- what one tenant may keep


def held(redis: Redis, tenant: str) -> dict[str, int]:
    return {name.decode(): int(count) for name, count in redis.hgetall(keys.tenant_held(tenant)).items()}


def test_what_a_job_keeps_is_counted_for_its_tenant_until_it_is_deleted(
    store: JobStore, blobs: Blobs, redis: Redis
) -> None:
    job = submit(store, blobs, ["x"] * 6, input_bytes=900, result_bytes=6000)
    other = submit(store, blobs, ["x"], input_bytes=10, result_bytes=20)
    assert held(redis, "default") == {job.id: 6900, other.id: 30, "total": 6930}
    tickets = store.leases.dispatch(LANE)
    claims = [store.leases.claim(ticket.job_id, ticket.chunk, "w") for ticket in tickets]
    for claim in (*claims, *claims):
        store.leases.complete(claim, make_completion(claim, failed=int(claim.job_id == job.id and claim.chunk == 0)))
    run_out(store)
    frames = sum(chunk.size_bytes for chunk in store.chunk_table(job.id))
    # The texts of the chunk with a failed item stay: it may be tried again.
    assert held(redis, "default")[job.id] == frames + 300
    store.retry_failed(job.id)
    run_out(store)
    frames = sum(chunk.size_bytes for chunk in store.chunk_table(job.id))
    assert held(redis, "default")[job.id] == frames
    assert_expiry(redis)
    store.delete(job.id)
    left = held(redis, "default")
    assert job.id not in left
    assert left["total"] == left[other.id]


def test_a_cancelled_job_keeps_no_place_for_results_that_will_not_come(
    store: JobStore, blobs: Blobs, redis: Redis
) -> None:
    job = submit(store, blobs, ["x"] * 2, input_bytes=100, result_bytes=5000)
    store.cancel(job.id)
    assert held(redis, "default") == {job.id: 100, "total": 100}


def test_a_job_beyond_its_tenants_quota_waits_until_another_one_is_deleted(store: JobStore, blobs: Blobs) -> None:
    small = {"quota": StoreQuota(1000), "result_bytes": 600}
    job = submit(store, blobs, ["x"], **small)
    with pytest.raises(RateLimited, match="600 bytes"):
        submit(store, blobs, ["x"], **small)
    with pytest.raises(TooLarge, match="1000"):
        submit(store, blobs, ["x"], quota=StoreQuota(1000), result_bytes=1001)
    submit(store, blobs, ["x"], tenant="other", **small)
    store.delete(job.id)
    submit(store, blobs, ["x"], **small)


def test_an_upload_counts_while_it_streams_and_not_when_it_is_given_up(
    store: JobStore, blobs: Blobs, redis: Redis
) -> None:
    small = {"quota": StoreQuota(1000), "result_bytes": 600}
    store.check_room(UPLOAD, 500, quota=StoreQuota(1000))
    with pytest.raises(RateLimited):
        submit(store, blobs, ["x"], **small)
    with pytest.raises(TooLarge):
        store.check_room(UPLOAD, 1100, quota=StoreQuota(1000))
    assert_expiry(redis)
    store.discard(UPLOAD)
    submit(store, blobs, ["x"], **small)


def test_one_tenant_leaves_room_for_others(store: JobStore, blobs: Blobs, small_server: int) -> None:
    size = {"result_bytes": small_server // 50, "quota": StoreQuota(fair=True)}

    def fill(tenant: str) -> int:
        """Create jobs until one is refused; the reservation is what takes the room."""
        for count in range(1000):
            try:
                submit(store, blobs, ["x"], tenant=tenant, **size)
            except RateLimited:
                return count
        raise AssertionError(tenant)

    first, second, third = fill("first"), fill("second"), fill("third")
    assert first > second > third >= 0
    assert second > 0


def test_what_expired_is_not_counted_any_more(store: JobStore, blobs: Blobs, redis: Redis) -> None:
    job = submit(store, blobs, ["x"], quota=StoreQuota(1000), result_bytes=900)
    redis.delete(keys.job(job.id), keys.job_chunks(job.id), keys.job_pending(job.id))
    redis.zadd(keys.tenant_held_until("default"), {job.id: 1})
    submit(store, blobs, ["x"], quota=StoreQuota(1000), result_bytes=900)
