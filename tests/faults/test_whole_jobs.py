"""Whole jobs under trouble: cancelled at any moment, a full store, forgotten scripts, too little device memory, no
worker at all, a huge neighbour, clocks that are wrong."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from redis import Redis

from tasks import keys
from tasks.jobs.store import JobStore
from tests.support.audit import audit, audit_keys, call, submit, wait_for_end
from tests.support.own_stack import OwnStack, opened_stack
from tests.support.polling import wait_until

LEASE_S = 2


def texts(count: int, words: int = 1) -> list[str]:
    return [f"text {number} " + "word " * words for number in range(count)]


@contextmanager
def client(stack: OwnStack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, timeout=30) as http:
        yield http


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnStack]:
    """Server, web and one worker for the tests that kill neither server nor web."""
    with opened_stack(tmp_path_factory.mktemp("steady") / "stack") as stack:
        stack.start_web()
        stack.start_worker()
        stack.wait_until_ready()
        yield stack


def progress(http: httpx.Client, job_id: str) -> float:
    counts = call(http, "GET", f"/v1/jobs/{job_id}").json()["counts"]
    return float(counts["completed"]) / counts["total"]


# -- cancelling


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_job_that_is_cancelled_ends_within_a_lease_and_keeps_its_finished_chunks(
    steady: OwnStack, part: float
) -> None:
    wanted = texts(1000, 60)
    with client(steady) as http, steady.redis() as redis:
        job_id = submit(http, wanted)
        wait_until(lambda: progress(http, job_id) >= part, step_s=0)
        assert call(http, "POST", f"/v1/jobs/{job_id}/cancel").status_code in {200, 409}
        job = wait_for_end(http, job_id, LEASE_S + 10)
        # At 99% the job may have been faster.
        assert job["status"] in ({"cancelled"} if part < 0.9 else {"cancelled", "succeeded"})
        assert job["counts"]["completed"] >= part * len(wanted)
        assert audit(http, redis, job_id, wanted)["counts"] == job["counts"]


@pytest.mark.slow
def test_a_job_that_is_cancelled_while_everything_restarts_ends_nevertheless(tmp_path: Path) -> None:
    wanted = texts(2000, 60)
    with opened_stack(tmp_path / "stack") as stack, client(stack) as http, stack.redis() as redis:
        stack.start_web()
        for _ in range(4):
            worker = stack.start_worker()
            stack.wait_until_ready()
            job_id = submit(http, wanted)
            redis.execute_command("WAITAOF", 1, 0, 3000)
            wait_until(lambda job_id=job_id: progress(http, job_id) > 0.1, step_s=0)  # type: ignore[misc]
            worker.kill()
            worker.wait()
            stack.server.kill()
            canceller = threading.Thread(target=call, args=(http, "POST", f"/v1/jobs/{job_id}/cancel"))
            canceller.start()
            stack.server.start()
            canceller.join()
            # Nobody is alive to give the chunk back: reading the job ends it when its lease is over.
            assert wait_for_end(http, job_id, LEASE_S + 30)["status"] == "cancelled"
            audit(http, redis, job_id, wanted)


# -- Redis


def test_scripts_that_are_forgotten_all_the_time_cause_no_visible_error(steady: OwnStack) -> None:
    wanted, stop, bad = texts(1000), threading.Event(), []

    def flush() -> None:
        with steady.redis() as redis:
            while not stop.is_set():
                redis.script_flush()

    def ask() -> None:
        with client(steady) as http:
            while not stop.is_set():
                answer = http.post("/v1/embeddings", json={"model": "fake", "input": "small"})
                if answer.status_code != 200:
                    bad.append(answer.text)

    threads = [threading.Thread(target=flush), threading.Thread(target=ask)]
    for thread in threads:
        thread.start()
    try:
        with client(steady) as http, steady.redis() as redis:
            for _ in range(3):
                lines = b"".join(b'{"id": "i%d", "text": "%s"}\n' % (i, t.encode()) for i, t in enumerate(wanted))
                headers = {"Content-Type": "application/x-ndjson"}
                answer = http.post("/v1/jobs", params={"model": "fake"}, content=lines, headers=headers)
                assert answer.status_code == 202
                assert wait_for_end(http, answer.json()["id"])["counts"]["completed"] == len(wanted)
                audit(http, redis, answer.json()["id"], wanted)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert bad == []


@pytest.mark.slow
def test_a_full_store_refuses_new_jobs_finishes_the_old_ones_and_heals_by_itself(tmp_path: Path) -> None:
    options = ("--maxmemory", str(24 * 2**20))
    wanted = texts(4000)
    with (
        opened_stack(tmp_path / "stack", options, "latency_ms = 1", job_ttl_s="40", chunk_items="256") as stack,
        client(stack) as http,
        stack.redis() as redis,
    ):
        stack.start_web()
        accepted: list[str] = []
        while (answer := order(http, wanted)).status_code == 202:
            accepted.append(answer.json()["id"])
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "store_full"
        assert int(answer.headers["Retry-After"]) > 0
        # Nothing half counted: the refused job is nowhere, and what it needed is not reserved.
        assert redis.zrange(keys.tenant_jobs("default"), 0, -1) == [job_id.encode() for job_id in accepted]
        assert set(redis.hkeys(keys.store_reserved())) == {b"total", *(job_id.encode() for job_id in accepted)}
        stack.start_worker()
        for job_id in accepted:
            assert wait_for_end(http, job_id)["counts"]["completed"] == len(wanted)
        audit(http, redis, accepted[-1], wanted)
        # As the old jobs expire there is room again.
        wait_until(lambda: order(http, wanted).status_code == 202, 60, 0.5)
        audit_keys(redis)


def order(http: httpx.Client, wanted: list[str]) -> httpx.Response:
    lines = b"".join(b'{"id": "i%d", "text": "%s"}\n' % (i, text.encode()) for i, text in enumerate(wanted))
    headers = {"Content-Type": "application/x-ndjson", "Prefer": "respond-async"}
    return http.post("/v1/jobs", params={"model": "fake"}, content=lines, headers=headers)


def test_jobs_without_a_worker_expire_and_leave_nothing(tmp_path: Path) -> None:
    with opened_stack(tmp_path / "stack", job_ttl_s="3") as stack, client(stack) as http, stack.redis() as redis:
        stack.start_web()
        ids = [submit(http, texts(100)) for _ in range(5)]
        wait_until(lambda: not any(left_of(redis, job_id) for job_id in ids), 30)
        assert http.get(f"/v1/jobs/{ids[0]}").status_code in {404, 410}
        assert http.get("/v1/jobs").json()["data"] == []
        # A worker that comes too late finds tickets of jobs that are gone, and drops them.
        stack.start_worker()
        stack.wait_until_ready()
        wait_until(lambda: redis.zcard("twolane:lane:bulk.fake:inflight") == 0, 30)
        job_id = submit(http, texts(100))
        wait_until(lambda: redis.hget(keys.job(job_id), "state") == b"succeeded")
        audit_keys(redis)


def left_of(redis: Redis, job_id: str) -> list[bytes]:
    """Keys of a job but its inputs, which may have been stored long before it was created and live a day longer."""
    return [key for key in redis.scan_iter(f"*{{{job_id}}}*") if b":input:" not in key]


# -- the device and the lane


def test_a_batch_that_does_not_fit_on_the_device_costs_no_attempt(tmp_path: Path) -> None:
    wanted = texts(400, 60)
    knobs = "oom_above_tokens = 600"
    with (
        opened_stack(tmp_path / "stack", knobs=knobs) as stack,
        client(stack) as http,
        stack.redis() as redis,
    ):
        stack.start_web()
        stack.start_worker()
        job_id = submit(http, wanted)
        assert wait_for_end(http, job_id)["counts"]["completed"] == len(wanted)
        assert {chunk.attempts for chunk in JobStore(redis, stack.settings).chunk_table(job_id)} == {1}
        audit(http, redis, job_id, wanted)


@pytest.mark.slow
def test_ten_texts_behind_a_huge_job_are_served_within_two_windows(tmp_path: Path) -> None:
    # 200,000 and not a million: the turns are taken chunk by chunk, and 780 of them show no less than 3,900.
    huge, small = 200_000, texts(10)
    settings = {"chunk_items": "256", "interactive_max_items": "4", "lease_s": "5"}
    with (
        opened_stack(tmp_path / "stack", **settings) as stack,
        client(stack) as http,
        stack.redis() as redis,
    ):
        stack.start_web()
        stack.start_worker()
        stack.wait_until_ready()
        huge_id = submit(http, texts(huge))
        wait_until(lambda: progress(http, huge_id) > 0.05)
        before = chunks_done(redis, huge_id)
        small_id = submit(http, small)
        wait_until(lambda: redis.hget(keys.job(small_id), "state") == b"succeeded")
        assert chunks_done(redis, huge_id) - before <= 2 * stack.settings.window
        audit(http, redis, small_id, small)
        assert wait_for_end(http, huge_id, 150)["counts"]["completed"] == huge
        audit(http, redis, huge_id, texts(huge))


def chunks_done(redis: Redis, job_id: str) -> int:
    return int(redis.hget(keys.job(job_id), "chunks_done") or 0)


# -- clocks


SHIFT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long shift(void) { const char *s = getenv("CLOCK_SHIFT_S"); return s ? atol(s) : 0; }
int clock_gettime(clockid_t id, struct timespec *ts) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(id, ts);
  if (!code && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) ts->tv_sec += shift();
  return code;
}
int gettimeofday(struct timeval *tv, void *tz) {
  static int (*real)(struct timeval *, void *);
  if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
  int code = real(tv, tz);
  if (!code && tv) tv->tv_sec += shift();
  return code;
}
time_t time(time_t *out) {
  struct timespec ts;
  clock_gettime(CLOCK_REALTIME, &ts);
  if (out) *out = ts.tv_sec;
  return ts.tv_sec;
}
"""


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a process has another wall clock, down to the C library."""
    folder = tmp_path_factory.mktemp("clock")
    (folder / "shift.c").write_text(SHIFT, "utf-8")
    library = folder / "shift.so"
    try:
        command = ["cc", "-shared", "-fPIC", "-o", str(library), str(folder / "shift.c"), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no C compiler to build a library that shifts the clock")
    return {"LD_PRELOAD": str(library)}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["a worker ahead", "a worker behind", "the web ahead", "the web behind"])
def test_a_clock_that_is_an_hour_off_takes_no_lease_and_expires_nothing(
    tmp_path: Path, shifted: dict[str, str], wrong: str
) -> None:
    wanted = texts(600, 60)
    who, _, way = wrong.rpartition(" ")
    off = {**shifted, "CLOCK_SHIFT_S": "3600" if way == "ahead" else "-3600"}
    with opened_stack(tmp_path / "stack") as stack, client(stack) as http, stack.redis() as redis:
        stack.start_web(**(off if who == "the web" else {}))
        stack.start_worker(**(off if who == "a worker" else {}))
        stack.start_worker()
        stack.wait_until_ready(2)
        assert http.post("/v1/embeddings", json={"model": "fake", "input": "small"}).status_code == 200
        job_id = submit(http, wanted)
        job = wait_for_end(http, job_id)
        assert abs(job["created_at"] - time.time()) < 1800
        assert job["counts"]["completed"] == len(wanted)
        # No claim was taken from whoever held it.
        assert {chunk.attempts for chunk in JobStore(redis, stack.settings).chunk_table(job_id)} == {1}
        audit(http, redis, job_id, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("shift_s", [3600, -3600])
def test_a_server_whose_clock_is_an_hour_off_is_right_for_everybody(
    tmp_path: Path, shifted: dict[str, str], shift_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = texts(600, 60)
    for name, value in {**shifted, "CLOCK_SHIFT_S": str(shift_s)}.items():
        monkeypatch.setenv(name, value)
    with opened_stack(tmp_path / "stack") as stack, client(stack) as http, stack.redis() as redis:
        for name in (*shifted, "CLOCK_SHIFT_S"):
            monkeypatch.delenv(name)
        assert abs(redis.time()[0] - time.time() - shift_s) < 60
        stack.start_web()
        worker = stack.start_worker()
        stack.wait_until_ready()
        job_id = submit(http, wanted)
        wait_until(lambda: progress(http, job_id) > 0)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        stack.start_worker()
        assert wait_for_end(http, job_id)["counts"]["completed"] == len(wanted)
        audit(http, redis, job_id, wanted)
