"""The line to the server breaks at the worst moments: silence, lost replies, lost messages, a web process gone."""

import signal
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks import keys
from tests.support.audit import audit, call, submit, wait_for_end
from tests.support.own_stack import OwnStack, opened_stack
from tests.support.polling import wait_until
from tests.support.proxy import Proxy

# The product gives up after two tries of a second each; a busy machine may take as long again.
TOLD_WITHIN_S = 10.0
# As long as a lease, a ticket and the announcement of a worker hold together; two minutes show nothing more.
SILENCE_S = 8.0
SMALL = {"model": "fake", "input": "a small text"}


def texts(count: int, words: int = 1) -> list[str]:
    return [f"text {number} " + "word " * words for number in range(count)]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[OwnStack]:
    with opened_stack(tmp_path / "stack") as running:
        yield running


@contextmanager
def client(stack: OwnStack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, timeout=TOLD_WITHIN_S) as http:
        yield http


def refusals(http: httpx.Client, job_id: str) -> set[int]:
    """What every kind of call is answered while the server is silent, all at once."""
    lines = {"content": b'{"text": "x"}\n', "headers": {"Content-Type": "application/x-ndjson"}}
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/v1/embeddings", {"json": SMALL}),
        ("POST", "/v1/jobs?model=fake", lines),
        ("GET", f"/v1/jobs/{job_id}", {}),
        ("GET", "/v1/jobs", {}),
        ("POST", f"/v1/jobs/{job_id}/cancel", {}),
    ]
    # The probe may still tell what it read half a second ago.
    wait_until(lambda: http.get("/readyz").status_code == 503)
    with ThreadPoolExecutor(len(calls)) as pool:
        answers = pool.map(lambda one: http.request(one[0], one[1], **one[2]).status_code, calls)
        return set(answers)


def test_a_server_that_stands_still_is_a_503_within_seconds_and_all_heals(stack: OwnStack) -> None:
    stack.start_web()
    stack.start_worker()
    stack.wait_until_ready()
    with client(stack) as http, stack.redis() as redis:
        assert http.post("/v1/embeddings", json=SMALL).status_code == 200
        wanted = texts(2000, 40)
        job_id = submit(http, wanted)
        stack.server_process().send_signal(signal.SIGSTOP)
        try:
            assert refusals(http, job_id) == {503}
            assert http.get("/livez").status_code == 200
            assert "twolane_store_up 0.0" in http.get("/metrics").text
            time.sleep(SILENCE_S)
            assert refusals(http, job_id) == {503}
        finally:
            stack.server_process().send_signal(signal.SIGCONT)
        assert call(http, "POST", "/v1/embeddings", json=SMALL).status_code == 200
        assert wait_for_end(http, job_id)["counts"]["completed"] == len(wanted)
        audit(http, redis, job_id, wanted)
        after = submit(http, texts(40))
        wait_for_end(http, after)
        audit(http, redis, after, texts(40))


@pytest.mark.slow
def test_a_web_process_with_a_dead_line_recovers_when_the_line_does_and_work_went_on(stack: OwnStack) -> None:
    with Proxy(stack.server.port) as proxy, client(stack) as http, stack.redis() as redis:
        stack.start_web(proxy.url)
        stack.start_worker()
        stack.wait_until_ready()
        wanted = texts(400, 40)
        job_id = submit(http, wanted)
        for outage in range(3):
            proxy.freeze()
            assert refusals(http, job_id) == {503}
            if outage == 2:
                # The worker's line is whole: nothing waits for the web.
                wait_until(lambda: redis.hget(keys.job(job_id), "state") == b"succeeded", 60)
            if outage == 1:
                proxy.cut()
            proxy.thaw()
            assert call(http, "POST", "/v1/embeddings", json=SMALL).status_code == 200
        assert wait_for_end(http, job_id)["status"] == "succeeded"
        audit(http, redis, job_id, wanted)


def create(http: httpx.Client, key: str, wanted: list[str]) -> httpx.Response:
    headers = {"Content-Type": "application/json", "Idempotency-Key": key, "Prefer": "respond-async"}
    return http.post("/v1/jobs", json={"type": "embeddings", "model": "fake", "input": wanted}, headers=headers)


def creation(key: str) -> bytes:
    """What is in the creation of a job with this key, and in no other command: two of its keys, one after the other."""
    after = keys.store_uploads()
    return f"{keys.idempotency('default', key)}\r\n${len(after)}\r\n{after}\r\n".encode()


def teach_scripts(http: httpx.Client) -> None:
    """Let the server know the scripts: else the reply that is lost is only that it does not."""
    assert create(http, "first", texts(50)).status_code == 202


