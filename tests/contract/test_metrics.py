"""`/metrics` over HTTP: the shared state as Redis has it, and what this web process did."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from app.ops.metric_names import METRICS
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks import keys
from tasks.jobs.blobs import Blobs
from tasks.presence.counters import Counters, read_counts
from tasks.presence.fleet import WorkerCard, send_card
from tasks.presence.web_processes import WebReporter
from tasks.presence.worker_registry import WorkerInfo
from tests.support import job_maker
from tests.support.job_maker import LANE
from tests.support.polling import wait_until
from tests.support.web import opened_app, running_worker, services_of, wait_for_end, write_keys

ROOT = Path(__file__).parents[2]
PROMTOOL = shutil.which("promtool")
Samples = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    with opened_app(settings.model_copy(update={"chunk_items": 10, "window": 4})) as app:
        yield app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def scrape(client: FlaskClient) -> Samples:
    """All values by name and labels, which are in the order of their names."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.mimetype == "text/plain"
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
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


def test_a_job_without_a_worker_shows_as_depth_that_drains_at_the_speed_of_late(
    app: Flask, client: FlaskClient
) -> None:
    submit(client, 100)
    seen = scrape(client)
    assert seen["twolane_jobs", ("queued",)] == 1
    assert seen["twolane_lane_jobs_ready", ("fake", "bulk")] == 1
    assert seen["twolane_lane_chunks_in_flight", ("fake", "bulk", "ticket")] == 0
    assert seen["twolane_lane_chunks_in_flight", ("fake", "bulk", "claimed")] == 0
    assert seen["twolane_lane_messages", ("fake", "bulk")] == 4
    assert seen["twolane_lane_waiting_tokens", ("fake", "bulk")] > 100
    waiting = seen["twolane_lane_waiting_tokens", ("fake", "bulk")]
    assert seen["twolane_lane_drain_seconds", ("fake", "bulk")] == pytest.approx(waiting / 1000)
    assert seen["twolane_lane_drain_seconds", ("fake", "interactive")] == 0
    assert seen["twolane_workers_ready", ("fake",)] == 0
    assert seen["twolane_store_reserved_bytes", ()] == 100 * 64 * 4
    assert seen["twolane_store_memory_bytes", ()] > 0
    # A worker that was here today says how fast the next one will be.
    card = WorkerCard("gpu0.1@host#2", "host", 2, models={"fake": "ready"}, usual_tokens_per_s=50.0)
    send_card(services_of(app).redis, card)
    assert scrape(client)["twolane_lane_drain_seconds", ("fake", "bulk")] == pytest.approx(waiting / 50)


def test_chunks_that_no_worker_takes_show_for_how_long_they_have_waited(client: FlaskClient, redis: Redis) -> None:
    assert scrape(client)["twolane_lane_stalled_seconds", ("fake", "bulk")] == 0
    submit(client, 70)
    shares = keys.lane_shares(LANE)
    redis.hset(shares, "moved", str(float(redis.hget(shares, "moved") or 0) - 60_000))
    submit(client, 70)
    assert scrape(client)["twolane_lane_stalled_seconds", ("fake", "bulk")] >= 60


def test_a_claimed_chunk_is_no_ticket_and_a_paused_job_is_not_lost(app: Flask, client: FlaskClient) -> None:
    live, job_id = services_of(app), submit(client, 100)
    live.store.leases.dispatch(LANE)
    live.store.leases.claim(job_id, 0, "w")
    seen = scrape(client)
    assert seen["twolane_lane_chunks_in_flight", ("fake", "bulk", "claimed")] == 1
    assert seen["twolane_lane_chunks_in_flight", ("fake", "bulk", "ticket")] == 3
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
    wait_until(lambda: scrape(client)["twolane_lane_drain_seconds", ("fake", "bulk")] == 0)
    assert {seen["twolane_jobs", (state,)] for state in ("queued", "running", "paused", "cancelling")} == {0}
    assert seen["twolane_http_requests_total", ("POST", "/v1/embeddings", "200")] == 1
    assert seen["twolane_http_request_seconds_count", ("/v1/embeddings",)] == 1


def test_another_web_process_says_the_same(app: Flask, settings: Settings) -> None:
    client = app.test_client()
    submit(client, 100)
    client.post("/v1/embeddings", json={"model": "fake", "input": "one"})
    moving = {"twolane_store_memory_bytes", "twolane_lane_stalled_seconds"}
    with opened_app(settings) as other:
        views = [scrape(one.test_client()) for one in (app, other)]
    # The first scrape was an answer, too, and is in the second.
    first, second = (
        {
            key: value
            for key, value in view.items()
            if key[0].startswith("twolane_") and key[0] not in moving and "/metrics" not in key[1]
        }
        for view in views
    )
    assert first == second
    assert first["twolane_http_requests_total", ("POST", "/v1/embeddings", "503")] == 1
    assert second["twolane_http_requests_total", ("POST", "/v1/embeddings", "503")] == 1


def test_a_restart_of_the_web_process_takes_no_counter_back(settings: Settings) -> None:
    for run in (1, 2):
        with opened_app(settings) as app:
            client = app.test_client()
            client.post("/v1/embeddings", json={"model": "fake", "input": "one"})
            assert scrape(client)["twolane_http_refusals_total", ("model_not_ready", "503")] == run


