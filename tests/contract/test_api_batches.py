"""Files and batches over HTTP: upload, validation, output and error files, cancel, expiry, lists."""

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tests.support.batch_requests import EMBED, GOOD, RERANK, body_of, embed, line_of, read, run, start, wait
from tests.support.web import running_scheduler, services_of, settings_of

LIMITS = {"max_text_chars": 100_000, "max_body_bytes": 2_400_000}


@pytest.fixture(scope="module")
def settings_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("data")
    card = 'source = "none:"\nfamily = "fake"\nbackend = "fake"\ncapabilities = ["dense", "rerank"]\n'
    card += 'rerank_by = "similarity"\ndimension = 16\nmax_tokens = 8\npooling = "mean"\n'
    (folder / "models.toml").write_text(f'[[models]]\nname = "fake-two"\n{card}')
    here = settings_of(
        server, folder, chunk_items=20, catalog_file=folder / "models.toml", batch_max_requests=1000, **LIMITS
    )
    return here.model_copy(update={"models": ("fake", "fake-two")})


@pytest.fixture(scope="module")
def client(client: FlaskClient, app_here: Flask) -> Iterator[FlaskClient]:
    """A client of the whole product, with its scheduler."""
    with running_scheduler(app_here):
        yield client


def test_every_line_is_answered_as_the_route_would_answer_it(client: FlaskClient) -> None:
    bodies = {
        "one": {"model": "fake", "input": "a text"},
        "several": {"model": "fake", "input": [f"text {i}" for i in range(50)]},
        "packed": {"model": "fake", "input": ["x", "y"], "encoding_format": "base64"},
        "short": {"model": "fake", "input": "cut", "dimensions": 8},
        "other": {"model": "FAKE-TWO", "input": "small model"},
        "query": {"model": "fake", "input": "asked", "input_type": "query"},
        "tokens": {"model": "fake", "input": [[9906, 1917], [1917]]},
        "blank": {"model": "fake", "input": ""},
    }
    batch = run(client, [line_of(name, body) for name, body in bodies.items()])
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 8, "completed": 8, "failed": 0}
    assert batch["error_file_id"] is None
    output = read(client, batch["output_file_id"])
    assert list(output) == list(bodies)
    for name, body in bodies.items():
        direct = client.post(EMBED, json=body).json or {}
        got = body_of(output[name])
        assert {**got, "data": None} == {**direct, "data": None}
        np.testing.assert_allclose(
            [vector_of(entry) for entry in got["data"]], [vector_of(entry) for entry in direct["data"]], atol=1e-6
        )
        assert [entry["index"] for entry in got["data"]] == list(range(len(direct["data"])))
    assert isinstance(body_of(output["packed"])["data"][0]["embedding"], str)


def vector_of(entry: dict[str, Any]) -> Any:
    value = entry["embedding"]
    return np.frombuffer(base64.b64decode(value), "<f4") if isinstance(value, str) else np.array(value, np.float32)


def test_a_batch_names_its_times_in_order_and_its_metadata(client: FlaskClient) -> None:
    begun = start(client, [embed("a", "x")], metadata={"run": "7"})
    assert begun["status"] == "validating"
    assert begun["object"] == "batch"
    assert begun["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert begun["expires_at"] - begun["created_at"] == 86_400
    done = wait(client, begun)
    times = [done[f"{state}_at"] for state in ("created", "in_progress", "finalizing", "completed")]
    assert times == sorted(times)
    assert [done[f"{state}_at"] for state in ("failed", "expired", "cancelling", "cancelled")] == [None] * 4
    assert done["metadata"] == {"run": "7"}
    assert done["errors"] is None
    file = client.get(f"/v1/files/{done['output_file_id']}").json or {}
    assert (file["purpose"], file["status"]) == ("batch_output", "processed")


def test_rerank_lines_are_answered_as_the_route_would_answer_them(client: FlaskClient) -> None:
    documents = ["one", {"text": "two", "page": 7}, *(f"more {i}" for i in range(30))]
    bodies = {
        "all": {"model": "fake", "query": "which", "documents": documents},
        "best": {"model": "fake", "query": "which", "documents": documents, "top_n": 3, "return_documents": True},
        "other": {"model": "fake-two", "query": "which", "documents": ["x", "y"]},
    }
    batch = run(client, [line_of(name, body, RERANK) for name, body in bodies.items()], RERANK)
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    output = read(client, batch["output_file_id"])
    for name, body in bodies.items():
        direct = client.post(RERANK, json=body).json or {}
        got = body_of(output[name])
        assert {**got, "id": ""} == {**direct, "id": ""}


def test_a_line_that_the_route_would_refuse_fails_alone_with_the_routes_answer(client: FlaskClient) -> None:
    bodies = {
        "model": {"model": "no-such-model", "input": "x"},
        "unserved": {"model": "bge-m3", "input": "x"},
        "input": {"model": "fake", "input": [1.5]},
        "missing": {"model": "fake"},
        "dimensions": {"model": "fake", "input": "x", "dimensions": 10_000},
        "uncut": {"model": "fake-two", "input": "x", "dimensions": 8},
        "many": {"model": "fake", "input": ["x"] * 2049},
        "long": {"model": "fake-two", "input": ["short", "word " * 50], "truncate": "none"},
    }
    lines = [line_of(name, body) for name, body in bodies.items()]
    batch = run(client, [embed("first", "x"), *lines, embed("last", "y")])
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 10, "completed": 2, "failed": 8}
    assert list(read(client, batch["output_file_id"])) == ["first", "last"]
    errors = read(client, batch["error_file_id"])
    assert list(errors) == list(bodies)
    for name, body in bodies.items():
        direct = client.post(EMBED, json=body)
        response = errors[name]["response"]
        assert errors[name]["error"] is None
        assert response["status_code"] == direct.status_code, name
        assert response["body"]["error"]["code"] == (direct.json or {})["error"]["code"], name
    assert errors["long"]["response"]["body"]["error"]["code"] == "context_length_exceeded"


