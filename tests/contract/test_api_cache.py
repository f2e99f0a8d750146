"""Values taken over from earlier work, over HTTP: the same for both lanes, counted, and never across tenants."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks.presence.statistics import read_statistics
from tests.support.web import opened_app, running_worker, settings_of, wait_for_end, write_keys

# `keen` has the cache by default.
TENANTS = {"ada": "", "bob": "", "keen": "cache = true"}
_fresh = count()


@pytest.fixture(scope="module")
def settings_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("data")
    return settings_of(server, folder, keys_file=write_keys(folder / "keys.toml", TENANTS), chunk_items=50)


@pytest.fixture(scope="module")
def app_here(settings_here: Settings) -> Iterator[Flask]:
    with opened_app(settings_here) as app, running_worker(settings_here):
        yield app


def client_of(app: Flask, tenant: str) -> FlaskClient:
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {tenant}"
    return client


@pytest.fixture
def ada(app_here: Flask) -> FlaskClient:
    return client_of(app_here, "ada")


@pytest.fixture
def texts() -> list[str]:
    """Texts that no other test has."""
    number = next(_fresh)
    return [f"text {i} of test {number}" for i in range(120)]


def embed(client: FlaskClient, texts: list[str], **fields: Any) -> tuple[Any, dict[str, Any]]:
    answer = client.post("/v1/embeddings", json={"model": "fake", "input": texts, **fields})
    assert answer.status_code == 200, answer.json
    body: dict[str, Any] = answer.json or {}
    return np.array([entry["embedding"] for entry in body["data"]], np.float32), body["usage"]


def run_job(client: FlaskClient, texts: list[str], **fields: Any) -> tuple[Any, dict[str, Any]]:
    body = {"type": "embeddings", "model": "fake", "input": texts, **fields}
    answer = client.post("/v1/jobs", json=body, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.json
    job = wait_for_end(client, (answer.json or {})["id"])
    page = client.get(f"/v1/jobs/{job['id']}/results?limit=1000").json or {}
    return np.array([item["embedding"] for item in page["data"]], np.float32), job


def test_without_asking_nothing_is_kept_and_nothing_is_said(ada: FlaskClient, texts: list[str]) -> None:
    for _ in range(2):
        _, usage = embed(ada, texts[:3])
        assert sorted(usage) == ["prompt_tokens", "total_tokens"]
    assert embed(ada, texts[:3], cache=True)[1]["cached_items"] == 0


def test_the_second_call_takes_over_and_reads_the_same(ada: FlaskClient, texts: list[str]) -> None:
    plain, usage = embed(ada, texts[:5])
    first, first_usage = embed(ada, texts[:5], cache=True)
    second, second_usage = embed(ada, texts[:5], cache=True)
    assert (first_usage["cached_items"], second_usage["cached_items"]) == (0, 5)
    assert second_usage["prompt_tokens"] == usage["prompt_tokens"]
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(second, plain)


def test_a_job_and_small_calls_share_what_they_keep(ada: FlaskClient, texts: list[str]) -> None:
    embed(ada, texts[:10], cache=True)
    vectors, job = run_job(ada, texts, cache=True)
    assert job["params"]["cache"]
    assert job["counts"] == {"total": 120, "completed": 120, "failed": 0, "truncated": 0, "cached": 10}
    small, usage = embed(ada, texts[100:110], cache=True)
    assert usage["cached_items"] == 10
    np.testing.assert_array_equal(small, vectors[100:110])
    again, second = run_job(ada, texts, cache=True)
    assert second["counts"]["cached"] == 120
    np.testing.assert_array_equal(again, vectors)


def test_a_small_job_counts_what_it_takes_over(ada: FlaskClient, texts: list[str]) -> None:
    body = {"type": "embeddings", "model": "fake", "input": texts[:4], "cache": True}
    first, second = (ada.post("/v1/jobs", json=body).json or {} for _ in range(2))
    assert (first["counts"]["cached"], second["counts"]["cached"]) == (0, 4)
    assert [item["embedding"] for item in second["results"]] == [item["embedding"] for item in first["results"]]


def test_equal_texts_in_different_chunks_of_a_job_are_computed_once(ada: FlaskClient, texts: list[str]) -> None:
    corpus = [texts[i % 20] for i in range(400)]
    plain, job = run_job(ada, corpus)
    assert job["counts"]["cached"] == 0
    vectors, job = run_job(ada, corpus, dedupe=True)
    # Chunks that are computed at the same time do not see each other; this worker takes one at a time.
    assert job["counts"]["cached"] == 380
    np.testing.assert_array_equal(vectors, plain)
    assert embed(ada, texts[:5], cache=True)[1]["cached_items"] == 0


def test_half_precision_at_rest_keeps_whole_precision_in_the_cache(ada: FlaskClient, texts: list[str]) -> None:
    half, _ = run_job(ada, texts, cache=True, dtype="float16")
    whole, usage = embed(ada, texts[:8], cache=True)
    assert usage["cached_items"] == 8
    np.testing.assert_array_equal(whole, embed(ada, texts[:8])[0])
    np.testing.assert_array_equal(whole.astype(np.float16), half[:8].astype(np.float16))


def test_scores_are_taken_over_too(ada: FlaskClient, texts: list[str]) -> None:
    body = {"model": "fake", "query": "q", "documents": texts[:6], "cache": True}
    first, second = (ada.post("/v1/rerank", json=body).json or {} for _ in range(2))
    assert (first["usage"]["cached_items"], second["usage"]["cached_items"]) == (0, 6)
    assert second["results"] == first["results"]


def test_another_tenant_takes_nothing_over(app_here: Flask, ada: FlaskClient, texts: list[str]) -> None:
    embed(ada, texts[:5], cache=True)
    assert embed(client_of(app_here, "bob"), texts[:5], cache=True)[1]["cached_items"] == 0


def test_a_key_may_have_it_by_default_and_a_request_may_rule_it_out(app_here: Flask, texts: list[str]) -> None:
    keen = client_of(app_here, "keen")
    assert embed(keen, texts[:5])[1]["cached_items"] == 0
    assert embed(keen, texts[:5])[1]["cached_items"] == 5
    assert "cached_items" not in embed(keen, texts[:5], cache=False)[1]
    assert run_job(keen, texts)[1]["counts"]["cached"] == 5


def test_other_dimensions_are_other_values(ada: FlaskClient, texts: list[str]) -> None:
    embed(ada, texts[:3], cache=True)
    short, usage = embed(ada, texts[:3], cache=True, dimensions=8)
    assert usage["cached_items"] == 0
    assert short.shape == (3, 8)
    np.testing.assert_array_equal(embed(ada, texts[:3], cache=True, dimensions=8)[0], short)


def test_hits_and_misses_are_counted_for_the_operator(
    ada: FlaskClient, server: EmbeddedServer, texts: list[str]
) -> None:
    with Redis.from_url(server.url) as redis:
        before = read_statistics(redis, ["fake"]).cache_lookups
        for _ in range(2):
            embed(ada, texts[:4], cache=True)
        after = read_statistics(redis, ["fake"]).cache_lookups
    assert {name: after[name] - before.get(name, 0) for name in after} == {"hit": 4, "miss": 4}
