"""Real worker processes are killed, messages are repeated; afterwards every item has exactly one outcome."""

import json
import os
import signal
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from redis import Redis

from config.catalog import load_catalog
from tasks import keys
from tasks.celery import make_app
from tasks.lanes import Lane, Service
from tests.support.corpus import passages
from tests.support.product import MODEL, reference, submit, vectors, wait_for_end
from tests.support.stack_fixture import RunningStack


@pytest.fixture
def http(stack: RunningStack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        yield client


def audit(http: httpx.Client, stack: RunningStack, job_id: str, texts: list[str]) -> None:
    """Every submitted item has exactly one outcome, counts are exact, no lease is left, every key of ours expires."""
    job = http.get(f"/v1/jobs/{job_id}").json()
    assert job["counts"]["completed"] + job["counts"]["failed"] == job["counts"]["total"] == len(texts)
    lines = http.get(f"/v1/jobs/{job_id}/results", params={"format": "ndjson"}).text.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"p{i}" for i in range(len(texts))]
    with Redis.from_url(stack.redis_url) as redis:
        ours = [key for key in redis.scan_iter("twolane:*") if not key.startswith(keys.BROKER_PREFIX.encode())]
        assert [key for key in ours if redis.ttl(key) == -1] == []
        inflight = [key for key in ours if key.endswith(b":inflight")]
        assert sum(redis.zcard(key) for key in inflight) == 0


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killing_the_worker_in_the_middle_of_a_job_loses_and_duplicates_nothing(
    http: httpx.Client, stack: RunningStack, times: int
) -> None:
    texts = passages(300 * times + 100)
    job = submit(http, texts)
    for _ in range(times):
        before = http.get(f"/v1/jobs/{job['id']}").json()["counts"]["completed"]
        while http.get(f"/v1/jobs/{job['id']}").json()["counts"]["completed"] <= before:
            time.sleep(0.05)
        for pid in stack.worker_pids():
            os.kill(pid, signal.SIGKILL)
    ended = wait_for_end(http, job["id"], timeout_s=150)
    assert ended["status"] == "succeeded"
    assert ended["counts"]["failed"] == 0
    audit(http, stack, job["id"], texts)
    sample = list(range(0, len(texts), 29))
    np.testing.assert_allclose(vectors(http, job["id"])[sample], reference([texts[i] for i in sample]), atol=1e-4)


def test_every_message_delivered_three_times_counts_exactly(http: httpx.Client, stack: RunningStack) -> None:
    card = load_catalog().find(MODEL)
    assert card is not None
    celery = make_app(stack.settings)
    texts = passages(400)
    job = submit(http, texts)
    for _ in range(2):
        for _ in range(job["chunks"]["total"]):
            celery.send_task("run_chunk", args=(card.slug,), queue=Lane(card.slug, Service.BULK).queue)
    ended = wait_for_end(http, job["id"])
    assert ended["counts"]["completed"] == len(texts)
    audit(http, stack, job["id"], texts)