def test_a_line_with_half_a_surrogate_pair_fails_alone(client: FlaskClient) -> None:
    bad = json.dumps(embed("bad", "cut \ud83d")).encode() + b"\n"
    batch = run(client, [b"\xef\xbb\xbf" + json.dumps(embed("first", "x")).encode() + b"\n", bad, embed("last", "y")])
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    error = read(client, batch["error_file_id"])["bad"]["response"]
    assert (error["status_code"], error["body"]["error"]["code"]) == (400, "invalid_value")
    assert "surrogate" in error["body"]["error"]["message"]


def test_a_batch_in_which_every_line_is_refused_completes_with_an_error_file_only(client: FlaskClient) -> None:
    batch = run(client, [embed("a", "x", model="none"), embed("b", "x", model="none")])
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
    assert batch["output_file_id"] is None
    assert list(read(client, batch["error_file_id"])) == ["a", "b"]


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"{\n", "invalid_json_line"),
        (b"[1]\n", "invalid_json_line"),
        (b"\xff\n", "invalid_json_line"),
        (b'{"a": NaN}\n', "invalid_json_line"),
        (b"[" * 20_000 + b"\n", "invalid_json_line"),
        ({**GOOD, "custom_id": None}, "invalid_custom_id"),
        ({**GOOD, "custom_id": 7}, "invalid_custom_id"),
        ({**GOOD, "custom_id": ""}, "invalid_custom_id"),
        ({**GOOD, "custom_id": "x" * 513}, "invalid_custom_id"),
        (GOOD, "duplicate_custom_id"),
        ({**GOOD, "custom_id": "b", "method": "GET"}, "invalid_method"),
        ({**GOOD, "custom_id": "b", "url": RERANK}, "invalid_url"),
        ({**GOOD, "custom_id": "b", "body": "x"}, "invalid_body"),
    ],
)
def test_a_line_that_is_no_request_fails_the_batch_with_its_number(client: FlaskClient, bad: Any, code: str) -> None:
    batch = run(client, [GOOD, b"\n", bad, embed("later", "y")])
    assert batch["status"] == "failed"
    assert [(problem["code"], problem["line"]) for problem in batch["errors"]["data"]] == [(code, 3)]
    assert batch["output_file_id"] is None
    assert batch["failed_at"] is not None


def test_a_failed_batch_leaves_nothing_stored(client: FlaskClient, server: EmbeddedServer) -> None:
    lines = [embed(f"l{i}", f"text {i}") for i in range(100)]
    with Redis.from_url(server.url) as redis:
        before = set(redis.scan_iter("*job_*", count=1000))
        assert run(client, [*lines, b"{\n"])["status"] == "failed"
        assert set(redis.scan_iter("*job_*", count=1000)) == before


def test_all_bad_lines_are_told_up_to_a_hundred(client: FlaskClient) -> None:
    batch = run(client, [b"{\n"] * 3)
    assert [problem["line"] for problem in batch["errors"]["data"]] == [1, 2, 3]
    assert len(run(client, [b"{\n"] * 300)["errors"]["data"]) == 100


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([b""], "empty_file"),
        ([b"\n \n"], "empty_file"),
        ([embed(f"l{i}", "x") for i in range(1001)], "request_too_large"),
        ([embed(f"l{i}", "x", instruction=f"do {i}") for i in range(33)], "too_many_groups"),
        ([b'{"custom_id": "' + b"x" * (3 << 20) + b'"}\n'], "invalid_value"),
    ],
)
def test_a_file_beyond_the_limits_fails_the_batch(client: FlaskClient, lines: list[Any], code: str) -> None:
    batch = run(client, lines)
    assert batch["status"] == "failed"
    assert batch["errors"]["data"][0]["code"] == code