def test_counts_are_added_once_though_redis_answers_late(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    counters, execute = Counters(redis), redis.execute_command
    counters.add("pass_rows_total", ("fake",), 5)

    def lose_the_answer(*arguments: Any) -> None:
        execute(*arguments)
        raise RedisConnectionError("the answer was lost")

    monkeypatch.setattr(redis, "execute_command", lose_the_answer)
    with pytest.raises(RedisConnectionError):
        counters.flush()
    monkeypatch.undo()
    counters.add("pass_rows_total", ("fake",), 2)
    counters.flush()
    assert read_counts(redis).counter("pass_rows_total") == {("fake",): 7}


def test_places_of_all_web_processes_are_added_up(app: Flask, client: FlaskClient, redis: Redis) -> None:
    ours = app.extensions["twolane-metrics"].reporter
    other = WebReporter(redis, lambda: {"small": 3, "wait": 1})
    ours.report()
    other.report()
    seen = scrape(client)
    assert seen["twolane_web_processes", ()] == 2
    assert seen["twolane_http_places_taken", ("small",)] == 3
    other.stop()
    assert scrape(client)["twolane_web_processes", ()] == 1


def test_a_probe_that_is_not_ready_is_no_refusal(client: FlaskClient) -> None:
    assert client.get("/readyz").status_code == 503
    seen = scrape(client)
    assert seen["twolane_http_requests_total", ("GET", "/readyz", "503")] == 1
    assert not [labels for name, labels in seen if name == "twolane_http_refusals_total"]


def test_the_drain_of_a_lane_is_the_time_left_of_its_last_job(app: Flask, client: FlaskClient) -> None:
    live = services_of(app)
    announced = [WorkerInfo("w", "here", 1, "cpu", "float32", "fp", 500.0)]
    live.presence.ready_models = lambda: {"fake": announced}  # type: ignore[method-assign]
    job_ids = [submit(client, 100), submit(client, 150)]
    live.store.leases.dispatch(LANE)
    # What is read of the lane is used for a second, by both alike.
    wait_until(lambda: client.get(f"/v1/jobs/{job_ids[1]}").json["position"] is not None)  # type: ignore[index]
    left_s = [client.get(f"/v1/jobs/{job_id}").json["eta_s"] for job_id in job_ids]  # type: ignore[index]
    drain_s = scrape(client)["twolane_lane_drain_seconds", ("fake", "bulk")]
    assert drain_s == pytest.approx(max(left_s), rel=0.05)


def test_usage_is_counted_for_calls_and_jobs_and_read_by_day(app: Flask, client: FlaskClient) -> None:
    with running_worker(services_of(app).settings):
        wait_for_end(client, submit(client, 100))
        client.post("/v1/embeddings", json={"model": "fake", "input": ["one", "two"]})
        wait_until(lambda: scrape(client).get(("twolane_usage_items_total", ("", "default"))) == 102)
    (today,) = client.get("/v1/admin/usage?days=2").json["data"]  # type: ignore[index]
    assert (today["tenant"], today["key"], today["items"]) == ("default", None, 102)
    assert today["tokens"] >= 102
    assert today["device_s"] > 0
    assert client.get("/v1/admin/usage?tenant=other").json["data"] == []  # type: ignore[index]


def test_a_call_leaves_its_stages_and_its_pass(app: Flask, client: FlaskClient) -> None:
    with running_worker(services_of(app).settings):
        client.post("/v1/embeddings", json={"model": "fake", "input": ["one", "two"]})
        wait_until(lambda: scrape(client).get(("twolane_pass_rows_total", ("fake",))) == 2)
        seen = scrape(client)
    stages = {labels[1] for name, labels in seen if name == "twolane_call_stage_seconds_count"}
    assert stages == {"accept", "list", "queue", "device"}
    assert seen["twolane_pass_seconds_count", ("fake",)] == 1
    assert seen["twolane_queue_wait_seconds_count", ("fake", "interactive")] == 1
    assert 0 < seen["twolane_pass_tokens_total", ("fake",)] <= seen["twolane_pass_padded_tokens_total", ("fake",)]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool comes with Prometheus")
def test_prometheus_own_check_finds_nothing(app: Flask, client: FlaskClient) -> None:
    with running_worker(services_of(app).settings):
        client.post("/v1/embeddings", json={"model": "fake", "input": "one"})
        wait_until(lambda: ("twolane_pass_rows_total", ("fake",)) in scrape(client))
        text = client.get("/metrics").data
    checked = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr.decode()) == (0, "")


def test_requests_that_wait_for_a_busy_worker_are_counted(client: FlaskClient, redis: Redis) -> None:
    redis.rpush("twolane:lane:interactive.fake:requests", b"frame", b"frame")
    redis.hset("twolane:lane:interactive.fake:load", "waiting", 500)
    seen = scrape(client)
    assert seen["twolane_lane_waiting_requests", ("fake", "interactive")] == 2
    assert seen["twolane_lane_waiting_tokens", ("fake", "interactive")] == 500


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
            server.start()
            # What was counted meanwhile was kept.
            wait_until(lambda: scrape(app.test_client())["twolane_store_up", ()] == 1)
            assert scrape(app.test_client())["twolane_http_requests_total", ("GET", "/metrics", "200")] >= 2


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


def test_a_keys_file_that_is_gone_is_told(settings: Settings, tmp_path: Path) -> None:
    file = write_keys(tmp_path / "keys.toml", {"ops": "admin = true"})
    with opened_app(settings.model_copy(update={"keys_file": file})) as app:

        def shown() -> str:
            text = app.test_client().get("/metrics", headers={"Authorization": "Bearer ops"}).text
            return next(line for line in text.splitlines() if line.startswith("twolane_keys_file_unusable"))

        assert shown() == "twolane_keys_file_unusable 0.0"
        file.rename(tmp_path / "elsewhere.toml")
        wait_until(lambda: shown() == "twolane_keys_file_unusable 1.0")
