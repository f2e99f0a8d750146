"""Jobs over HTTP: how they are submitted, and what a job reports."""

import gzip
import json
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks import keys
from tests.support.web import CORPUS, NDJSON, services_of, settings_of, wait_for_end


@pytest.fixture(scope="module")
def settings_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_of(server, tmp_path_factory.mktemp("data"), chunk_items=100)


def submit(client: FlaskClient, texts: Any, **headers: str) -> Any:
    return client.post("/v1/jobs", json={"type": "embeddings", "model": "fake", "input": texts}, headers=headers)


def stored_jobs(server: EmbeddedServer) -> set[bytes]:
    """Ids of all jobs of which anything at all is stored."""
    with Redis.from_url(server.url) as redis:
        return {key.split(b"{")[1].split(b"}")[0] for key in redis.scan_iter(count=1000) if b"{job_" in key}


# -- how they are submitted


def test_a_small_job_is_answered_at_once_and_kept_like_any_other(client: FlaskClient, vectors: Any) -> None:
    answer = submit(client, [CORPUS[0], {"id": "x", "text": CORPUS[1]}])
    assert answer.status_code == 200
    job = answer.json
    assert job["status"] == "succeeded"
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert [item["id"] for item in job["results"]] == [None, "x"]
    got = np.array([item["embedding"] for item in job["results"]], np.float32)
    np.testing.assert_allclose(got, vectors[:2], atol=1e-6)
    kept = client.get(f"/v1/jobs/{job['id']}").json or {}
    assert kept["counts"] == {"total": 2, "completed": 2, "failed": 0, "truncated": 0, "cached": 0}
    # That of the worker which answered, not that of any one in the registry.
    assert kept["fingerprint"].startswith("fake:")
    page = client.get(f"/v1/jobs/{job['id']}/results").json or {}
    assert page["data"] == job["results"]


def test_a_large_job_is_queued_with_an_address_and_a_time_to_ask_again(client: FlaskClient) -> None:
    answer = submit(client, CORPUS)
    assert answer.status_code == 202
    assert answer.json["status"] in {"queued", "running"}
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json['id']}"
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert wait_for_end(client, answer.json["id"])["counts"]["completed"] == 700


def test_a_small_job_is_queued_when_the_caller_prefers_that(client: FlaskClient) -> None:
    answer = submit(client, ["a"], Prefer="respond-async")
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (202, "respond-async")
    assert wait_for_end(client, answer.json["id"])["status"] == "succeeded"


def test_a_queued_job_is_waited_for_when_the_caller_prefers_that(client: FlaskClient) -> None:
    answer = submit(client, ["a", "b"], Prefer="respond-async, wait=20")
    assert answer.status_code == 200
    assert answer.json["status"] == "succeeded"
    assert len(answer.json["results"]) == 2


def test_ndjson_that_is_small_is_answered_at_once_too(client: FlaskClient) -> None:
    answer = client.post("/v1/jobs?model=fake", data=b'"a"\n{"id": "i", "text": "b"}', content_type=NDJSON)
    assert answer.status_code == 200
    assert [item["id"] for item in (answer.json or {})["results"]] == [None, "i"]


def test_a_gzip_upload_is_unpacked(client: FlaskClient) -> None:
    packed = gzip.compress(b'"a"\n"b"\n')
    answer = client.post("/v1/jobs?model=fake", data=packed, content_type=NDJSON, headers={"Content-Encoding": "gzip"})
    assert (answer.json or {})["counts"]["total"] == 2


@pytest.mark.parametrize("line", [b"{", b"17", b'{"txt": "a"}', b"\xff"])
@pytest.mark.parametrize("before", [3, 300])
def test_a_bad_line_refuses_the_job_with_its_number_and_leaves_nothing_stored(
    client: FlaskClient, server: EmbeddedServer, line: bytes, before: int
) -> None:
    known = stored_jobs(server)
    body = b'"text"\n' * before + line + b"\n"
    answer = client.post("/v1/jobs?model=fake", data=body, content_type=NDJSON)
    assert answer.status_code == 400
    assert f"line {before + 1} " in (answer.json or {})["error"]["message"]
    assert stored_jobs(server) == known


