"""The app and a client of it. A module that needs other settings, or more than these, defines the fixture anew."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tests.support.web import CORPUS, NDJSON, opened_app, running_worker, settings_of, wait_for_end
from workers.engine.device import DeviceEngine


@pytest.fixture(scope="module")
def settings_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of the module: the fake model, and a server that was emptied."""
    return settings_of(server, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def app_here(settings_here: Settings) -> Iterator[Flask]:
    """The module's app."""
    with opened_app(settings_here) as app:
        yield app


@pytest.fixture(scope="module")
def worker_here(settings_here: Settings) -> Iterator[DeviceEngine]:
    """The module's worker."""
    with running_worker(settings_here) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(app_here: Flask, worker_here: DeviceEngine) -> FlaskClient:
    """A client of the whole product."""
    return app_here.test_client()


@pytest.fixture(scope="module")
def ended(client: FlaskClient) -> dict[str, Any]:
    """A job of the whole corpus that has succeeded; its items have ids."""
    lines = b"".join(json.dumps({"id": f"p{i}", "text": text}).encode() + b"\n" for i, text in enumerate(CORPUS))
    answer = client.post("/v1/jobs?type=embeddings&model=fake", data=lines, content_type=NDJSON)
    assert answer.status_code == 202, answer.json
    job = wait_for_end(client, (answer.json or {})["id"])
    assert job["status"] == "succeeded"
    return job


@pytest.fixture(scope="module")
def vectors(client: FlaskClient) -> Any:
    """What the synchronous route gives for the corpus."""
    body = client.post("/v1/embeddings", json={"model": "fake", "input": CORPUS}).json or {}
    return np.array([entry["embedding"] for entry in body["data"]], np.float32)
