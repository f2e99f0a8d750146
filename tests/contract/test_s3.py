"""Results and files in object storage, on a real S3 server over HTTP, and what a start says when it cannot be used."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from redis import Redis

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer, free_port
from tasks import keys
from tasks.bulk import chunk_task
from tasks.errors import ConfigError, StoreUnavailable
from tasks.files.store import FileStore, NewFile
from tasks.jobs.blobs import open_blobs
from tasks.jobs.store import JobStore
from tasks.storage.filesystem import check_storage
from tests.support.job_maker import LANE, audit, make_completion, submit
from tests.support.s3_server import BUCKET, S3Server, running_s3, use_s3
from tests.support.stack_fixture import clean_environment
from tests.support.web import opened_app, running_worker, services_of, settings_of, wait_for_end

URL = f"s3://{BUCKET}/twolane"
TEXTS = [f"text number {number}" for number in range(300)]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with running_s3() as server:
        yield server


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> None:
    use_s3(monkeypatch, s3)


@pytest.fixture
def on_s3(settings: Settings) -> Settings:
    # A root of its own for each test: the server is shared.
    root = f"{URL}/{settings.data_dir.parent.name}"
    changed: dict[str, Any] = {"results_url": root, "files_url": f"{root}-files", "results_inline_bytes": 100}
    return settings.model_copy(update={**changed, "lease_s": 0.5})


def test_a_job_with_results_on_s3_is_read_deleted_and_swept_like_any_other(
    server: EmbeddedServer, s3: S3Server, tmp_path: Path
) -> None:
    settings = settings_of(server, tmp_path, results_url=f"{URL}/whole", results_inline_bytes=0, chunk_items=50)
    with opened_app(settings) as app, running_worker(settings):
        client, live = app.test_client(), services_of(app)
        body = {"type": "embeddings", "model": "fake", "input": TEXTS}
        first, second = (client.post("/v1/jobs", json=body).json or {} for _ in range(2))
        for job in (first, second):
            assert wait_for_end(client, job["id"])["counts"]["completed"] == 300
        assert s3.list().count(f"{first['id']}/") == 6
        address = f"/v1/jobs/{first['id']}/results"
        lines = [json.loads(line) for line in client.get(f"{address}?format=ndjson").data.splitlines()]
        vectors = np.array([line["embedding"] for line in lines[:300]], np.float32)
        whole = client.get(f"{address}?format=npy")
        np.testing.assert_array_equal(np.load(io.BytesIO(whole.data)), vectors)
        part = client.get(f"{address}?format=npy", headers={"Range": "bytes=60000-60999"})
        assert (part.status_code, part.data) == (206, whole.data[60000:61000])
        live.blobs.delete(first["id"], live.store.delete(first["id"]).chunks)
        assert first["id"] not in s3.list()
        assert client.get(address).status_code == 404
        live.redis.delete(keys.job(second["id"]))
        live.redis.zadd(keys.store_orphans(), {second["id"]: 1})
        live.blobs.sweep(live.store.exists)
        assert s3.list().count("job_") == 0


def test_a_sweep_leaves_alone_what_is_not_named_like_a_job(redis: Redis, on_s3: Settings, s3: S3Server) -> None:
    store, blobs = JobStore(redis, on_s3), open_blobs(redis, on_s3)
    job = submit(store, blobs, ["x"] * 4, result_bytes=101)
    compute_all(store, blobs)
    audit(store, blobs, job.id)
    other = blobs._files.write(blobs._owner(), "backup-of-somebody", "0-1", b"precious")  # type: ignore[attr-defined]
    redis.delete(keys.job(job.id))
    redis.zadd(keys.store_orphans(), {job.id: 1})
    chunk_task.reap(store.leases, LANE)
    assert job.id not in s3.list()
    assert blobs.get_result("backup-of-somebody", 0, other) == b"precious"


def compute_all(store: JobStore, blobs: Any) -> None:
    for ticket in store.leases.dispatch(LANE):
        claim = store.leases.claim(ticket.job_id, ticket.chunk, "w")
        completion = make_completion(claim)
        store.leases.complete(claim, completion, blobs.stage_result(claim, completion.frame))


def test_files_on_s3_come_back_and_an_upload_that_is_given_up_leaves_no_parts(
    redis: Redis, on_s3: Settings, s3: S3Server
) -> None:
    files = FileStore(redis, on_s3)
    new = NewFile("ada", "in.jsonl", "batch", 3600)
    block = b"0123456789abcdef" * 65536
    with files.open_writer(new) as writer:
        for _ in range(20):
            writer.write(block)
        stored = writer.commit()
    with files.open(stored) as handle:
        assert handle.read() == block * 20
    with files.open_writer(new) as writer:
        for _ in range(20):
            writer.write(block)
        assert "<UploadId>" in s3.list("uploads")
    assert "<UploadId>" not in s3.list("uploads")
    assert writer.id not in s3.list()
    files.delete(stored.id, "ada")
    assert stored.id not in s3.list()


def test_readers_of_a_file_are_redirected_to_a_link_that_needs_no_key_of_theirs(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    settings = settings_of(server, tmp_path, files_url=f"{URL}/links", file_link_s=60)
    with opened_app(settings) as app:
        client = app.test_client()
        form = {"purpose": "batch", "file": (io.BytesIO(b'{"a": 1}\n'), "in.jsonl")}
        file = client.post("/v1/files", data=form).json or {}
        answer = client.get(f"/v1/files/{file['id']}/content")
        assert (answer.status_code, answer.headers["Cache-Control"]) == (302, "no-store")
        assert httpx.get(answer.headers["Location"]).content == b'{"a": 1}\n'
        assert client.get("/v1/files/file-none/content").status_code == 404


def test_a_storage_that_is_gone_costs_the_reader_a_503_and_the_chunk_no_attempt(
    redis: Redis, on_s3: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_s3() as other:
        use_s3(monkeypatch, other)
        settings = on_s3.model_copy(update={"results_url": f"{on_s3.results_url}-gone"})
        store, blobs = JobStore(redis, settings), open_blobs(redis, settings)
        job = submit(store, blobs, ["x"] * 4, result_bytes=101)
        first, second = (store.leases.claim(ticket.job_id, ticket.chunk, "w") for ticket in store.leases.dispatch(LANE))
        pointer = blobs.stage_result(first, b"frame")
    with pytest.raises(StoreUnavailable):
        blobs.get_result(job.id, 0, pointer)
    with pytest.raises(StoreUnavailable):
        blobs.stage_result(second, b"frame")
    # Neither of these may end the process that tidies up.
    blobs.discard(pointer)
    blobs.sweep(store.exists)


def test_a_missing_bucket_is_told_at_the_start(settings: Settings) -> None:
    missing = settings.model_copy(update={"results_url": "s3://nosuchbucket/x"})
    with pytest.raises(ConfigError, match=r"TWOLANE_RESULTS_URL=s3://nosuchbucket/x .*no such bucket"):
        check_storage(missing, files=False)


def test_missing_credentials_are_told_at_the_start(
    on_s3: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    elsewhere = on_s3.model_copy(update={"results_url": f"{on_s3.results_url}-anonymous"})
    with pytest.raises(ConfigError, match="no credentials"):
        check_storage(elsewhere, files=False)


def test_a_missing_driver_is_told_with_the_way_to_install_it(on_s3: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(ConfigError, match=r"twolane-server\[s3\]"):
        check_storage(on_s3, files=False)


def test_a_good_place_is_left_as_it_was(on_s3: Settings, s3: S3Server) -> None:
    check_storage(on_s3, files=True)
    assert ".twolane-" not in s3.list()


@pytest.mark.parametrize(("module", "setting"), [("app", "files_url"), ("workers.launch", "results_url")])
def test_no_process_starts_on_a_bucket_that_is_not_there(
    module: str, setting: str, server: EmbeddedServer, tmp_path: Path
) -> None:
    settings = {"data_dir": str(tmp_path), "port": str(free_port()), "models": "fake", "redis_url": server.url}
    environment = clean_environment(**settings, **{setting: "s3://nosuchbucket/x"})
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    output = (done.stdout + done.stderr).decode()
    assert done.returncode > 0
    assert "no such bucket" in output
    assert "Traceback" not in output
