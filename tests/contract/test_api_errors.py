"""Failures over HTTP: one envelope everywhere, the field's name, and nothing of the server's inside."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.http.request_ids import RequestIdFilter
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tests.support.web import opened_app, services_of, settings_of


@pytest.fixture(scope="module")
def app(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    limits = {"max_body_bytes": 100_000, "max_text_chars": 1000, "max_inputs": 100, "max_line_bytes": 24_000}
    settings = settings_of(server, tmp_path_factory.mktemp("data"), **limits, max_upload_bytes=200_000)
    with opened_app(settings) as app:
        yield app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def refusal(answer: Any, status: int) -> dict[str, Any]:
    """The error of an answer, after checking all that holds for every error."""
    assert answer.status_code == status, answer.data
    body = answer.json
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["detail"] == body["error"]["message"]
    assert answer.headers["x-request-id"]
    if status in {429, 503}:
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    return dict(body["error"])


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/jobs"])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"3", b'"text"', b"\xff\xfe", b'{"model": NaN}', b'{"model": "\\ud800"}',
     b'{"a":' * 20_000, b"[" * 20_000],
)  # fmt: skip
def test_what_is_no_json_object_is_a_400(client: FlaskClient, path: str, body: bytes) -> None:
    answer = client.post(path, data=body, content_type="application/json")
    assert refusal(answer, 400)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": "a"}, "model"),
        ("/v1/embeddings", {"model": "fake"}, "input"),
        ("/v1/embeddings", {"model": "fake", "input": []}, "input"),
        ("/v1/embeddings", {"model": "fake", "input": None}, "input"),
        ("/v1/embeddings", {"model": "fake", "input": ["a", 1]}, "input"),
        ("/v1/embeddings", {"model": "fake", "input": [100_300]}, "input"),
        ("/v1/embeddings", {"model": "fake", "input": ["a"] * 101}, "input"),
        ("/v1/embeddings", {"model": "fake", "input": "a" * 1001}, "input"),
        ("/v1/embeddings", {"model": "fake", "input": "a", "dimensions": 65}, "dimensions"),
        ("/v1/embeddings", {"model": "fake", "input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"model": "fake", "input": "a", "dimensions": True}, "dimensions"),
        ("/v1/embeddings", {"model": "fake", "input": "a", "return": ["sparse"]}, "return"),
        ("/v1/embeddings", {"model": "bge-reranker-v2-m3", "input": "a"}, "model"),
        ("/v1/rerank", {"model": "fake", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"model": "fake", "query": "a"}, "documents"),
        ("/v1/rerank", {"model": "fake", "query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"model": "fake", "query": "a", "documents": ["a"] * 101}, "documents"),
        ("/v1/rerank", {"model": "fake", "query": "a" * 1001, "documents": ["a"]}, "query"),
        ("/v1/jobs", {"type": "embeddings", "input": ["a"]}, "model"),
        ("/v1/jobs", {"type": "embeddings", "model": "fake", "input": [1]}, "input"),
        ("/v1/jobs", {"type": "embeddings", "model": "fake", "input": ["a" * 1001]}, "input"),
        ("/v1/jobs?dry_run=maybe", {"type": "embeddings", "model": "fake", "input": ["a"]}, "dry_run"),
    ],
)
def test_a_bad_field_is_a_400_with_its_name(client: FlaskClient, path: str, body: Any, param: str) -> None:
    assert refusal(client.post(path, json=body), 400)["param"] == param


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("POST", "/v1/embedding", ["POST /v1/embedding;", "did you mean /v1/embeddings?"]),
        ("GET", "/v1/model", ["GET /v1/model;", "/v1/models"]),
        ("POST", "/v1/chat/completions", ["POST /v1/chat/completions;", "/docs"]),
        ("GET", "/v1/embeddings", ["GET /v1/embeddings", "POST"]),
    ],
)
def test_a_wrong_address_or_method_is_told_with_what_was_probably_meant(
    client: FlaskClient, method: str, path: str, words: list[str]
) -> None:
    answer = client.open(path, method=method)
    message = refusal(answer, answer.status_code)["message"]
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("name", ["texts", "inputs"])
def test_a_name_of_other_services_for_input_is_told(client: FlaskClient, name: str) -> None:
    for path, more in (("/v1/embeddings", {}), ("/v1/jobs", {"type": "embeddings"})):
        error = refusal(client.post(path, json={"model": "fake", name: ["a"], **more}), 400)
        assert (error["param"], f"`{name}`" in error["message"]) == ("input", True)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/jobs"])
def test_an_unknown_model_is_a_404(client: FlaskClient, path: str) -> None:
    body = {"type": "embeddings", "model": "none/such", "input": "a", "query": "q", "documents": ["a"]}
    error = refusal(client.post(path, json=body), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/jobs/job_none", 404),
        ("GET", "/v1/jobs/job_none/results", 404),
        ("DELETE", "/v1/jobs/job_none", 404),
        ("POST", "/v1/jobs/job_none/cancel", 404),
        ("POST", "/v1/jobs/job_none/pause", 404),
        ("POST", "/v1/jobs/job_none/resume", 404),
        ("GET", "/v1/embeddings", 405),
        ("PUT", "/v1/jobs", 405),
        ("GET", "/docs/assets/../../secret", 404),
        ("GET", "/docs/assets/none.js", 404),
        ("GET", "/v1/jobs?limit=0", 400),
        ("GET", "/v1/jobs?limit=a", 400),
        ("GET", "/v1/jobs?status=lost", 400),
        ("GET", "/v1/jobs/" + "x" * 200, 400),
    ],
)
def test_every_other_failure_has_the_envelope_too(client: FlaskClient, method: str, path: str, status: int) -> None:
    refusal(client.open(path, method=method), status)


@pytest.mark.parametrize("path", ["//v1/embeddings", "/v1//embeddings", "/v1/embeddings/", "///v1///embeddings//"])
def test_doubled_and_trailing_slashes_lead_to_the_route(client: FlaskClient, path: str) -> None:
    # A base URL that ends with a slash, joined with a path that begins with one. The client itself would eat them.
    answer = client.post("/", json={"model": "none", "input": "a"}, environ_overrides={"PATH_INFO": path})
    assert refusal(answer, 404)["code"] == "model_not_found"


@pytest.mark.parametrize("path", ["//nothing.example/v1", "/v1//nothing", "//", "/v1/jobs//x//results"])
def test_no_path_is_answered_by_a_redirect(client: FlaskClient, path: str) -> None:
    answer = client.get("/", headers={"Host": "localhost"}, environ_overrides={"PATH_INFO": path})
    assert answer.status_code in {200, 404}
    assert "Location" not in answer.headers
    if answer.status_code == 404:
        refusal(answer, 404)


def test_a_405_names_the_methods_that_there_are(client: FlaskClient) -> None:
    assert "POST" in client.get("/v1/rerank").headers["Allow"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/jobs"])
def test_a_body_over_the_limit_is_a_413(client: FlaskClient, path: str) -> None:
    answer = client.post(path, data=b" " * 100_001, content_type="application/json")
    assert refusal(answer, 413)["code"] == "request_too_large"


def test_a_request_id_comes_back_when_it_is_sane_and_is_made_up_when_not(client: FlaskClient) -> None:
    assert client.get("/livez", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for bad in ("", "x" * 200, "a b", "<script>", "é"):
        assert client.get("/livez", headers={"x-request-id": bad}).headers["x-request-id"].startswith("req_")


def test_what_was_not_foreseen_is_a_500_without_traceback_and_without_the_text(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = "my " + "secret"  # in two parts, since a traceback shows lines of code

    def fail(*_: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(type(services_of(app).interactive), "ask", fail)
    with caplog.at_level(logging.DEBUG):
        answer = app.test_client().post("/v1/embeddings", json={"model": "fake", "input": text})
    error = refusal(answer, 500)
    assert error["code"] == "internal_error"
    assert answer.headers["x-request-id"] in error["message"]
    assert b"secret" not in answer.data
    assert b"Traceback" not in answer.data
    assert "secret" not in caplog.text
    assert "RuntimeError" in caplog.text


def test_logs_have_the_request_id_and_neither_texts_nor_query_strings(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.addFilter(RequestIdFilter(in_text=True))
    with caplog.at_level(logging.DEBUG):
        client.post("/v1/embeddings", json={"model": "fake", "input": ["my secret", 1]}, headers={"x-request-id": "r7"})
        client.post("/v1/jobs?type=rerank&model=fake&query=secret", data=b"{", content_type="application/x-ndjson")
        client.get("/secret")
    assert "r7" in caplog.text
    assert "secret" not in caplog.text


def test_with_the_store_down_every_call_is_a_503_within_three_seconds(settings: Settings) -> None:
    settings = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with opened_app(settings) as app:
        client = app.test_client()
        for path, body in (
            ("/v1/embeddings", {"model": "fake", "input": "a"}),
            ("/v1/rerank", {"model": "fake", "query": "q", "documents": ["a"]}),
            ("/v1/jobs", {"type": "embeddings", "model": "fake", "input": ["a"]}),
        ):
            assert refusal(client.post(path, json=body), 503)["code"] == "store_unavailable"
        headers = {"Prefer": "respond-async"}
        refusal(client.post("/v1/embeddings", json={"model": "fake", "input": "a"}, headers=headers), 503)
        for path in ("/v1/models", "/v1/jobs", "/v1/jobs/job_1", "/readyz", "/health"):
            refusal(client.get(path), 503)
        assert client.get("/livez").status_code == 200


def test_the_openapi_text_names_every_route_with_its_error_answers(client: FlaskClient) -> None:
    text = client.get("/openapi.json").json or {}
    assert text["openapi"].startswith("3.1")
    operations = [
        (path, method, operation) for path, methods in text["paths"].items() for method, operation in methods.items()
    ]
    assert {path for path, _, _ in operations} >= {
        "/v1/embeddings", "/v1/rerank", "/v2/rerank", "/rerank", "/v1/jobs", "/v1/jobs/{job_id}", "/v1/models",
        "/v1/jobs/{job_id}/results", "/v1/jobs/{job_id}/cancel", "/v1/models/{model}", "/livez", "/readyz", "/health",
    }  # fmt: skip
    for path, _method, operation in operations:
        assert path == "/livez" or {"400", "401", "429", "500", "503"} <= set(operation["responses"]), path
        assert operation["summary"], path
    bodies = text["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    assert set(bodies) == {"application/json", "application/x-ndjson"}


def test_operations_have_short_names_and_take_a_key(client: FlaskClient) -> None:
    text = client.get("/openapi.json").json or {}
    operations = [operation for methods in text["paths"].values() for operation in methods.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert {"create_embeddings", "rerank", "create_job", "delete_job", "cancel_job", "get_results"} <= set(names)
    assert max(map(len, names)) <= 25
    # On a server without keys a key is taken and means nothing; probes never want one.
    assert text["security"] == [{}, {"key": []}]
    assert text["paths"]["/livez"]["get"]["security"] == []


def test_every_reference_of_the_openapi_text_leads_somewhere(client: FlaskClient) -> None:
    text = client.get("/openapi.json").json or {}

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for child in value.values():
                yield from references(child)
        elif isinstance(value, list):
            for child in value:
                yield from references(child)

    named = {reference.removeprefix("#/components/") for reference in references(text)}
    assert named
    assert named <= {f"{kind}/{name}" for kind, parts in text["components"].items() for name in parts}


def test_the_pages_load_nothing_from_elsewhere(client: FlaskClient) -> None:
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.status_code == 200
        assert page.mimetype == "text/html"
        assert "//" not in page.text.replace("<!doctype html>", "")
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    for asset in ("/docs/assets/css/swagger-ui.css", "/docs/assets/js/swagger-ui-bundle.js", "/static/docs.js"):
        with client.get(asset) as answer:
            assert answer.status_code == 200
            assert len(answer.data) > 100