@pytest.mark.parametrize("body", [b"", b"\n\n \n"])
def test_an_upload_without_a_line_is_refused(client: FlaskClient, body: bytes) -> None:
    answer = client.post("/v1/jobs?model=fake", data=body, content_type=NDJSON)
    assert (answer.status_code, (answer.json or {})["error"]["param"]) == (400, "input")


def test_an_upload_without_a_model_is_refused_by_name(client: FlaskClient) -> None:
    answer = client.post("/v1/jobs", data=b'"a"', content_type=NDJSON)
    assert (answer.status_code, (answer.json or {})["error"]["param"]) == (400, "model")


def test_a_dry_run_tells_the_cost_and_stores_nothing(client: FlaskClient, server: EmbeddedServer) -> None:
    known = stored_jobs(server)
    body = {"type": "embeddings", "model": "fake", "input": CORPUS}
    estimate = client.post("/v1/jobs?dry_run=true", json=body).json or {}
    assert (estimate["items"], estimate["chunks"], estimate["lane"]) == (700, 7, "bulk")
    assert estimate["estimated_s"] >= estimate["tokens"] / 1000  # what waits in the queue comes on top
    small = client.post("/v1/jobs?dry_run=true", json={**body, "input": ["a"]}).json or {}
    assert (small["chunks"], small["lane"]) == (1, "interactive")
    assert stored_jobs(server) == known


def test_a_model_that_this_server_does_not_serve_is_refused_before_anything_is_stored(
    client: FlaskClient, server: EmbeddedServer
) -> None:
    known = stored_jobs(server)
    answer = client.post(
        "/v1/jobs", json={"type": "embeddings", "model": "bge-m3", "input": ["a"]}, headers={"Prefer": "respond-async"}
    )
    assert (answer.status_code, (answer.json or {})["error"]["code"]) == (404, "model_not_found")
    assert stored_jobs(server) == known


@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        ("/v1/embeddings", "output_dtype", {"model": "fake", "input": ["a"], "output_dtype": "int8"}),
        ("/v1/rerank", "top_n", {"model": "fake", "query": "q", "documents": ["a", "b"], "top_n": 1}),
    ],
)
def test_a_queued_call_refuses_what_only_an_answer_could_obey(
    client: FlaskClient, path: str, field: str, body: dict[str, object]
) -> None:
    answer = client.post(path, json=body, headers={"Prefer": "respond-async"})
    assert (answer.status_code, (answer.json or {})["error"]["param"]) == (400, field)


# -- idempotency


@pytest.mark.parametrize("prefer", ["", "respond-async"])
def test_the_same_key_and_payload_give_the_same_job_and_another_payload_is_refused(
    client: FlaskClient, server: EmbeddedServer, prefer: str
) -> None:
    headers = {"Idempotency-Key": f"key-{prefer}", "Prefer": prefer}
    first = submit(client, ["a", "b"], **headers)
    known = stored_jobs(server)
    again = submit(client, ["a", "b"], **headers)
    assert again.status_code in {200, 202}
    assert again.json["id"] == first.json["id"]
    other = submit(client, ["a", "c"], **headers)
    assert (other.status_code, other.json["error"]["code"]) == (422, "idempotency_mismatch")
    wait_for_end(client, first.json["id"])
    assert stored_jobs(server) <= known


def test_a_repeated_upload_leaves_no_second_copy_of_its_texts(client: FlaskClient, server: EmbeddedServer) -> None:
    body = b"".join(json.dumps(text).encode() + b"\n" for text in CORPUS)
    headers = {"Idempotency-Key": "upload"}
    answers = [
        client.post("/v1/jobs?model=fake", data=body, content_type=NDJSON, headers=headers).json or {} for _ in range(2)
    ]
    assert answers[0]["id"] == answers[1]["id"]
    job_ids = {job_id.decode() for job_id in stored_jobs(server)}
    listed = {job["id"] for job in (client.get("/v1/jobs?limit=100").json or {})["data"]}
    assert job_ids <= listed


# -- a job


def test_a_job_tells_what_became_of_it(ended: dict[str, Any]) -> None:
    assert ended["object"] == "job"
    assert ended["counts"] == {"total": 700, "completed": 700, "failed": 0, "truncated": 0, "cached": 0}
    assert ended["chunks"] == {"total": 7, "done": 7}
    assert ended["tokens"] > 700
    assert ended["created_at"] <= ended["started_at"] <= ended["ended_at"] < ended["expires_at"]
    assert ended["params"] == {"instruction": None, "dimensions": None, "truncate": "end", "dtype": "float32"} | {
        "cache": False,
        "dedupe": False,
        "return": ["dense"],
        "long": None,
        "cutoff_layers": None,
    }


