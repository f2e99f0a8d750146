"""Synchronous calls that are not small: answered in the call, for longer than small ones, and never on all threads."""

from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.http.places import Kind, Places
from stack.embedded_redis import EmbeddedServer
from tests.support.fakes import write_fake_card
from tests.support.web import opened_app, running_worker, settings_of

SMALL, LARGE = ["one text"], ["a text"] * 65


@pytest.fixture(scope="module")
def app(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    folder = tmp_path_factory.mktemp("data")
    catalog = write_fake_card(folder, "latency_ms = 900")
    # A pass takes longer than a small call may wait. Sixteen threads: two of them for large calls.
    settings = settings_of(server, folder, catalog_file=catalog, interactive_timeout_s=0.5, web_threads=16)
    with running_worker(settings), opened_app(settings) as app:
        yield app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def test_a_large_call_may_take_longer_than_a_small_one(client: FlaskClient) -> None:
    assert client.post("/v1/embeddings", json={"model": "fake", "input": SMALL}).status_code == 504
    answer = client.post("/v1/embeddings", json={"model": "fake", "input": LARGE})
    assert answer.status_code == 200, answer.json
    assert len((answer.json or {})["data"]) == len(LARGE)


def test_large_calls_leave_threads_to_small_ones(app: Flask, client: FlaskClient) -> None:
    places: Places = app.places  # type: ignore[attr-defined] # of our own Flask class
    taken = [places.take(Kind.LARGE) for _ in range(2)]
    assert None not in taken
    try:
        answer = client.post("/v1/embeddings", json={"model": "fake", "input": LARGE})
        assert (answer.status_code, (answer.json or {})["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert "/v1/jobs" in (answer.json or {})["error"]["message"]
        # The small one is admitted: it ends by its own deadline.
        assert client.post("/v1/embeddings", json={"model": "fake", "input": SMALL}).status_code == 504
    finally:
        for place in taken:
            assert place is not None
            place.release()
    assert client.post("/v1/embeddings", json={"model": "fake", "input": LARGE}).status_code == 200
