"""Files and batches over HTTP: upload, validation, output and error files, cancel, expiry, lists."""

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from app.batching.steward import Steward
from config.settings import Settings
from stack.server import EmbeddedServer
from tasks import keys
from tests.web import opened_app, running_worker, services_of, settings_of

EMBED = "/v1/embeddings"
RERANK = "/v1/rerank"
ENDED = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture(scope="module")
def settings_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("data")
    card = 'source = "none:"\nfamily = "fake"\nbackend = "fake"\ncapabilities = ["dense", "rerank"]\n'
    card += 'rerank_by = "similarity"\ndimension = 16\nmax_tokens = 8\npooling = "mean"\n'
    (folder / "models.toml").write_text(f'[[models]]\nname = "fake-two"\n{card}')
    here = settings_of(server, folder, chunk_items=20, catalog_file=folder / "models.toml", batch_max_requests=1000)
    return here.model_copy(update={"models": ("fake", "fake-two")})


@pytest.fixture(scope="module")
def app_here(settings_here: Settings) -> Iterator[Flask]:
    with opened_app(settings_here) as app:
        yield app


@pytest.fixture(scope="module")
def idle(app_here: Flask) -> FlaskClient:
    """A client of an app whose batches nobody looks after."""
    return app_here.test_client()


@pytest.fixture(scope="module")
def client(app_here: Flask, settings_here: Settings) -> Iterator[FlaskClient]:
    """A client of the whole product."""
    steward = Steward(services_of(app_here))
    with running_worker(settings_here):
        steward.start()
        yield app_here.test_client()
        steward.close()


def upload(client: FlaskClient, body: bytes, **fields: str) -> Any:
    data = {"purpose": "batch", "file": (io.BytesIO(body), "in.jsonl"), **fields}
    return client.post("/v1/files", data=data, content_type="multipart/form-data")


def line_of(custom_id: str, body: dict[str, Any], url: str = EMBED) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def embed(custom_id: str, text: Any, model: str = "fake", **fields: Any) -> dict[str, Any]:
    return line_of(custom_id, {"model": model, "input": text, **fields})


def ndjson(lines: list[Any]) -> bytes:
    return b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)


def start(client: FlaskClient, lines: list[Any], endpoint: str = EMBED, **fields: Any) -> dict[str, Any]:
    file = upload(client, ndjson(lines)).json
    body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h", **fields}
    answer = client.post("/v1/batches", json=body)
    assert answer.status_code == 200, answer.json
    return answer.json or {}


def wait(client: FlaskClient, batch: dict[str, Any], states: set[str] = ENDED) -> dict[str, Any]:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        now: dict[str, Any] = client.get(f"/v1/batches/{batch['id']}").json or {}
        if now["status"] in states:
            return now
        time.sleep(0.05)
    raise AssertionError(now)


def run(client: FlaskClient, lines: list[Any], endpoint: str = EMBED, **fields: Any) -> dict[str, Any]:
    return wait(client, start(client, lines, endpoint, **fields))


def read(client: FlaskClient, file_id: str | None) -> dict[str, dict[str, Any]]:
    """The lines of an output file by custom id, in the file's order."""
    if file_id is None:
        return {}
    answer = client.get(f"/v1/files/{file_id}/content")
    assert answer.status_code == 200
    lines = [json.loads(line) for line in answer.data.splitlines()]
    return {line["custom_id"]: line for line in lines}


def body_of(line: dict[str, Any]) -> dict[str, Any]:
    assert line["error"] is None
    assert line["id"].startswith("batch_req_")
    assert line["response"]["request_id"].startswith("req_")
    body: dict[str, Any] = line["response"]["body"]
    return body


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
