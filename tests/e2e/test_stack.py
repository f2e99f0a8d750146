"""The stack as `make serve` runs it: real processes, started, killed, frozen and stopped, with nothing left behind."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from config.parent_death import tied_to_parent
from stack.embedded_redis import free_port
from tests.support.polling import wait_until
from tests.support.stack_fixture import RunningStack, clean_environment, running_stack

ENDS_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def fake_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("fake-stack"), "fake") as running:
        yield running


class Serve:
    """`python -m stack.serve` with its embedded server, and every process that it has ever started."""

    def __init__(self, folder: Path, **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stack.serve"],
                cwd=folder,
                env=clean_environment(**{"models": "fake", "port": "0", **settings}),
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=tied_to_parent(),  # noqa: PLW1509 - two system calls, no locks
            )

    def text(self) -> str:
        return self.log.read_text("utf-8")

    def wait_until_ready(self) -> list[psutil.Process]:
        """Return the processes of the stack when it says what runs where."""
        wait_until(lambda: "Ctrl-C stops everything" in self.text() or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.text()
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(2 * ENDS_WITHIN_S)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Serve]]:
    started: list[Serve] = []

    def start(name: str = "data", **settings: str) -> Serve:
        started.append(Serve(tmp_path / name, data_dir=str(tmp_path / name), **settings))
        return started[-1]

    yield start
    for one in started:
        one.end()


def programs(processes: list[psutil.Process]) -> set[str]:
    """The parts of the stack among these processes."""
    lines = [" ".join(process.cmdline()) for process in processes]
    parts = {"workers.launch", "workers.boot", "-m app", "flower", "valkey-server", "redis-server"}
    return {part for part in parts for line in lines if part in line}


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_flower_shows_the_worker_to_whom_it_knows_and_nothing_to_others(fake_stack: RunningStack) -> None:
    password_file = fake_stack.settings.data_dir / "flower-password"
    assert stat.S_IMODE(password_file.stat().st_mode) == 0o600
    assert httpx.get(f"{fake_stack.flower_url}/api/workers").status_code == 401
    user = ("twolane", password_file.read_text("utf-8").strip())
    with httpx.Client(base_url=fake_stack.flower_url, auth=user) as flower:
        assert flower.get("/workers").status_code == 200
        wait_until(lambda: flower.get("/api/workers", params={"status": "true"}).json(), 30)
        (worker,) = flower.get("/api/workers", params={"status": "true"}).json()
        assert worker.startswith("cpu.")
        body = {"type": "embeddings", "model": "fake", "input": ["some text"] * 1000}
        job_id = httpx.post(f"{fake_stack.url}/v1/jobs", json=body, timeout=30).json()["id"]
        job = httpx.get(f"{fake_stack.url}/v1/jobs/{job_id}", headers={"Prefer": "wait=20"}, timeout=30).json()
        assert job["status"] == "succeeded"

        def states() -> list[str]:
            return [task["state"] for task in flower.get("/api/tasks").json().values()]

        wait_until(lambda: states() and set(states()) <= {"SUCCESS", "REVOKED"})
        assert states().count("SUCCESS") == job["chunks"]["total"]
        # A button that would leave the worker without threads.
        flower.get("/api/workers", params={"refresh": "true"})
        answer = flower.post(f"/api/worker/pool/shrink/{worker}")
        assert (answer.status_code, "switched off" in answer.text) == (403, True)
        assert flower.get("/api/workers", params={"status": "true"}).json() == {worker: True}


def test_the_models_are_warm_before_the_worker_takes_its_first_ticket(fake_stack: RunningStack) -> None:
    log = fake_stack.log.read_text("utf-8")
    order = [log.index(line) for line in ("loading fake", "loaded and warmed", "is ready: fake", "celery.apps.worker")]
    assert order == sorted(order)


def test_a_killed_worker_is_started_again_and_serves(fake_stack: RunningStack) -> None:
    (before,) = fake_stack.worker_pids()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: fake_stack.worker_pids() not in ([], [before]), 20)
    body = {"model": "fake", "input": "again"}
    answer = httpx.post(f"{fake_stack.url}/v1/embeddings", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    again = [{"device": "cpu", "state": "ready", "failures": 1, "reason": "its worker ended by signal 9"}]
    wait_until(lambda: httpx.get(f"{fake_stack.url}/health").json()["devices"] == again, 20)


def test_a_killed_launcher_takes_its_worker_with_it_and_both_are_started_again(fake_stack: RunningStack) -> None:
    (worker,) = fake_stack.worker_pids()
    process = psutil.Process(worker)
    launcher = process.parent()
    assert launcher is not None
    launcher.kill()
    wait_until(lambda: not _is_alive(process), 20)
    wait_until(fake_stack.worker_pids, 20)


def test_a_killed_web_server_is_started_again(fake_stack: RunningStack) -> None:
    os.kill(fake_stack.web_pids()[0], signal.SIGKILL)

    def answers() -> bool:
        try:
            return httpx.get(f"{fake_stack.url}/livez").status_code == 200
        except httpx.HTTPError:
            return False

    wait_until(lambda: not answers(), 20)
    wait_until(answers, 20)


def test_two_stacks_run_side_by_side_and_a_third_on_the_same_folder_is_refused(serve: Callable[..., Serve]) -> None:
    left, right = serve("left"), serve("right")
    for one in (left, right):
        assert programs(one.wait_until_ready()) >= {"workers.launch", "workers.boot", "-m app", "flower"}
    third = serve("left")
    assert third.process.wait(30) == 1
    assert "TWOLANE_DATA_DIR" in third.text()
    assert left.process.poll() is None


def test_interrupting_the_stack_leaves_no_process(serve: Callable[..., Serve]) -> None:
    one = serve()
    processes = one.wait_until_ready()
    one.process.send_signal(signal.SIGINT)
    assert one.process.wait(ENDS_WITHIN_S) == 0
    assert alive(processes) == []


def test_interrupting_the_stack_while_models_load_does_not_wait_for_them(serve: Callable[..., Serve]) -> None:
    one = serve(models="all-MiniLM-L6-v2")
    wait_until(lambda: "loading all-MiniLM-L6-v2" in one.text(), 30)
    processes = psutil.Process(one.process.pid).children(recursive=True)
    one.process.send_signal(signal.SIGINT)
    assert one.process.wait(ENDS_WITHIN_S) == 0
    assert "did not stop in time" not in one.text()
    assert alive(processes) == []


def test_a_frozen_worker_and_a_frozen_web_server_do_not_keep_the_stack_from_ending(serve: Callable[..., Serve]) -> None:
    one = serve(worker_stop_s="2", web_stop_s="2")
    processes = one.wait_until_ready()
    for process in processes:
        if programs([process]) & {"workers.boot", "-m app", "flower"}:
            process.suspend()
    one.process.terminate()
    assert one.process.wait(ENDS_WITHIN_S) == 0
    assert alive(processes) == []


def test_killing_the_stack_itself_leaves_no_process(serve: Callable[..., Serve]) -> None:
    one = serve()
    processes = one.wait_until_ready()
    one.process.kill()
    one.process.wait()
    wait_until(lambda: alive(processes) == [], ENDS_WITHIN_S)


def test_a_dead_embedded_server_is_started_again_with_its_data(serve: Callable[..., Serve]) -> None:
    one = serve()
    processes = one.wait_until_ready()
    (server,) = [process for process in processes if programs([process]) & {"valkey-server", "redis-server"}]
    server.kill()
    wait_until(lambda: "is started again" in one.text(), 20)
    url = one.text().split("API       ")[1].split("/v1")[0]
    wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200, 60)


def test_a_taken_port_is_said_clearly(serve: Callable[..., Serve]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one = serve(flower_port=str(port))
        assert one.process.wait(30) == 1
    assert f"127.0.0.1:{port}" in one.text()
    assert "TWOLANE_FLOWER_PORT=<number>" in one.text()


def test_an_unknown_model_is_said_clearly(serve: Callable[..., Serve]) -> None:
    one = serve(models="no-such-model")
    assert one.process.wait(30) == 1
    assert "no-such-model" in one.text()
    assert "all-MiniLM-L6-v2" in one.text()


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_a_worker_that_cannot_start_says_why_and_does_not_end_the_stack(
    serve: Callable[..., Serve], tmp_path: Path
) -> None:
    card = tmp_path / "models.toml"
    fields = 'family = "encoder"\ncapabilities = ["dense"]\nmax_tokens = 8\npooling = "mean"\ndimension = 4'
    card.write_text(f'[[models]]\nname = "gone"\nsource = "path:/no/such/folder"\n{fields}\n', "utf-8")
    one = serve(models="gone", catalog_file=str(card), port=str(port := free_port()))
    wait_until(lambda: "the worker cannot start with these settings" in one.text(), 60)
    assert "/no/such/folder" in one.text()
    assert "tried again in" in one.text()
    assert one.process.poll() is None
    wait_until(lambda: answers(port), 60)
    assert httpx.get(f"http://127.0.0.1:{port}/v1/jobs").status_code == 200
    assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 503
