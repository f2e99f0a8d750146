"""Log lines for machines: one for each request and each event of a job, with fields, and no text of a caller."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from flask import Flask

from app.http.request_ids import RequestIdFilter
from app.jobs.event_lines import EventLines
from config.logging import configure_logging
from config.settings import Settings
from tests.support.web import opened_app, running_worker, services_of, wait_for_end, write_keys

pytestmark = pytest.mark.usefixtures("logging_restored")
EMBED = "/v1/embeddings"
# What Flask's way reads, so that the call is not answered before it.
FLASKS_WAY = {"Prefer": "wait=1"}


@pytest.fixture
def app(settings: Settings, tmp_path: Path) -> Iterator[Flask]:
    keys = write_keys(tmp_path / "keys.toml", {"acme": 'name = "search"'})
    with opened_app(settings.model_copy(update={"keys_file": keys, "log_format": "json"})) as app:
        yield app


@pytest.fixture
def lines(app: Flask) -> Any:
    configure_logging(services_of(app).settings, "web")
    handler, written = logging.getLogger().handlers[0], io.StringIO()
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(written)
    handler.addFilter(RequestIdFilter(in_text=False))

    def read() -> list[dict[str, Any]]:
        text = written.getvalue()
        written.seek(0)
        written.truncate()
        return [orjson.loads(line) for line in text.splitlines()]

    return read


def post(app: Flask, path: str, body: object, **headers: str) -> Any:
    return app.test_client().post(path, json=body, headers={"Authorization": "Bearer acme", **headers})


@pytest.mark.parametrize("headers", [{}, FLASKS_WAY], ids=["plain", "by-flask"])
def test_a_call_has_a_line_with_whose_it_was_and_what_it_took(app: Flask, lines: Any, headers: dict[str, str]) -> None:
    with running_worker(services_of(app).settings):
        body = {"model": "fake", "input": ["a secret text", "another"]}
        lines()
        answer = post(app, EMBED, body, **{"x-request-id": "r-1", **headers})
    assert answer.status_code == 200
    (line,) = [one for one in lines() if one.get("route") == EMBED]
    fields = {name: line[name] for name in ("method", "status", "tenant", "key", "model", "items")}
    assert fields == {
        "method": "POST",
        "status": 200,
        "tenant": "acme",
        "key": "search",
        "model": "fake",
        "items": 2,
    }
    assert line["tokens"] == answer.json["usage"]["total_tokens"]
    assert line["duration_ms"] > 0
    assert "secret" not in str(line)


def test_a_line_has_nothing_of_the_request_before_it(app: Flask, lines: Any) -> None:
    post(app, "/v1/jobs", {"type": "embeddings", "model": "fake", "input": ["text"] * 100})
    app.test_client().get("/v1/models")
    first, second = [one for one in lines() if "route" in one]
    assert (first["tenant"], first["status"], first["items"]) == ("acme", 202, 100)
    assert first["job"].startswith("job_")
    assert second["status"] == 401
    assert not {"tenant", "job", "model", "items"} & second.keys()


def test_a_call_without_a_place_has_its_line(app: Flask, lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.places, "take", lambda _: None)  # type: ignore[attr-defined]
    assert post(app, EMBED, {}, **{"x-request-id": "r-2"}).headers["x-request-id"] == "r-2"
    (line,) = [one for one in lines() if "route" in one]
    assert (line["method"], line["status"], line["route"]) == ("POST", 429, "(no place)")


def test_each_event_of_a_job_has_one_line_whoever_writes_it(app: Flask, lines: Any) -> None:
    body = {"type": "embeddings", "model": "fake", "input": ["a secret text"] * 100}
    with running_worker(services_of(app).settings):
        job_id = post(app, "/v1/jobs", body, **{"x-request-id": "r-3"}).json["id"]
        client = app.test_client()
        client.environ_base["HTTP_AUTHORIZATION"] = "Bearer acme"
        wait_for_end(client, job_id)
    for writer in [EventLines(services_of(app).redis) for _ in range(2)]:
        writer.write()
    events = [one for one in lines() if "event" in one and one["job"] == job_id]
    assert [one["event"] for one in events] == ["created", "started", "succeeded"]
    assert {(one["tenant"], one["model"]) for one in events} == {("acme", "fake")}
    created, started, _ = events
    assert (created["by"], created["request_id"], created["items"]) == ("acme/search", "r-3", 100)
    assert started["worker"] == "w-test"
    assert "secret" not in str(events)
