"""Real workers on the fake model, killed and poisoned; afterwards every item has exactly one outcome.

The workers are started by the test, not by the launcher, whose growing delays would make ten kills take minutes.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from config.parent_death import tied_to_parent
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks import frames, keys
from tasks.bulk.chunk_task import publish_messages
from tasks.celery import publisher
from tasks.jobs.blobs import Blobs, open_blobs
from tasks.jobs.job import Counts, JobState
from tasks.jobs.store import JobStore
from tests.support.fakes import write_fake_card
from tests.support.job_maker import LANE, audit, submit
from tests.support.polling import wait_until
from workers.engine.watchdog import EXIT_STATUS as EXIT_HUNG

ROOT = Path(__file__).parents[2]
KNOBS = 'latency_ms = 40, exit_on = "EXIT", segfault_on = "SEGFAULT", hang_on = "HANG"'


class Worker:
    """One worker process."""

    def __init__(self, settings: Settings, log: Path) -> None:
        environment = {
            **os.environ,
            "REDIS_URL": settings.redis_url,
            "TWOLANE_MODELS": "fake",
            "TWOLANE_CATALOG_FILE": str(settings.catalog_file),
            "TWOLANE_LEASE_S": str(settings.lease_s),
            "TWOLANE_PASS_TIMEOUT_S": str(settings.pass_timeout_s),
            "TWOLANE_TICKET_TIMEOUT_S": str(settings.ticket_timeout_s),
            "PYTHONPATH": str(ROOT),
        }
        command = ["-m", "celery", "--quiet", "--app", "workers.boot", "worker", "--hostname", f"{random.random()}@%h"]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command, "--pool", "threads", "--without-mingle", "--without-gossip"],
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=tied_to_parent(),  # noqa: PLW1509 - a system call, no Python locks taken
            )

    def end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
            if number is signal.SIGSTOP:
                return
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    catalog = write_fake_card(tmp_path, KNOBS)
    return settings.model_copy(
        update={"catalog_file": catalog, "lease_s": 2.0, "ticket_timeout_s": 2.0, "pass_timeout_s": 5.0}
    )


@pytest.fixture
def store(redis: Redis, settings: Settings) -> Iterator[JobStore]:
    yield JobStore(redis, settings)
    publisher(settings).close()
    publisher.cache_clear()


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    """Starts workers and ends them all after the test."""
    workers: list[Worker] = []

    def start_one() -> Worker:
        workers.append(Worker(settings, tmp_path / "worker.log"))
        return workers[-1]

    yield start_one
    for worker in workers:
        worker.end(signal.SIGKILL)


@contextmanager
def kept_alive(start: Callable[[], Worker]) -> Iterator[list[int]]:
    """Start a worker whenever there is none, as the launcher does but at once; yield the exit codes seen."""
    codes: list[int] = []
    stop = threading.Event()

    def look_after() -> None:
        worker = start()
        while not stop.wait(0.05):
            if (code := worker.process.poll()) is not None:
                codes.append(code)
                worker = start()

    keeper = threading.Thread(target=look_after)
    keeper.start()
    try:
        yield codes
    finally:
        stop.set()
        keeper.join()


def wait_for_end(store: JobStore, job_id: str, timeout_s: float = 100) -> None:
    wait_until(lambda: store.wait(job_id, "default", 10**9, 1).ended, timeout_s)


def claimed(store: JobStore, job_id: str) -> bool:
    return any(chunk.state == "claimed" for chunk in store.chunk_table(job_id))


def error_codes(store: JobStore, blobs: Blobs, job_id: str) -> dict[int, str]:
    found = {}
    for chunk in store.chunk_table(job_id):
        header = frames.peek(blobs.get_result(job_id, chunk.index, chunk.pointer) or b"")
        found |= {chunk.start + int(position): code for position, (code, _) in header["errors"].items()}
    return found


@pytest.mark.parametrize(
    ("marker", "code"),
    [
        ("EXIT", 3),
        pytest.param("SEGFAULT", -signal.SIGSEGV, marks=pytest.mark.slow),
        pytest.param("HANG", EXIT_HUNG, marks=pytest.mark.slow),
    ],
)
def test_a_text_that_ends_the_process_costs_three_processes_and_one_item(
    store: JobStore, blobs: Blobs, start: Callable[[], Worker], marker: str, code: int
) -> None:
    texts = [f"text {number}" for number in range(60)]
    texts[17] = f"a text with {marker}"
    job = submit(store, blobs, texts, chunk_items=20)
    publish_messages(store.leases, LANE, store.settings.window)
    with kept_alive(start) as codes:
        wait_for_end(store, job.id)
    assert codes == [code] * 3
    assert audit(store, blobs, job.id).counts == Counts(60, 59, 1)
    assert error_codes(store, blobs, job.id) == {17: "worker_crashed"}


def kill_in_mid_chunk(store: JobStore, start: Callable[[], Worker], job_id: str, times: int, seed: int) -> None:
    moments = random.Random(seed)
    for _ in range(times):
        worker = start()
        wait_until(lambda: claimed(store, job_id))
        time.sleep(moments.uniform(0, 0.4))
        worker.end(signal.SIGKILL)
        if store.get(job_id).ended:
            return
    start()


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killing_the_worker_in_mid_chunk_makes_no_item_an_error(
    store: JobStore, blobs: Blobs, start: Callable[[], Worker], times: int
) -> None:
    job = submit(store, blobs, [f"text {number} " + "word " * 200 for number in range(400)], chunk_items=20)
    publish_messages(store.leases, LANE, store.settings.window)
    kill_in_mid_chunk(store, start, job.id, times, seed=7)
    wait_for_end(store, job.id)
    assert audit(store, blobs, job.id).counts == Counts(400, 400)


def test_a_worker_that_was_frozen_past_its_lease_comes_too_late(
    store: JobStore, blobs: Blobs, start: Callable[[], Worker]
) -> None:
    job = submit(store, blobs, ["word " * 200] * 100, chunk_items=20)
    publish_messages(store.leases, LANE, store.settings.window)
    frozen = start()
    wait_until(lambda: claimed(store, job.id))
    frozen.end(signal.SIGSTOP)
    start()
    wait_for_end(store, job.id)
    frozen.process.send_signal(signal.SIGCONT)
    before = store.get(job.id)
    # It has come back when it announces itself again, and its late results have been refused by then. If the time
    # stood still in mid-pass, its watchdog may take the pass for a hung one and end it.
    wait_until(lambda: store.redis.zcard(keys.lane_workers(LANE.model)) == 2 or frozen.process.poll() == EXIT_HUNG)
    frozen.end(signal.SIGTERM)
    assert audit(store, blobs, job.id) == before
    assert before.state is JobState.SUCCEEDED


def test_a_worker_that_is_told_to_end_repeats_no_finished_chunk(
    store: JobStore, blobs: Blobs, start: Callable[[], Worker]
) -> None:
    job = submit(store, blobs, ["word " * 200] * 200, chunk_items=20)
    publish_messages(store.leases, LANE, store.settings.window)
    first = start()
    wait_until(lambda: store.get(job.id).chunks_done > 0)
    first.end(signal.SIGTERM)
    assert first.process.returncode == 0
    done = {chunk.index for chunk in store.chunk_table(job.id) if chunk.state == "done"}
    assert all(chunk.state != "claimed" for chunk in store.chunk_table(job.id))
    start()
    wait_for_end(store, job.id)
    assert audit(store, blobs, job.id).counts == Counts(200, 200)
    assert [chunk.attempts for chunk in store.chunk_table(job.id) if chunk.index in done] == [1] * len(done)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that this test alone may kill."""
    with EmbeddedServer(tmp_path / "own server") as running:
        yield running