def test_an_input_file_may_be_deleted_once_the_batch_has_begun(client: FlaskClient) -> None:
    documents = [f"document {i}" for i in range(40)]
    body = {"model": "fake", "query": "q", "documents": documents, "return_documents": True, "top_n": 1}
    begun = start(client, [line_of("a", body, RERANK)], RERANK)
    wait(client, begun, {"in_progress", "finalizing", "completed"})
    assert (client.delete(f"/v1/files/{begun['input_file_id']}").json or {})["deleted"] is True
    done = wait(client, begun)
    result = body_of(read(client, done["output_file_id"])["a"])["results"][0]
    assert result["document"]["text"] == documents[result["index"]]


def test_a_finished_batch_leaves_neither_jobs_nor_its_plan(
    client: FlaskClient, server: EmbeddedServer, app_here: Flask
) -> None:
    with Redis.from_url(server.url) as redis:
        before = set(redis.scan_iter("*job_*", count=1000))
        run(client, [embed(f"l{i}", f"text {i}") for i in range(50)])
        time.sleep(0.2)
        assert set(redis.scan_iter("*job_*", count=1000)) - before == set()
        plans = [name for name in redis.scan_iter("*:file", count=1000) if redis.hget(name, "purpose") == b"batch_plan"]
        assert plans == []


def test_cancelling_keeps_the_lines_that_were_computed(client: FlaskClient, app_here: Flask) -> None:
    """The second model's job is paused, so that the batch is for certain half done."""
    fast = [embed(f"f{i}", f"text {i}") for i in range(30)]
    slow = [embed(f"s{i}", [f"text {i}", "more"], model="fake-two") for i in range(30)]
    begun = start(client, [*fast, *slow, embed("bad", "x", model="none")])
    wait(client, begun, {"in_progress"})
    store = services_of(app_here).store
    batch = services_of(app_here).batches.get(begun["id"], "default")
    paused = store.get(batch.groups[1].job_id)
    if not paused.ended:
        store.pause(paused.id)
    while not store.get(batch.groups[0].job_id).ended:
        time.sleep(0.02)
    done = store.get(batch.groups[1].job_id).counts.completed // 2
    answer = client.post(f"/v1/batches/{begun['id']}/cancel")
    assert answer.status_code == 200
    if not paused.ended:
        assert (answer.json or {})["status"] == "cancelling"
    ended = wait(client, begun)
    assert ended["status"] == "cancelled"
    assert ended["cancelling_at"] is not None
    counts = ended["request_counts"]
    assert counts["total"] == counts["completed"] + counts["failed"] == 61
    assert counts["completed"] >= 30 + done
    output, errors = read(client, ended["output_file_id"]), read(client, ended["error_file_id"])
    assert {f"f{i}" for i in range(30)} <= set(output)
    assert set(output) | set(errors) == {f"f{i}" for i in range(30)} | {f"s{i}" for i in range(30)} | {"bad"}
    stopped = [line for name, line in errors.items() if name != "bad"]
    assert all(line["response"] is None and line["error"]["code"] == "batch_cancelled" for line in stopped)
    assert errors["bad"]["response"]["status_code"] == 404


def test_an_ended_batch_cannot_be_cancelled_and_the_client_is_told_not_to_try_again(client: FlaskClient) -> None:
    ended = run(client, [GOOD])
    answer = client.post(f"/v1/batches/{ended['id']}/cancel")
    assert answer.status_code == 409
    assert answer.headers["x-should-retry"] == "false"
    assert (client.get(f"/v1/batches/{ended['id']}").json or {})["status"] == "completed"


def test_an_output_file_is_no_input(client: FlaskClient) -> None:
    ended = run(client, [GOOD])
    body = {"input_file_id": ended["output_file_id"], "endpoint": EMBED, "completion_window": "24h"}
    assert client.post("/v1/batches", json=body).status_code == 400


def test_output_files_live_as_long_as_asked(client: FlaskClient) -> None:
    ended = run(client, [GOOD], output_expires_after={"anchor": "created_at", "seconds": 7200})
    file = client.get(f"/v1/files/{ended['output_file_id']}").json or {}
    assert file["expires_at"] - file["created_at"] == 7200


def test_every_key_of_files_and_batches_has_an_expiry(client: FlaskClient, server: EmbeddedServer) -> None:
    run(client, [GOOD])
    with Redis.from_url(server.url) as redis:
        names = [name for name in redis.scan_iter("twolane:*", count=1000) if b"broker" not in name]
        assert [name for name in names if redis.ttl(name) == -1] == []
