"""Plain calls are answered without Flask: the answers are those that Flask's way gives, in all but the request's ID.

`Prefer: handling=strict` says nothing to a call, and sends it on Flask's way.
"""

import gzip
import io
from typing import Any

import orjson
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app.http.openapi import Api
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tests.support.web import opened_app, running_worker, settings_of, write_keys

FLASKS_WAY = {"Prefer": "handling=strict"}
EMBED, RERANK = "/v1/embeddings", "/v2/rerank"
CALLS = {
    "one text": (EMBED, {"input": "a text"}),
    "texts": (EMBED, {"input": ["a text", "another one", "a text"]}),
    "base64": (EMBED, {"input": "a text", "encoding_format": "base64"}),
    "fewer dimensions": (EMBED, {"input": "a text", "dimensions": 8, "input_type": "query"}),
    "binary vectors": (EMBED, {"input": "a text", "embedding_type": "binary"}),
    "a cut text": (EMBED, {"input": "word " * 600}),
    "a text too long": (EMBED, {"input": "word " * 600, "truncate": "none"}),
    "an error by item": (EMBED, {"input": ["word " * 600, "a"], "truncate": "none", "on_error": "item"}),
    "above the interactive limits": (EMBED, {"input": [f"text {i}" for i in range(100)]}),
    "a compressed answer": (EMBED, {"input": [f"text {i}" for i in range(60)]}),
    "no input": (EMBED, {}),
    "a wrong type": (EMBED, {"input": "a text", "dimensions": "8"}),
    "an unknown model": (EMBED, {"input": "a text", "model": "fakes"}),
    "what the model cannot do": (EMBED, {"input": "a text", "return": ["sparse"]}),
    "documents": (RERANK, {"query": "q", "documents": ["one", {"text": "two"}], "return_documents": True}),
    "the best document": (RERANK, {"query": "q", "documents": ["one", "two"], "top_k": 1}),
    "no documents": (RERANK, {"query": "q", "documents": []}),
}
BODIES = {
    "no JSON": b"{",
    "no object": b"[]",
    "no body": b"",
    "a lone surrogate": rb'{"model":"fake","input":"\ud83d"}',
}
OF_THE_REQUEST = {"x-request-id", "date"}


def told(answer: TestResponse) -> tuple[int, dict[str, Any], object]:
    headers = {name.lower(): value for name, value in answer.headers if name.lower() not in OF_THE_REQUEST}
    assert len(headers) == len(answer.headers) - 1
    data = answer.data
    if answer.content_encoding:
        # Compressed, the ids and the seconds in gzip's head would differ.
        data = gzip.decompress(data)
        headers.pop("content-length")
    return answer.status_code, headers, {**orjson.loads(data), "id": ""} if answer.is_json else data


def both(client: FlaskClient, path: str, **request: Any) -> TestResponse:
    headers = request.pop("headers", {})
    direct = client.post(path, headers=headers, **request)
    assert told(direct) == told(client.post(path, headers={**headers, **FLASKS_WAY}, **request))
    return direct


@pytest.mark.parametrize("name", CALLS)
def test_a_call_has_the_same_answer_on_both_ways(client: FlaskClient, name: str) -> None:
    path, fields = CALLS[name]
    both(client, path, json={"model": "fake", **fields}, headers={"Accept-Encoding": "gzip"})


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_none_is_refused_in_the_same_words(client: FlaskClient, name: str) -> None:
    assert both(client, EMBED, data=BODIES[name], content_type="application/json").status_code == 400


def test_a_body_that_ends_early_is_refused_in_the_same_words(client: FlaskClient) -> None:
    def post(headers: dict[str, str]) -> TestResponse:
        stream = io.BytesIO(b'{"model": "fake", "inp')
        environ = {"wsgi.input": stream, "CONTENT_LENGTH": "40"}
        return client.post(EMBED, headers=headers, environ_overrides=environ)

    assert told(post({})) == told(post(FLASKS_WAY))
    assert post({}).json["error"]["code"] == "body_cut_off"


def test_a_failure_that_nobody_foresaw_is_the_same_answer(
    client: FlaskClient, app_here: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_here.extensions["twolane"].catalog, "find", lambda _: 1 / 0)
    answer, other = (
        client.post(EMBED, json={"model": "fake", "input": "a"}, headers={**headers, "x-request-id": "one"})
        for headers in ({}, FLASKS_WAY)
    )
    assert told(answer) == told(other)
    assert answer.status_code == 500
    assert "division" not in answer.text


def test_both_ways_count_alike(client: FlaskClient) -> None:
    def count() -> float:
        line = 'method="POST",route="'
        shown = client.get("/metrics").text.splitlines()
        found = [one for one in shown if one.startswith("twolane_http_requests_total") and line in one and EMBED in one]
        return sum(float(one.rsplit(" ", 1)[1]) for one in found)

    before = count()
    both(client, EMBED, json={"model": "fake", "input": "a text"})
    assert count() == before + 2


def test_a_request_id_that_a_caller_asks_for_comes_back(client: FlaskClient) -> None:
    answer = client.post(EMBED, json={"model": "fake", "input": "a"}, headers={"x-request-id": "mine"})
    assert answer.headers["x-request-id"] == "mine"


def test_keys_and_limits_hold_on_both_ways(server: EmbeddedServer, tmp_path: Any) -> None:
    keys = write_keys(
        tmp_path / "keys.toml",
        {"ada": "requests_per_minute = 2", "bob": "tokens_per_minute = 20", "joe": "read_only = true"},
    )
    settings: Settings = settings_of(server, tmp_path, keys_file=keys)
    call = {"model": "fake", "input": "a text"}
    with running_worker(settings), opened_app(settings) as app:
        assert isinstance(app, Api)
        client = app.test_client()
        assert both(client, EMBED, json=call).status_code == 401
        assert both(client, EMBED, json=call, headers={"Authorization": "Bearer eve"}).status_code == 401
        assert both(client, EMBED, json=call, headers={"Authorization": "Bearer joe"}).status_code == 403
        ada = {"api-key": "ada"}
        left = [client.post(EMBED, json=call, headers={**ada, **more}) for more in ({}, FLASKS_WAY)]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in left] == ["1", "0"]
        refused = client.post(EMBED, json=call, headers=ada)
        assert (refused.status_code, refused.json["error"]["code"]) == (429, "rate_limit_exceeded")
        long = {"model": "fake", "input": "word " * 200}
        assert both(client, EMBED, json=long, headers={"Authorization": "Bearer bob"}).status_code == 413
