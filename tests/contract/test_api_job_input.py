"""Where the items of a job come from: an uploaded file, and uploads that are sent again under one key."""

import gzip
import json
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks import keys
from tests.support import batch_requests
from tests.support.web import NDJSON, services_of, settings_of, wait_for_end

LINES = b"".join(json.dumps({"id": f"p{i}", "text": f"passage number {i}"}).encode() + b"\n" for i in range(300))


@pytest.fixture(scope="module")
def settings_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_of(
        server, tmp_path_factory.mktemp("data"), chunk_items=100, max_line_bytes=2400, max_text_chars=100
    )


def upload(client: FlaskClient, body: bytes) -> dict[str, Any]:
    file: dict[str, Any] = batch_requests.upload(client, body).json
    return file


def submit(client: FlaskClient, **fields: Any) -> Any:
    headers = fields.pop("headers", {})
    return client.post("/v1/jobs", json={"type": "embeddings", "model": "fake", **fields}, headers=headers)


def results(client: FlaskClient, job: dict[str, Any]) -> list[dict[str, Any]]:
    page: dict[str, Any] = client.get(f"/v1/jobs/{job['id']}/results?limit=1000").json or {}
    rows: list[dict[str, Any]] = page["data"]
    return rows


def send(client: FlaskClient, body: bytes, key: str, **options: Any) -> Any:
    headers = {"Idempotency-Key": key}
    return client.post("/v1/jobs?model=fake", data=body, content_type=NDJSON, headers=headers, **options)


def job_keys(server: EmbeddedServer) -> set[bytes]:
    with Redis.from_url(server.url) as redis:
        return {key for key in redis.scan_iter(count=1000) if b"{job_" in key}


def test_ids_are_reserved_with_the_results_that_bring_them_back(client: FlaskClient, server: EmbeddedServer) -> None:
    reserved = []
    for long_id in ("", "x" * 500):
        lines = b"".join(
            json.dumps({"text": f"t{i}", "id": f"{long_id}{i}" if long_id else None}).encode() + b"\n"
            for i in range(200)
        )
        job = send(client, lines, f"ids {len(long_id)}").json
        with Redis.from_url(server.url) as redis:
            reserved.append(int(redis.hget(keys.job(job["id"]), "result_bytes") or 0))
    assert reserved[1] - reserved[0] > 200 * 500


# -- a file


def test_a_job_takes_its_items_from_an_uploaded_file(client: FlaskClient) -> None:
    answer = submit(client, input_file_id=upload(client, LINES)["id"])
    assert answer.status_code == 202, answer.json
    job = wait_for_end(client, answer.json["id"])
    assert job["counts"]["completed"] == 300
    direct = wait_for_end(client, (send(client, LINES, "direct").json or {})["id"])
    assert results(client, job) == results(client, direct)
    assert results(client, job)[7]["id"] == "p7"


def test_a_small_file_is_answered_at_once(client: FlaskClient) -> None:
    answer = submit(client, input_file_id=upload(client, b'"a"\n"b"\n')["id"])
    assert (answer.status_code, len(answer.json["results"])) == (200, 2)


def test_a_ranking_takes_documents_and_queries_from_a_file(client: FlaskClient) -> None:
    lines = b'{"text": "a"}\n{"text": "b", "query": "other"}\n'
    body = {"type": "rerank", "input_file_id": upload(client, lines)["id"]}
    answer = submit(client, **body, query="q")
    assert (answer.status_code, answer.json["counts"]["completed"]) == (200, 2)
    missing = submit(client, **body)
    assert (missing.status_code, missing.json["error"]["param"]) == (400, "line 1")


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (b"{", "line 301"),
        (b'{"id": 1}', "line 301"),
        (b'{"id": "\\ud800", "text": "a"}', "line 301"),
        (b'"' + b"x" * 2400 + b'"', "line 301"),
    ],
)
def test_a_bad_line_of_a_file_is_named_and_nothing_stays(
    client: FlaskClient, server: EmbeddedServer, bad: bytes, param: str
) -> None:
    file = upload(client, LINES + bad)
    known = job_keys(server)
    answer = submit(client, input_file_id=file["id"])
    assert (answer.status_code, answer.json["error"]["param"]) == (400, param)
    assert job_keys(server) == known


def test_a_file_that_is_not_there_or_empty_or_not_alone_is_refused(client: FlaskClient) -> None:
    assert submit(client, input_file_id="file-nothing").status_code == 404
    assert submit(client, input_file_id="../../etc/passwd").status_code == 404
    assert submit(client, input_file_id=upload(client, b"\n\n")["id"]).status_code == 400
    assert submit(client, input_file_id=upload(client, LINES)["id"], input=["a"]).status_code == 400


def test_a_file_may_be_deleted_when_its_job_was_taken_and_the_key_still_stands_for_the_job(
    client: FlaskClient,
) -> None:
    file, key = upload(client, LINES), {"Idempotency-Key": "the key of a file"}
    first = submit(client, input_file_id=file["id"], headers=key)
    assert client.delete(f"/v1/files/{file['id']}").status_code == 200
    again = submit(client, input_file_id=file["id"], headers=key)
    assert (first.status_code, again.json["id"]) == (202, first.json["id"])
    assert wait_for_end(client, first.json["id"])["counts"]["completed"] == 300
    other = submit(client, input_file_id=file["id"] + "x", headers=key)
    assert (other.status_code, other.json["error"]["code"]) == (422, "idempotency_mismatch")