def accepted(store: JobStore, blobs: Blobs, texts: list[str]) -> str:
    """Submit a job, and wait until the server's log holds it: it writes it out every second."""
    job = submit(store, blobs, texts, chunk_items=20)
    store.redis.execute_command("WAITAOF", 1, 0, 3000)
    return job.id


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_server_that_is_killed_loses_no_accepted_job(
    own_server: EmbeddedServer, settings: Settings, tmp_path: Path, times: int
) -> None:
    settings = settings.model_copy(update={"redis_url": own_server.url})
    texts = [f"text {number} " + "word " * 200 for number in range(400)]
    log = tmp_path / "worker.log"
    worker = Worker(settings, log)
    with Redis.from_url(own_server.url, retry=None) as redis:
        store, blobs = JobStore(redis, settings), open_blobs(redis, settings)
        try:
            job_id = accepted(store, blobs, texts)
            publish_messages(store.leases, LANE, store.settings.window)
            for _ in range(times):
                before = store.get(job_id).chunks_done
                wait_until(lambda seen=before: store.get(job_id).chunks_done > seen)  # type: ignore[misc]
                own_server.kill()
                own_server.start()
            wait_for_end(store, job_id)
            assert audit(store, blobs, job_id).counts == Counts(400, 400)
            # The pool of threads has survived it, and the worker still listens.
            assert worker.process.poll() is None
            assert audit_a_further_job(store, blobs)
        finally:
            worker.end(signal.SIGTERM)
            publisher(settings).close()
            publisher.cache_clear()


def audit_a_further_job(store: JobStore, blobs: Blobs) -> bool:
    job = submit(store, blobs, ["text"] * 40, chunk_items=20)
    publish_messages(store.leases, LANE, store.settings.window)
    wait_for_end(store, job.id)
    return audit(store, blobs, job.id).counts == Counts(40, 40)


def test_a_job_survives_the_loss_of_everything_that_the_broker_held(
    store: JobStore, blobs: Blobs, start: Callable[[], Worker]
) -> None:
    job = submit(store, blobs, ["word " * 200] * 400, chunk_items=20)
    publish_messages(store.leases, LANE, store.settings.window)
    start()
    wait_until(lambda: store.get(job.id).chunks_done > 0)
    for key in store.redis.scan_iter(f"{keys.BROKER_PREFIX}*"):
        store.redis.delete(key)
    wait_for_end(store, job.id)
    assert audit(store, blobs, job.id).counts == Counts(400, 400)
