"""The web tier alone, with no worker there: refused at once, or kept until one comes."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from config.catalog import ModelCard
from config.settings import Settings
from tasks.jobs.claims import ClaimCode
from tasks.jobs.leases import Leases
from tasks.lanes import Lane, Service
from tasks.presence.worker_registry import WorkerHeartbeat, WorkerInfo
from tests.support.web import opened_app, services_of
from workers.models.fingerprint import make_fingerprint

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
    over = client.post(f"/v1/jobs/{job_id}/pause")
    assert (over.status_code, over.headers["x-should-retry"]) == (409, "false")
    assert client.get(f"/v1/jobs/{job_id}/results").json["data"] == []
    array = np.load(io.BytesIO(client.get(f"/v1/jobs/{job_id}/results?format=npy").data))
    assert array.shape == (700, 64)
    assert np.isnan(array).all()
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 200
    assert client.get(f"/v1/jobs/{job_id}").status_code == 404


@pytest.mark.parametrize("priority", ["low", "normal", "high"])
def test_a_server_without_keys_obeys_the_priority_that_is_asked_for(app: Flask, priority: str) -> None:
    body = {"type": "embeddings", "model": "fake", "input": ["a text"] * 100, "priority": priority}
    assert (app.test_client().post("/v1/jobs", json=body).json or {})["priority"] == priority


def test_a_job_whose_model_is_gone_says_what_it_waits_for(app: Flask) -> None:
    client, live = app.test_client(), services_of(app)
    job_id = submit(client, [text for text in TEXTS for _ in range(4)]).json["id"]
    lane = Lane("fake", Service.BULK)
    live.store.leases.dispatch(lane)
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


STRICT = """
[[models]]
name = "{name}"
source = "none:"
family = "fake"
backend = "fake"
capabilities = ["dense", "rerank"]
rerank_by = "similarity"
dimension = 64
max_tokens = 64
{more}
"""
LENGTHS = {"uncut": "64 dimensions only", "some": "16, 32, 64 dimensions", "many": "16 to 64 dimensions"}


@pytest.fixture
def strict(settings: Settings, tmp_path: Path) -> Settings:
    """Three models: of one length, of some lengths, of all from 16 on."""
    more = {"uncut": "", "some": "matryoshka = [32, 16]", "many": "matryoshka_from = 16"}
    cards = "".join(STRICT.format(name=name, more=line) for name, line in more.items())
    (tmp_path / "cards.toml").write_text(cards)
    return settings.model_copy(update={"models": tuple(more), "catalog_file": tmp_path / "cards.toml"})


def embed_in_every_way(client: FlaskClient, model: str, size: int) -> dict[str, Any]:
    """Ask for vectors of that length in each vendor's spelling."""
    asked = {"model": model, "input": "a", "dimensions": size}
    cohere = {"model": model, "texts": ["a"], "input_type": "search_document", "output_dimension": size}
    bodies = {
        "/v1/embeddings": asked,
        "/v1/embeddings?": {"model": model, "input": "a", "output_dimension": size},
        "/v1/jobs": {"type": "embeddings", **asked, "input": ["a"]},
        "/v2/embed": cohere,
        "/api/embed": asked,
        "/pooling": asked,
        "/embeddings": asked,
        f"/openai/deployments/{model}/embeddings?api-version=1": {"input": "a", "dimensions": size},
    }
    answers = {path: client.post(path, json=body) for path, body in bodies.items()}
    upload = client.post(
        f"/v1/jobs?model={model}&dimensions={size}", data='{"text": "a"}', content_type="application/x-ndjson"
    )
    return {**answers, "upload": upload}


@pytest.mark.parametrize("model", list(LENGTHS))
def test_a_length_that_the_model_does_not_offer_is_refused_in_every_spelling(model: str, strict: Settings) -> None:
    with opened_app(strict) as app:
        for way, answer in embed_in_every_way(app.test_client(), model, 8).items():
            assert answer.status_code == 400, way
            assert f"{model} gives {LENGTHS[model]}" in answer.text, way
        offered = {"uncut": 64, "some": 16, "many": 33}[model]
        for way, answer in embed_in_every_way(app.test_client(), model, offered).items():
            assert answer.status_code == 503, (way, answer.text)


def test_an_operator_may_allow_any_length(strict: Settings) -> None:
    with opened_app(strict.model_copy(update={"any_dimensions": True})) as app:
        answers = embed_in_every_way(app.test_client(), "uncut", 8)
        assert {answer.status_code for answer in answers.values()} == {503}
        assert app.test_client().get("/v1/models/uncut").json["matryoshka_from"] == 1


@pytest.mark.parametrize(
    ("card", "asked", "prompt"), [("", None, None), ("document", None, "D: "), ("", "query", "Q: ")]
)
def test_texts_of_a_job_are_documents_where_the_card_says_so(
    card: str, asked: str | None, prompt: str | None, settings: Settings, tmp_path: Path
) -> None:
    more = 'query_instruction = "Q: "\ndocument_instruction = "D: "\n'
    more += f'job_input_type = "{card}"' if card else ""
    (tmp_path / "cards.toml").write_text(STRICT.format(name="prompted", more=more))
    here = settings.model_copy(update={"models": ("prompted",), "catalog_file": tmp_path / "cards.toml"})
    with opened_app(here) as app:
        body = {"type": "embeddings", "model": "prompted", "input": TEXTS, "input_type": asked}
        job = app.test_client().post("/v1/jobs", json=body).json
        assert job["params"]["instruction"] == prompt


def test_the_prompt_that_a_card_wants_for_jobs_is_part_of_the_fingerprint() -> None:
    plain = ModelCard(name="m", source="none:", document_instruction="D: ")
    wanted = plain.model_copy(update={"job_input_type": "document"})
    assert make_fingerprint(plain, "float32") != make_fingerprint(wanted, "float32")


def test_workers_that_take_no_chunks_do_not_make_the_service_ready(app: Flask, redis: Redis) -> None:
    calls_only = WorkerInfo("w1", "here", 1, "cpu", "float32", "f", 0.0, bulk=False)
    WorkerHeartbeat(redis, "w1", dict, ttl_s=60)._send({"fake": calls_only})
    answer = app.test_client().get("/readyz")
    body: Any = answer.json
    assert (answer.status_code, body["status"], body["models"]["fake"]["workers"]) == (503, "waiting", 1)
    assert "chunks of jobs" in body["models"]["fake"]["waits_for"]
    shown: Any = app.test_client().get("/health").json
    assert shown["workers"][0]["bulk"] is False
