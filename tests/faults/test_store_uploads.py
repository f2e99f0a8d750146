"""Uploads that go on, on a real server: every step may be replayed, and only one request adds at a time."""

from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.errors import Conflict, IdempotencyMismatch
from tasks.jobs.blobs import Blobs
from tasks.jobs.model import ChunkInput, ChunkRecord
from tasks.jobs.store import JobStore
from tasks.jobs.uploads import Position, Upload, UploadStore
from tasks.scripts import Scripts
from tests.support.job_maker import assert_expiry, submit


@pytest.fixture
def uploads(redis: Redis, settings: Settings) -> UploadStore:
    return UploadStore(redis, settings)


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every script is run twice, as a client does whose connection broke after the first time."""
    once = Scripts.call

    def twice(self: Scripts, *args: Any, **named: Any) -> Any:
        once(self, *args, **named)
        return once(self, *args, **named)

    monkeypatch.setattr(Scripts, "call", twice)


def add(uploads: UploadStore, upload: Upload, number: int) -> Upload:
    record = ChunkRecord(number, 2 * number, 2, 6)
    after = replace(
        upload, records=[*upload.records, record], position=Position(10 * (number + 1), 2 * (number + 1), b"\x01")
    )
    size = uploads.put("ada", "key", after, ChunkInput([f"{number}a", f"{number}b"]), upload.input_bytes)
    return replace(after, input_bytes=upload.input_bytes + size)


@pytest.mark.usefixtures("doubled")
def test_every_step_of_an_upload_may_be_replayed(uploads: UploadStore, redis: Redis, blobs: Blobs) -> None:
    upload = uploads.begin("ada", "key", "hash", "job_x")
    for number in range(3):
        upload = add(uploads, upload, number)
    found, left_s = uploads.get("ada", "key") or pytest.fail("it is gone")
    assert (found.items, found.position, found.input_bytes) == (6, upload.position, upload.input_bytes)
    assert 0 < left_s <= 6 * 3600
    assert [record.start for record in found.records] == [0, 2, 4]
    assert blobs.get_input("job_x", 2) == ChunkInput(["2a", "2b"])
    assert_expiry(redis)
    # The second run finds nothing: the caller leaves the chunks to the sweep.
    assert not uploads.end("ada", "key", upload.owner)
    assert uploads.get("ada", "key") is None


def test_only_the_last_to_come_adds_to_an_upload_and_ends_it(uploads: UploadStore, blobs: Blobs) -> None:
    first = add(uploads, uploads.begin("ada", "key", "hash", "job_x"), 0)
    second = uploads.take("ada", "key", "hash")
    assert second is not None
    assert replace(second, owner=first.owner) == replace(first, records=tuple(first.records))
    with pytest.raises(Conflict):
        add(uploads, first, 1)
    assert blobs.get_input("job_x", 1) is None
    assert not uploads.end("ada", "key", first.owner)
    add(uploads, second, 1)
    assert uploads.end("ada", "key", second.owner)


def test_two_that_begin_at_the_same_moment_do_not_mix(uploads: UploadStore) -> None:
    uploads.begin("ada", "key", "hash", "job_x")
    with pytest.raises(Conflict):
        uploads.begin("ada", "key", "hash", "job_y")


def test_an_upload_belongs_to_its_tenant_and_its_parameters(uploads: UploadStore) -> None:
    uploads.begin("ada", "key", "hash", "job_x")
    assert uploads.take("bob", "key", "hash") is None
    with pytest.raises(IdempotencyMismatch):
        uploads.take("ada", "key", "another hash")


def test_an_upload_takes_no_longer_than_a_day(uploads: UploadStore, redis: Redis) -> None:
    upload = uploads.begin("ada", "key", "hash", "job_x")
    name = keys.upload("ada", "key")
    redis.hincrby(name, "created_ms", -86_400_000 + 60_000)
    add(uploads, upload, 0)
    assert redis.ttl(name) <= 60
    # Its texts are swept after the record is gone, never before.
    assert redis.zscore(keys.store_uploads(), "job_x") > redis.time()[0] * 1000 + redis.pttl(name)  # type: ignore[operator, index]


def test_inputs_expire_with_their_job(store: JobStore, blobs: Blobs, redis: Redis) -> None:
    job = submit(store, blobs, ["x"] * 6)
    expiry = {redis.pexpiretime(keys.job_input(job.id, chunk)) for chunk in range(3)}
    assert expiry == {redis.pexpiretime(keys.job(job.id))}