def test_a_job_that_did_not_change_is_a_304(client: FlaskClient, ended: dict[str, Any]) -> None:
    first = client.get(f"/v1/jobs/{ended['id']}")
    again = client.get(f"/v1/jobs/{ended['id']}", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert client.get(f"/v1/jobs/{ended['id']}", headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_long_poll_ends_with_the_job_and_says_that_it_waited(client: FlaskClient) -> None:
    job = submit(client, CORPUS).json
    answer = client.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=30"})
    assert (answer.json or {})["status"] == "succeeded"
    assert answer.headers["Preference-Applied"] == "wait=30"


def events_of(answer: Any) -> list[dict[str, str]]:
    blocks = [block for block in answer.text.split("\n\n") if block.startswith("id:")]
    return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]


def test_events_follow_a_job_to_its_end_and_go_on_where_a_reader_was(client: FlaskClient) -> None:
    job_id = submit(client, CORPUS).json["id"]
    answer = client.get(f"/v1/jobs/{job_id}/events")
    assert answer.mimetype == "text/event-stream"
    assert answer.text.startswith("retry: ")
    events = events_of(answer)
    assert events[-1]["event"] == "succeeded"
    assert json.loads(events[-1]["data"])["counts"]["completed"] == 700
    ids = [int(event["id"]) for event in events]
    assert ids == sorted(set(ids))
    again = client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": str(ids[-1] - 1)})
    assert [event["id"] for event in events_of(again)] == [str(ids[-1])]
    behind = client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": str(ids[-1])})
    assert events_of(behind) == []


def test_failed_items_are_tried_again_and_only_those(client: FlaskClient) -> None:
    body = {"type": "embeddings", "model": "fake", "truncate": "none", "input": ["a", "long " * 900]}
    job = wait_for_end(
        client, (client.post("/v1/jobs", json=body, headers={"Prefer": "respond-async"}).json or {})["id"]
    )
    again = client.post(f"/v1/jobs/{job['id']}/retry")
    assert again.status_code == 200
    assert wait_for_end(client, job["id"])["counts"]["failed"] == 1
    nothing = submit(client, ["a"]).json["id"]
    assert client.post(f"/v1/jobs/{nothing}/retry").status_code == 409


def test_a_job_that_has_ended_by_itself_cannot_be_cancelled(client: FlaskClient, ended: dict[str, Any]) -> None:
    answer = client.post(f"/v1/jobs/{ended['id']}/cancel")
    assert (answer.status_code, answer.headers["x-should-retry"]) == (409, "false")


def test_delete_cancels_a_job_and_then_frees_what_it_keeps(app_here: Flask, client: FlaskClient) -> None:
    redis = services_of(app_here).redis
    job = submit(client, [f"text {i}" for i in range(5000)], Prefer="respond-async").json
    first = client.delete(f"/v1/jobs/{job['id']}")
    assert first.json["status"] in ("cancelling", "cancelled")
    ended = wait_for_end(client, job["id"])
    again = client.delete(f"/v1/jobs/{job['id']}")
    assert (again.status_code, again.json["status"], again.json["id"]) == (200, ended["status"], job["id"])
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 404
    assert list(redis.scan_iter(f"*{job['id']}*")) == []
    assert not redis.hexists(keys.tenant_held("default"), job["id"])


def test_a_job_waits_for_its_time_and_ends_when_it_was_not_done_in_time(app_here: Flask, client: FlaskClient) -> None:
    begin_at, ids = datetime.now(timezone(timedelta(hours=5))) + timedelta(hours=1), list[str]()
    for moment in (begin_at.isoformat(), begin_at.timestamp()):
        body = {"type": "embeddings", "model": "fake", "input": ["a"], "not_before": moment, "expires_in": 7200}
        answer = client.post("/v1/jobs", json=body)
        job = answer.json or {}
        assert (answer.status_code, job["status"]) == (202, "queued")
        ids.append(job["id"])
        assert job["not_before"] == pytest.approx(begin_at.timestamp(), abs=30)
        assert job["deadline_at"] == pytest.approx(job["created_at"] + 7200)
        assert job["eta_s"] is None or job["eta_s"] > 3000
    services_of(app_here).redis.hset(keys.job(job["id"]), "deadline_ms", 1)
    ended = client.get(f"/v1/jobs/{job['id']}").json or {}
    assert (ended["status"], ended["counts"]["completed"]) == ("expired", 0)
    assert client.get(f"/v1/jobs/{job['id']}/results").status_code == 200
    for number in ids:
        client.delete(f"/v1/jobs/{number}")


def test_an_upload_says_its_times_in_its_address(client: FlaskClient) -> None:
    address = "/v1/jobs?model=fake&not_before=4102444800&expires_in=600"
    answer = client.post(address, data=b'"a"', content_type=NDJSON)
    assert answer.json["error"]["message"].startswith("the job would have expired before it may begin")
    answer = client.post(
        "/v1/jobs?model=fake&not_before=2001-01-01T00:00Z&expires_in=600", data=b'"a"', content_type=NDJSON
    )
    assert answer.status_code == 202
    assert wait_for_end(client, answer.json["id"])["status"] == "succeeded"
    small = client.post(
        "/v1/jobs?model=fake&not_before=2001-01-01T00:00Z&dry_run=true", data=b'"a"', content_type=NDJSON
    )
    assert small.json["lane"] == "bulk"


@pytest.mark.parametrize(
    "times",
    [
        {"not_before": "tomorrow"},
        {"not_before": "2026-12-01T22:00:00"},
        {"not_before": True},
        {"not_before": 10**11},
        {"expires_in": 0},
        {"expires_in": 10**9},
    ],
    ids=["word", "no zone", "bool", "after all is gone", "zero", "longer than kept"],
)
def test_times_that_cannot_be_are_refused(client: FlaskClient, times: dict[str, Any]) -> None:
    answer = client.post("/v1/jobs", json={"type": "embeddings", "model": "fake", "input": ["a"], **times})
    assert answer.status_code == 400
    assert answer.json["error"]["param"] == next(iter(times))


def test_jobs_are_listed_newest_first_in_pages(client: FlaskClient, ended: dict[str, Any]) -> None:
    for text in "abc":
        submit(client, [text])
    page = client.get("/v1/jobs?limit=2").json or {}
    assert page["has_more"] is True
    following = client.get(f"/v1/jobs?limit=2&after={page['last_id']}").json or {}
    ids = [job["id"] for job in (*page["data"], *following["data"])]
    assert len(set(ids)) == 4
    assert ids == sorted(ids, reverse=True)
    only = client.get("/v1/jobs?status=failed,expired").json or {}
    assert only["data"] == []


def test_metadata_comes_back(client: FlaskClient) -> None:
    body = {"type": "embeddings", "model": "fake", "input": ["a"], "metadata": {"source": "shelf 3"}}
    job = client.post("/v1/jobs", json=body).json or {}
    assert (client.get(f"/v1/jobs/{job['id']}").json or {})["metadata"] == {"source": "shelf 3"}


def test_an_ndjson_upload_has_a_name_and_metadata_too(client: FlaskClient) -> None:
    options = {"model": "fake", "name": "shelves", "metadata": json.dumps({"source": "shelf 3"})}
    answer = client.post("/v1/jobs", query_string=options, data=b'"a"', content_type=NDJSON)
    assert (answer.json or {})["metadata"] == {"source": "shelf 3", "name": "shelves"}


@pytest.mark.parametrize("metadata", ["{", "[]", '{"a": 1}', json.dumps({str(key): "" for key in range(17)})])
def test_metadata_of_an_ndjson_upload_that_is_no_object_of_few_strings_is_refused(
    client: FlaskClient, metadata: str
) -> None:
    options = {"model": "fake", "metadata": metadata}
    answer = client.post("/v1/jobs", query_string=options, data=b'"a"', content_type=NDJSON)
    assert answer.status_code == 400
    assert (answer.json or {})["error"]["param"] in {"metadata", "metadata.a"}


def test_the_examples_of_the_openapi_text_work(client: FlaskClient) -> None:
    schemas = (client.get("/openapi.json").json or {})["components"]["schemas"]
    for schema, path in (("EmbeddingsRequest", "embeddings"), ("RerankRequest", "rerank"), ("JobRequest", "jobs")):
        (example,) = schemas[schema]["examples"]
        answer = client.post(f"/v1/{path}", json=example)
        assert answer.status_code == 200, answer.json
