"""The web tier alone, with no worker there: refused at once, or kept until one comes."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient

from config.settings import Settings
from tasks.jobs.claims import ClaimCode
from tasks.jobs.leases import Leases
from tasks.lanes import Lane, Service
from tests.support.web import opened_app, services_of

TEXTS = [f"passage number {i}" for i in range(700)]


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    with opened_app(settings) as app:
        yield app


def submit(client: FlaskClient, texts: Any) -> Any:
    return client.post("/v1/jobs", json={"type": "embeddings", "model": "fake", "input": texts})


def test_a_job_waits_for_a_worker_can_be_paused_resumed_and_cancelled(app: Flask) -> None:
    client = app.test_client()
    job_id = submit(client, TEXTS).json["id"]
    early = client.get(f"/v1/jobs/{job_id}/results")
    assert (early.status_code, early.json["error"]["code"]) == (409, "job_not_finished")
    assert "x-should-retry" not in early.headers
    waited = client.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=1"})
    assert waited.json["status"] == "queued"
    assert client.post(f"/v1/jobs/{job_id}/pause").json["status"] == "paused"
    assert client.post(f"/v1/jobs/{job_id}/resume").json["status"] in {"queued", "running"}
    for _ in range(2):
        answer = client.post(f"/v1/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json["status"]) == (200, "cancelled")
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 200
    over = client.post(f"/v1/jobs/{job_id}/pause")
    assert (over.status_code, over.headers["x-should-retry"]) == (409, "false")
    assert client.get(f"/v1/jobs/{job_id}/results").json["data"] == []
    array = np.load(io.BytesIO(client.get(f"/v1/jobs/{job_id}/results?format=npy").data))
    assert array.shape == (700, 64)
    assert np.isnan(array).all()


def test_a_job_whose_model_is_gone_says_what_it_waits_for(app: Flask) -> None:
    client, live = app.test_client(), services_of(app)
    job_id = submit(client, [text for text in TEXTS for _ in range(4)]).json["id"]
    lane = Lane("fake", Service.BULK)
    for fingerprint, code in (("fake:a", ClaimCode.OK), ("fake:b", ClaimCode.MISFIT)):
        leases = Leases(live.redis, live.settings, {"fake": fingerprint})
        chunk = 0 if code is ClaimCode.OK else 1
        assert leases.claim(job_id, chunk, "w").code is code
    assert "fake:a" in client.get(f"/v1/jobs/{job_id}").json["error"]
    live.store.leases.reap(lane)
    Leases(live.redis, live.settings, {"fake": "fake:a"}).reap(lane)
    assert client.get(f"/v1/jobs/{job_id}").json["error"] is None


def test_a_small_job_without_a_worker_is_refused_at_once_and_not_kept(app: Flask) -> None:
    client = app.test_client()
    answer = submit(client, ["a"])
    assert (answer.status_code, answer.json["error"]["code"]) == (503, "model_not_ready")
    assert client.get("/v1/jobs").json["data"] == []


def test_without_a_worker_calls_are_refused_at_once_and_readiness_says_who_waits_for_what(app: Flask) -> None:
    client = app.test_client()
    answer = client.post("/v1/embeddings", json={"model": "fake", "input": "a"})
    assert answer.status_code == 503
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert (answer.json or {})["error"]["code"] == "model_not_ready"
    for path in ("/readyz", "/health"):
        probe = client.get(path)
        assert probe.status_code == 503
        body = probe.json or {}
        assert body["models"]["fake"]["waits_for"] == "a worker that has loaded and warmed it"
        assert set(body["error"]) == {"message", "type", "param", "code"}
    assert client.get("/livez").status_code == 200
