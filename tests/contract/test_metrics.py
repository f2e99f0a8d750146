"""`/metrics` over HTTP: the shared state as Redis has it, and what this web process did."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from app.ops.metric_names import METRICS
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks import keys
from tasks.jobs.blobs import Blobs
from tests.support import job_maker
from tests.support.job_maker import LANE
from tests.support.web import opened_app, running_worker, services_of, wait_for_end

ROOT = Path(__file__).parents[2]
Samples = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    with opened_app(settings.model_copy(update={"chunk_items": 10, "window": 4})) as app:
        yield app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def scrape(client: FlaskClient) -> Samples:
    """All values by name and labels; the process, which differs, is left out of these."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.mimetype == "text/plain"
    return {
        (sample.name, tuple(value for name, value in sorted(sample.labels.items()) if name != "process")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def submit(client: FlaskClient, items: int) -> str:
    texts = [f"passage number {i}" for i in range(items)]
    answer = client.post("/v1/jobs", json={"type": "embeddings", "model": "fake", "input": texts})
    assert answer.status_code == 202
    return str(answer.json["id"])  # type: ignore[index]


def test_ends_of_jobs_and_outcomes_of_their_items_are_counted(app: Flask, client: FlaskClient) -> None:
    with running_worker(services_of(app).settings):
        body = {"type": "embeddings", "model": "fake", "input": [f"text {number}" for number in range(100)]}
        for _ in range(2):
            wait_for_end(client, (client.post("/v1/jobs", json=body).json or {})["id"])
        client.post("/v1/jobs", json={"type": "embeddings", "model": "fake", "input": ["small"]})
    client.delete(f"/v1/jobs/{submit(client, 100)}")
    seen = scrape(client)
    ends = {name: seen["twolane_jobs_ended_total", (name,)] for name in ("succeeded", "failed", "cancelled", "expired")}
    assert ends == {"succeeded": 3, "failed": 0, "cancelled": 1, "expired": 0}
    assert seen["twolane_job_items_total", ("completed",)] == 201
    assert seen["twolane_job_items_total", ("failed",)] == 0
    assert seen["twolane_job_tokens_total", ()] > 201


def test_failed_items_are_counted_once_however_often_their_result_comes(
    app: Flask, client: FlaskClient, blobs: Blobs
) -> None:
    store = services_of(app).store
    job_maker.submit(store, blobs, ["x"] * 4, chunk_items=4)
    (ticket,) = store.leases.dispatch(LANE)
    claim = store.leases.claim(ticket.job_id, ticket.chunk, "w")
    for _ in range(3):
        store.leases.complete(claim, job_maker.make_completion(claim, failed=3))
    seen = scrape(client)
    assert seen["twolane_job_items_total", ("completed",)] == 1
    assert seen["twolane_job_items_total", ("failed",)] == 3
    assert seen["twolane_jobs_ended_total", ("succeeded",)] == 1


def test_a_job_without_a_worker_shows_as_depth_that_never_drains(client: FlaskClient) -> None:
    submit(client, 100)
    seen = scrape(client)
    assert seen["twolane_jobs", ("queued",)] == 1
    assert seen["twolane_lane_jobs_ready", ("bulk.fake",)] == 1
    assert seen["twolane_lane_chunks_in_flight", ("bulk.fake", "ticket")] == 0
    assert seen["twolane_lane_chunks_in_flight", ("bulk.fake", "claimed")] == 0
    assert seen["twolane_lane_messages", ("bulk.fake",)] == 4
    assert seen["twolane_lane_waiting_tokens", ("bulk.fake",)] > 100
    assert seen["twolane_lane_drain_seconds", ("bulk.fake",)] == float("inf")
    assert seen["twolane_lane_drain_seconds", ("interactive.fake",)] == 0
    assert seen["twolane_workers_ready", ("fake",)] == 0
    assert seen["twolane_store_reserved_bytes", ()] == 100 * 64 * 4
    assert seen["twolane_store_memory_bytes", ()] > 0


def test_chunks_that_no_worker_takes_show_for_how_long_they_have_waited(client: FlaskClient, redis: Redis) -> None:
    assert scrape(client)["twolane_lane_stalled_seconds", ("bulk.fake",)] == 0
    submit(client, 70)
    shares = keys.lane_shares(LANE)
    redis.hset(shares, "moved", str(float(redis.hget(shares, "moved") or 0) - 60_000))
    submit(client, 70)
    assert scrape(client)["twolane_lane_stalled_seconds", ("bulk.fake",)] >= 60


def test_a_claimed_chunk_is_no_ticket_and_a_paused_job_is_not_lost(app: Flask, client: FlaskClient) -> None:
    live, job_id = services_of(app), submit(client, 100)
    live.store.leases.dispatch(LANE)
    live.store.leases.claim(job_id, 0, "w")
    seen = scrape(client)
    assert seen["twolane_lane_chunks_in_flight", ("bulk.fake", "claimed")] == 1
    assert seen["twolane_lane_chunks_in_flight", ("bulk.fake", "ticket")] == 3
    assert seen["twolane_jobs", ("running",)] == 1
    live.store.pause(job_id)
    assert scrape(client)["twolane_jobs", ("paused",)] == 1
    live.store.cancel(job_id)
    assert scrape(client)["twolane_jobs", ("cancelling",)] == 1


def test_a_worker_empties_the_lanes_and_counts_as_ready(client: FlaskClient, settings: Settings) -> None:
    job_id = submit(client, 100)
    with running_worker(settings):
        wait_for_end(client, job_id)
        assert client.post("/v1/embeddings", json={"model": "fake", "input": "one"}).status_code == 200
        # Who is ready is read twice a second at most.
        while not (seen := scrape(client))["twolane_workers_ready", ("fake",)]:
            time.sleep(0.1)
    assert seen["twolane_workers_ready", ("fake",)] == 1
    assert seen["twolane_workers_tokens_per_second", ("fake",)] == 1000
    calls = [seen[f"twolane_call_{name}_seconds", ("fake",)] for name in ("target", "p99", "expected")]
    assert calls == [0.05, 0.012, 0.08]
    assert seen["twolane_lane_drain_seconds", ("bulk.fake",)] == 0
    assert {seen["twolane_jobs", (state,)] for state in ("queued", "running", "paused", "cancelling")} == {0}
    assert seen["twolane_http_requests_total", ("POST", "/v1/embeddings", "200")] == 1
    assert seen["twolane_http_request_seconds_count", ("/v1/embeddings",)] == 1


def test_another_web_process_says_the_same_of_the_shared_state(app: Flask, settings: Settings) -> None:
    submit(app.test_client(), 100)
    shared = {metric.name for metric in METRICS if "process" not in metric.labels}
    shared -= {"twolane_store_memory_bytes", "twolane_lane_stalled_seconds"}
    with opened_app(settings) as other:
        views = [scrape(one.test_client()) for one in (app, other)]
    first, second = ({key: value for key, value in view.items() if key[0] in shared} for view in views)
    assert first == second
    assert len(first) > 10


def test_requests_that_wait_for_a_busy_worker_are_counted(client: FlaskClient, redis: Redis) -> None:
    redis.rpush("twolane:lane:interactive.fake:requests", b"frame", b"frame")
    redis.hset("twolane:lane:interactive.fake:load", "waiting", 500)
    seen = scrape(client)
    assert seen["twolane_lane_waiting_requests", ("interactive.fake",)] == 2
    assert seen["twolane_lane_waiting_tokens", ("interactive.fake",)] == 500


def test_refusals_are_counted_by_their_code(client: FlaskClient) -> None:
    for _ in range(3):
        assert client.post("/v1/embeddings", json={"model": "fake", "input": "one"}).status_code == 503
    seen = scrape(client)
    assert seen["twolane_http_refusals_total", ("model_not_ready", "503")] == 3
    assert seen["twolane_http_requests_total", ("POST", "/v1/embeddings", "503")] == 3


def test_a_strangers_words_make_no_series(client: FlaskClient) -> None:
    client.open("/wp-admin/secret", method="BREW")
    client.get("/wp-admin/other")
    seen = scrape(client)
    assert seen["twolane_http_requests_total", ("unknown", "unknown", "404")] == 2
    assert not any("wp-admin" in label or label == "BREW" for _, labels in seen for label in labels)


def test_a_store_that_is_away_is_a_value_and_no_error(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "server") as server:
        settings = Settings(_env_file=None, redis_url=server.url, data_dir=tmp_path, models=("fake",))
        with opened_app(settings) as app:
            assert scrape(app.test_client())["twolane_store_up", ()] == 1
            server.kill()
            seen = scrape(app.test_client())
            assert seen["twolane_store_up", ()] == 0
            assert ("twolane_jobs", ("queued",)) not in seen
            assert seen["twolane_http_requests_total", ("GET", "/metrics", "200")] == 1


def test_a_redis_that_evicts_keys_is_told_in_metrics_health_and_log(
    client: FlaskClient, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    assert scrape(client)["twolane_store_evicts", ()] == 0
    assert (client.get("/health").json or {})["warnings"] == []
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert scrape(client)["twolane_store_evicts", ()] == 1
        (warning,) = (client.get("/health").json or {})["warnings"]
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    assert "noeviction" in warning
    assert warning in caplog.text


def test_the_operators_page_has_every_metric() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    assert set(re.findall(r"`(twolane_[a-z0-9_]+)", page)) == {metric.name for metric in METRICS}
