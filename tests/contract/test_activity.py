"""What happened of late, as all processes counted it."""

from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks.presence.activity import ActivityRecorder, read_activity
from tests.support.job_maker import assert_expiry, begin, make_completion
from tests.support.web import services_of


@pytest.fixture
def redis(server: EmbeddedServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        client.flushall()
        yield client


def test_processes_count_together_and_percentiles_are_those_of_all_calls(redis: Redis) -> None:
    first, second = ActivityRecorder(redis), ActivityRecorder(redis)
    for _ in range(98):
        first.note_call(0.010)
    second.note_call(0.400)
    second.note_call(0.400)
    second.note_refusal("rate_limit_exceeded", "search")
    second.note_refusal("rate_limit_exceeded", "search")
    first.note_refusal("no_worker", "")
    for recorder in (first, second, second):
        recorder.flush()
    read = read_activity(redis)
    assert read.p50_ms == pytest.approx(10, rel=0.1)
    assert read.p99_ms == pytest.approx(400, rel=0.1)
    assert read.refused == {("rate_limit_exceeded", "search"): 2, ("no_worker", ""): 1}
    assert read.calls_per_s > 0
    assert_expiry(redis)


def test_nothing_is_known_before_anything_happened(redis: Redis) -> None:
    read = read_activity(redis)
    assert (read.p50_ms, read.p99_ms, read.refused, read.failed, sum(read.tokens)) == (None, None, {}, {}, 0)


def test_completions_count_tokens_and_failures_by_code(app_here: Flask, settings_here: Settings) -> None:
    live = services_of(app_here)
    live.redis.flushall()
    job, claim = begin(live.store, live.blobs, ["x", "y"])
    completion = make_completion(claim, failed=1)
    assert live.store.leases.complete(claim, completion).value == "OK"
    assert live.store.leases.complete(claim, completion).value == "DUP"
    read = read_activity(live.redis)
    assert sum(read.tokens) == completion.tokens
    assert (read.computed, read.failed) == (2, {"item_failed": 1})
    assert live.store.get(job.id).counts.failed == 1
    assert_expiry(live.redis)


def test_answered_calls_and_refusals_are_counted_and_probes_are_none(client: FlaskClient, app_here: Flask) -> None:
    live = services_of(app_here)
    live.activity.flush()
    before = read_activity(live.redis)
    assert client.post("/v1/embeddings", json={"model": "fake", "input": "x"}).status_code == 200
    live.activity.note_refusal("lane_full", "acme")
    client.get("/readyz")
    live.activity.flush()
    after = read_activity(live.redis)
    assert after.calls_per_s > before.calls_per_s
    assert after.refused == {**before.refused, ("lane_full", "acme"): 1}