def job_ids(stack: OwnStack) -> set[bytes]:
    """All jobs but the one that taught the scripts."""
    with stack.redis() as redis:
        return set(redis.zrange(keys.tenant_jobs("default"), 1, -1))


def check_the_one_job(stack: OwnStack, http: httpx.Client, job_id: str, wanted: list[str]) -> None:
    assert job_ids(stack) == {job_id.encode()}
    stack.start_worker()
    with stack.redis() as redis:
        job = wait_for_end(http, job_id)
        assert (job["counts"]["completed"], job["counts"]["failed"]) == (len(wanted), 0)
        rows = http.get(f"/v1/jobs/{job_id}/results", params={"format": "ndjson"}).text.splitlines()
        assert len(rows) == len(wanted)
        wait_until(lambda: list(redis.scan_iter("*:input:*")) == [])


@pytest.mark.parametrize("replies", [1, 2], ids=["one reply lost", "the reply to the repeat lost too"])
def test_a_reply_that_is_lost_after_the_job_was_created_makes_no_second_job(stack: OwnStack, replies: int) -> None:
    wanted, key = texts(50), uuid.uuid4().hex
    with Proxy(stack.server.port) as proxy, client(stack) as http:
        stack.start_web(proxy.url)
        teach_scripts(http)
        proxy.lose_reply_to(creation(key), times=replies)
        first = create(http, key, wanted)
        assert proxy.lost == replies
        # The Redis client repeats once by itself, and the script knows its own job again.
        assert first.status_code == (202 if replies == 1 else 503)
        second = create(http, key, wanted)
        assert second.status_code == 202
        check_the_one_job(stack, http, second.json()["id"], wanted)


def test_a_web_server_killed_between_create_and_202_has_made_the_job_that_its_key_names(stack: OwnStack) -> None:
    wanted, key = texts(50), uuid.uuid4().hex
    with Proxy(stack.server.port) as proxy, client(stack) as http:
        stack.start_web(proxy.url)
        teach_scripts(http)
        proxy.lose_reply_to(creation(key), stack.kill_web)
        with pytest.raises(httpx.TransportError):
            create(http, key, wanted)
        assert len(job_ids(stack)) == 1
        stack.start_web()
        again = create(http, key, wanted)
        assert again.status_code == 202
        check_the_one_job(stack, http, again.json()["id"], wanted)


def test_a_message_that_dies_in_the_socket_of_its_worker_costs_no_chunk(stack: OwnStack) -> None:
    wanted = texts(200)
    with Proxy(stack.server.port) as proxy, client(stack) as http, stack.redis() as redis:
        stack.start_web()
        reached = threading.Event()
        # The broker has handed the message over: it is nowhere but in this socket.
        proxy.hold_reply(b"run_chunk", reached.set)
        worker = stack.start_worker(proxy.url)
        stack.wait_until_ready()
        job_id = submit(http, wanted)
        assert reached.wait(30)
        worker.kill()
        worker.wait()
        stack.start_worker()
        assert wait_for_end(http, job_id)["counts"]["completed"] == len(wanted)
        audit(http, redis, job_id, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_replies_that_are_lost_at_random_count_nothing_twice(stack: OwnStack, seed: int) -> None:
    wanted = texts(1500, 20)
    with Proxy(stack.server.port) as proxy, client(stack) as http, stack.redis() as redis:
        stack.start_web()
        stack.start_worker(proxy.url)
        stack.wait_until_ready()
        proxy.lose_replies(0.03, seed)
        job_id = submit(http, wanted)
        assert wait_for_end(http, job_id, 150)["counts"]["completed"] == len(wanted)
        assert proxy.lost > 20
        proxy.lose_replies(0, seed)
        audit(http, redis, job_id, wanted)


def test_acknowledgements_that_are_lost_do_not_stop_the_worker(stack: OwnStack) -> None:
    wanted = texts(1000)
    with Proxy(stack.server.port) as proxy, client(stack) as http, stack.redis() as redis:
        stack.start_web()
        stack.start_worker(proxy.url)
        stack.wait_until_ready()
        # Taking a message out of the index: the score of one that is put in is shorter than 36 characters.
        proxy.lose_reply_to(f"{keys.BROKER_PREFIX}unacked_index\r\n$36\r\n".encode(), times=8)
        job_id = submit(http, wanted)
        assert wait_for_end(http, job_id)["counts"]["completed"] == len(wanted)
        assert proxy.lost == 8
        audit(http, redis, job_id, wanted)