def test_a_dry_run_of_a_file_counts_its_items(client: FlaskClient) -> None:
    body = {"type": "embeddings", "model": "fake", "input_file_id": upload(client, LINES)["id"]}
    assert (client.post("/v1/jobs?dry_run=true", json=body).json or {})["items"] == 300


@pytest.mark.parametrize(
    "kind",
    ["application/ndjson", "application/jsonl", "application/jsonlines", "application/x-jsonlines", "text/jsonl",
     "Application/X-NDJSON; charset=utf-8"],
)  # fmt: skip
def test_all_names_of_line_by_line_json_are_known(client: FlaskClient, kind: str) -> None:
    answer = client.post("/v1/jobs?model=fake", data=b'"a"\n"b"\n', content_type=kind)
    assert (answer.status_code, len((answer.json or {})["results"])) == (200, 2), answer.json


def test_two_gzip_files_put_together_are_read_whole(client: FlaskClient) -> None:
    body = gzip.compress(LINES) + gzip.compress(b'{"id": "last", "text": "one more"}\n') + bytes(512)
    answer = client.post("/v1/jobs?model=fake", data=body, content_type=NDJSON, headers={"Content-Encoding": "gzip"})
    job = wait_for_end(client, (answer.json or {})["id"])
    assert job["counts"]["completed"] == 301
    assert results(client, job)[300]["id"] == "last"


def test_one_broken_text_of_many_fails_alone_with_its_line(client: FlaskClient) -> None:
    body = LINES + b'{"id": 17, "text": "cut \\ud83d"}\n"after"\n'
    answer = client.post("/v1/jobs?model=fake", data=body, content_type=NDJSON)
    job = wait_for_end(client, (answer.json or {})["id"])
    assert (job["counts"]["completed"], job["counts"]["failed"]) == (301, 1)
    failed, after = results(client, job)[300:]
    assert (failed["id"], failed["error"]["code"]) == ("17", "invalid_text")
    assert failed["error"]["message"].startswith("line 301:")
    assert after["embedding"]
    retried = wait_for_end(client, (client.post(f"/v1/jobs/{job['id']}/retry").json or {})["id"])
    assert (retried["counts"]["completed"], retried["counts"]["failed"]) == (301, 1)


def test_a_small_upload_with_a_broken_text_is_queued_and_fails_that_item(client: FlaskClient) -> None:
    answer = client.post("/v1/jobs?model=fake", data=b'"\\ud83d"\n', content_type=NDJSON)
    job = wait_for_end(client, (answer.json or {})["id"])
    assert job["counts"]["failed"] == 1
    assert results(client, job)[0]["error"]["code"] == "invalid_text"


def test_ids_of_items_and_documents_may_be_numbers(client: FlaskClient) -> None:
    job = submit(client, input=[{"id": 17, "text": "a"}, {"custom_id": "c", "text": "b"}, "c"]).json
    assert [row["id"] for row in results(client, job)] == ["17", "c", None]
    ranking = submit(client, type="rerank", query="q", documents=[{"id": 18, "text": "a"}, "b"]).json
    assert [row["id"] for row in results(client, ranking)] == ["18", None]


@pytest.mark.parametrize("bad", [1.5, True, ["x"], "x" * 513])
def test_an_id_that_is_none_is_refused_in_one_sentence(client: FlaskClient, bad: Any) -> None:
    entry = {"id": bad, "text": "a"}
    embeddings = submit(client, input=["a", entry])
    ranking = submit(client, type="rerank", query="q", documents=["a", entry])
    for answer, param in ((embeddings, "input"), (ranking, "documents")):
        error = answer.json["error"]
        assert (answer.status_code, error["param"]) == (400, param)
        assert "1 has an `id`" in error["message"]
        assert "{" not in error["message"]


# -- the same upload again


def test_an_upload_that_is_sent_again_gives_the_same_job_and_stores_nothing(
    app_here: Flask, client: FlaskClient, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = send(client, LINES, "twice")
    wait_for_end(client, first.json["id"])
    known = job_keys(server)
    stored: list[str] = []
    monkeypatch.setattr(type(services_of(app_here).blobs), "put_input", lambda _, job_id, *__: stored.append(job_id))
    again = send(client, LINES, "twice")
    assert (first.status_code, again.status_code, again.json["id"]) == (202, 200, first.json["id"])
    assert stored == []
    assert job_keys(server) == known


def test_another_upload_under_the_key_is_refused_and_a_broken_one_too(
    client: FlaskClient, server: EmbeddedServer
) -> None:
    job_id = send(client, LINES, "one payload").json["id"]
    wait_for_end(client, job_id)
    known = job_keys(server)
    other = send(client, LINES + b'"more"\n', "one payload")
    assert (other.status_code, other.json["error"]["code"]) == (422, "idempotency_mismatch")
    assert send(client, LINES + b"{", "one payload").status_code == 400
    assert job_keys(server) == known


def test_the_key_of_a_deleted_job_takes_an_upload_anew(app_here: Flask, client: FlaskClient) -> None:
    first = send(client, LINES, "deleted").json["id"]
    wait_for_end(client, first)
    services_of(app_here).store.delete(first)
    with Redis.from_url(services_of(app_here).settings.redis_url) as redis:
        assert redis.exists(keys.idempotency("default", "deleted"))
    answer = send(client, LINES, "deleted")
    assert answer.status_code == 202
    assert answer.json["id"] != first
