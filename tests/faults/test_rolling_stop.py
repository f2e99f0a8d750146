"""Workers that are told to stop finish what they hold: nothing that was begun runs twice."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import orjson
import pytest
from redis import Redis

from tasks.jobs.store import JobStore
from tests.support.fakes import write_fake_card
from tests.support.own_stack import opened_stack
from tests.support.polling import wait_until
from tests.support.stack_fixture import running_stack

ITEMS = 6_000


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_worker_that_is_told_to_stop_finishes_its_chunks_and_its_requests(tmp_path: Path, times: int) -> None:
    cards = write_fake_card(tmp_path, "latency_ms = 20")
    settings = {"catalog_file": str(cards), "max_batch_tokens": "256", "chunk_items": "100"}
    with running_stack(tmp_path / "stack", "fake", **settings) as stack, httpx.Client(base_url=stack.url) as http:
        lines = b"\n".join(orjson.dumps(f"text number {number}") for number in range(ITEMS))
        job = http.post(
            "/v1/jobs", params={"model": "fake"}, content=lines, headers={"Content-Type": "application/x-ndjson"}
        ).json()
        for _ in range(times):
            _wait_for_progress(http, job["id"])
            (worker,) = stack.worker_pids()
            os.kill(worker, signal.SIGTERM)
            # A request in the gap waits for the next worker, which is there within its deadline.
            answer = http.post("/v1/embeddings", json={"model": "fake", "input": "small"}, timeout=30)
            assert answer.status_code in {200, 503}
            while worker in stack.worker_pids():
                time.sleep(0.02)
        ended = _wait_for_end(http, job["id"])
        assert (ended["status"], ended["counts"]["completed"]) == ("succeeded", ITEMS)
        with Redis.from_url(stack.redis_url) as redis:
            table = JobStore(redis, stack.settings).chunk_table(job["id"])
        assert [chunk.attempts for chunk in table] == [1] * len(table)


def _wait_for_progress(http: httpx.Client, job_id: str) -> None:
    before = _completed(http, job_id)
    while _completed(http, job_id) <= before:
        time.sleep(0.05)


def _completed(http: httpx.Client, job_id: str) -> int:
    return int(http.get(f"/v1/jobs/{job_id}").json()["counts"]["completed"])


def _wait_for_end(http: httpx.Client, job_id: str) -> dict[str, object]:
    while True:
        job: dict[str, object] = http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=5"}, timeout=20).json()
        if job["status"] in {"succeeded", "failed", "cancelled", "expired"}:
            return job


@pytest.mark.slow
def test_a_web_server_that_is_stopped_answers_the_calls_that_it_has_and_takes_no_others(tmp_path: Path) -> None:
    with opened_stack(tmp_path / "stack", knobs="latency_ms = 6000") as stack:
        stack.start_web()
        stack.start_worker()
        stack.wait_until_ready()
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=stack.url, timeout=60) as idle:
            idle.get("/livez")
            # A connection that is kept open and asks nothing must not hold the end up.
            body = {"model": "fake", "input": "a text"}
            answer = pool.submit(httpx.post, f"{stack.url}/v1/embeddings", json=body, timeout=60)
            wait_until(lambda: 'kind="small"} 1.0' in idle.get("/metrics").text or answer.done())
            web = stack.terminate_web()
            assert answer.result().status_code == 200
            web.wait(60)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{stack.url}/livez")
        assert "Killing worker" not in stack.log()
