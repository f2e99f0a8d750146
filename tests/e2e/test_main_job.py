"""The main job on real parts: real server, real web and worker processes, real HTTP, the real MiniLM model."""

import base64
import json
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from tests.support.corpus import passages
from tests.support.product import MODEL, reference, submit, vectors, wait_for_end
from tests.support.stack_fixture import RunningStack


@pytest.fixture
def http(stack: RunningStack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        yield client


def test_small_embeddings_equal_sentence_transformers(http: httpx.Client) -> None:
    texts = ["The lighthouse keeper wrote a letter.", "Une phrase en français.", "深夜的灯塔。", ""]
    answer = http.post("/v1/embeddings", json={"model": MODEL, "input": texts})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert [entry["index"] for entry in body["data"]] == [0, 1, 2, 3]
    got = np.array([entry["embedding"] for entry in body["data"]], dtype=np.float32)
    np.testing.assert_allclose(got, reference(texts), atol=1e-4)
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 10


def test_base64_holds_the_same_floats(http: httpx.Client) -> None:
    floats = http.post("/v1/embeddings", json={"model": MODEL, "input": "one text"}).json()
    encoded = http.post(
        "/v1/embeddings", json={"model": MODEL, "input": "one text", "encoding_format": "base64"}
    ).json()
    decoded = np.frombuffer(base64.b64decode(encoded["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_allclose(decoded, floats["data"][0]["embedding"], atol=1e-6)


def test_rerank_puts_the_answer_first(http: httpx.Client) -> None:
    documents = [
        "Bread rises because yeast makes gas.",
        {"text": "The moon causes the tides.", "source": "b"},
        "Cats sleep a lot.",
    ]
    body = http.post(
        "/v1/rerank",
        json={
            "model": MODEL,
            "query": "What makes the sea rise and fall?",
            "documents": documents,
            "return_documents": True,
        },
    ).json()
    assert body["results"][0]["index"] == 1
    assert body["results"][0]["document"] == {"text": "The moon causes the tides.", "source": "b"}
    scores = [result["relevance_score"] for result in body["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_a_small_job_is_answered_at_once_and_kept(http: httpx.Client) -> None:
    answer = http.post("/v1/jobs", json={"type": "embeddings", "model": MODEL, "input": ["a", "b"]})
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["status"] == "succeeded"
    assert len(job["results"]) == 2
    kept = http.get(f"/v1/jobs/{job['id']}").json()
    assert kept["counts"] == {"total": 2, "completed": 2, "failed": 0, "truncated": 0, "cached": 0}
    np.testing.assert_allclose(vectors(http, job["id"]), reference(["a", "b"]), atol=1e-4)


def test_a_corpus_is_queued_worked_off_and_fetched_in_order(http: httpx.Client) -> None:
    texts = passages(400)
    job = submit(http, texts)
    ended = wait_for_end(http, job["id"])
    assert ended["status"] == "succeeded"
    assert ended["counts"]["completed"] == ended["counts"]["total"] == len(texts)
    assert ended["tokens_per_s"] == pytest.approx(ended["tokens"] / (ended["ended_at"] - ended["started_at"]), abs=0.1)
    got = vectors(http, job["id"])
    assert got.shape == (len(texts), 384)
    sample = [0, 1, 63, 64, 255, 256, len(texts) - 1]
    np.testing.assert_allclose(got[sample], reference([texts[i] for i in sample]), atol=1e-4)
    lines = http.get(f"/v1/jobs/{job['id']}/results", params={"format": "ndjson"}).text.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"p{i}" for i in range(len(texts))]
    assert [json.loads(line)["index"] for line in lines] == list(range(len(texts)))


def test_two_jobs_at_once_do_not_mix(http: httpx.Client) -> None:
    left = [f"left text number {i}" for i in range(600)]
    right = [f"right text number {i}" for i in range(500)]
    jobs = [submit(http, left), submit(http, right)]
    for job, texts in zip(jobs, (left, right), strict=True):
        assert wait_for_end(http, job["id"])["counts"]["completed"] == len(texts)
        sample = [0, 255, 256, len(texts) - 1]
        got = vectors(http, job["id"])[sample]
        np.testing.assert_allclose(got, reference([texts[i] for i in sample]), atol=1e-4)


def test_a_rerank_job_scores_every_document_of_every_query(http: httpx.Client) -> None:
    topics = ["yeast and bread", "tides and the moon"]
    documents = [f"Document {i} about {topics[i % 2]}." for i in range(50)]
    queries = [{"query": f"tell me about {topic}", "documents": documents} for topic in topics]
    answer = http.post(
        "/v1/jobs",
        json={"type": "rerank", "model": MODEL, "queries": queries},
        headers={"Prefer": "respond-async"},
    )
    assert answer.status_code == 202, answer.text
    ended = wait_for_end(http, answer.json()["id"])
    assert ended["counts"]["completed"] == 100
    page = http.get(f"/v1/jobs/{ended['id']}/results", params={"format": "json", "limit": 1000}).json()
    scores = [item["relevance_score"] for item in page["data"]]
    assert np.mean(scores[0:50:2]) > np.mean(scores[1:50:2])
    assert np.mean(scores[51:100:2]) > np.mean(scores[50:100:2])


def test_cancel_ends_a_job_and_finished_chunks_stay_readable(http: httpx.Client) -> None:
    job = submit(http, passages(1500))
    while http.get(f"/v1/jobs/{job['id']}").json()["counts"]["completed"] == 0:
        time.sleep(0.1)
    first = http.delete(f"/v1/jobs/{job['id']}")
    assert first.status_code in {200, 202}, first.text
    ended = wait_for_end(http, job["id"])
    assert ended["status"] == "cancelled"
    assert 0 < ended["counts"]["completed"] < 1500
    lines = http.get(f"/v1/jobs/{job['id']}/results", params={"format": "ndjson"}).text.splitlines()
    assert len(lines) == ended["counts"]["completed"]


def test_an_idempotency_key_gives_the_same_job_and_refuses_another_payload(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "k-1", "Prefer": "respond-async"}
    body = {"type": "embeddings", "model": MODEL, "input": ["one", "two"]}
    first = http.post("/v1/jobs", json=body, headers=headers)
    again = http.post("/v1/jobs", json=body, headers=headers)
    assert first.json()["id"] == again.json()["id"]
    other = http.post("/v1/jobs", json={**body, "input": ["three"]}, headers=headers)
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency_mismatch"
