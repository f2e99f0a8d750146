"""Redis Sentinel: after a failover web and workers go on with the new primary, by redis-py and by Celery."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import RedisError
from redis.sentinel import Sentinel

from stack.embedded_redis import EmbeddedServer, find_server_binary, free_port
from tests.support.own_stack import OwnStack, opened_stack
from tests.support.polling import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
NAME = "main"
CONF = """
bind 127.0.0.1
port {port}
dir {folder}
sentinel monitor {name} 127.0.0.1 {primary} 2
sentinel down-after-milliseconds {name} 1500
sentinel failover-timeout {name} 10000
"""


@contextlib.contextmanager
def running_sentinels(folder: Path, primary: int) -> Iterator[list[tuple[str, int]]]:
    """Three real Sentinels, two of which have to agree."""
    places, processes = [], []
    for number in range(3):
        own, port = folder / f"sentinel-{number}", free_port()
        own.mkdir()
        conf = own / "sentinel.conf"
        conf.write_text(CONF.format(port=port, folder=own, name=NAME, primary=primary), "utf-8")
        with (own / "log").open("wb") as log:
            processes.append(subprocess.Popen([find_server_binary(), conf, "--sentinel"], stdout=log, stderr=log))
        places.append(("127.0.0.1", port))
    try:
        yield places
    finally:
        for process in processes:
            process.kill()
            process.wait()


def agrees(places: list[tuple[str, int]]) -> bool:
    """Whether each Sentinel knows the replica and both others, so that a failover can be had."""
    for place in places:
        try:
            state = Sentinel([place], socket_timeout=1).sentinels[0].sentinel_master(NAME)
        except RedisError:
            return False
        if (int(state["num-slaves"]), int(state["num-other-sentinels"])) != (1, 2):
            return False
    return True


def post(stack: OwnStack, path: str, body: object) -> Any:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.post(f"{stack.url}{path}", json=body, timeout=10)
    return None


def job_of(stack: OwnStack, job_id: str) -> dict[str, Any]:
    """The job, or nothing while Redis is away."""
    with contextlib.suppress(httpx.HTTPError):
        answer = httpx.get(f"{stack.url}/v1/jobs/{job_id}", timeout=10)
        return dict(answer.json()) if answer.status_code == 200 else {}
    return {}


def test_a_job_and_calls_go_on_after_the_primary_was_killed(tmp_path: Path) -> None:
    with opened_stack(tmp_path / "stack", knobs="latency_ms = 150") as stack:
        options = ("--replicaof", "127.0.0.1", str(stack.server.port))
        with (
            EmbeddedServer(tmp_path / "replica", options=options) as replica,
            running_sentinels(tmp_path, stack.server.port) as places,
        ):
            wait_until(lambda: agrees(places))
            url = f"sentinel://{','.join(f'{host}:{port}' for host, port in places)}/{NAME}"
            stack.start_web(url)
            stack.start_worker(url)
            stack.wait_until_ready()
            texts = [f"passage {number}" for number in range(2000)]
            job_id = post(stack, "/v1/jobs", {"type": "embeddings", "model": "fake", "input": texts}).json()["id"]
            wait_until(lambda: job_of(stack, job_id).get("chunks", {}).get("done", 0) >= 3)
            assert job_of(stack, job_id)["status"] == "running"

            stack.server.kill()

            def is_primary() -> bool:
                with contextlib.suppress(RedisError):
                    return bool(Sentinel(places, socket_timeout=1).discover_master(NAME)[1] == replica.port)
                return False

            wait_until(is_primary)
            wait_until(
                lambda: getattr(post(stack, "/v1/embeddings", {"model": "fake", "input": "a"}), "status_code", 0) == 200
            )
            wait_until(lambda: job_of(stack, job_id).get("status") == "succeeded", within_s=200)
            counts = job_of(stack, job_id)["counts"]
            assert (counts["completed"], counts["failed"], counts["total"]) == (2000, 0, 2000)
            # Nothing looks back: a new job is queued by the new primary and computed.
            again = post(stack, "/v1/jobs", {"type": "embeddings", "model": "fake", "input": texts[:100]}).json()["id"]
            wait_until(lambda: job_of(stack, again).get("status") == "succeeded")
