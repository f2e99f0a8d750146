"""Real processes are killed while a batch is on its way: the web server with everything in it, and the worker."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.stack_fixture import RunningStack, running_stack

LINES = 3000
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    folder: Path = tmp_path_factory.mktemp("stack")
    card = 'source = "none:"\nfamily = "fake"\nbackend = "fake"\ncapabilities = ["dense"]\ndimension = 64\n'
    card += 'max_tokens = 512\npooling = "mean"\n[models.knobs]\nlatency_ms = 20.0\n'
    (folder / "models.toml").write_text(f'[[models]]\nname = "slow-fake"\n{card}')
    options = {
        "catalog_file": str(folder / "models.toml"),
        "chunk_items": "20",
        "lease_s": "3",
        "ticket_timeout_s": "3",
    }
    with running_stack(folder, "slow-fake", **options) as running:
        yield running


def ask(stack: RunningStack, method: str, path: str, **options: Any) -> httpx.Response:
    """A client that tries again while the web server is away, as the SDKs do."""
    deadline_s = time.monotonic() + 60
    while True:
        try:
            return httpx.request(method, f"{stack.url}{path}", timeout=30, **options)
        except httpx.TransportError:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)


def begin(stack: RunningStack) -> str:
    lines = [
        {
            "custom_id": f"l{i}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "slow-fake", "input": f"t{i}"},
        }
        for i in range(LINES)
    ]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = ask(stack, "POST", "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", body)}).json()
    order = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch: dict[str, Any] = ask(stack, "POST", "/v1/batches", json=order).json()
    return str(batch["id"])


def look(stack: RunningStack, batch_id: str) -> dict[str, Any]:
    batch: dict[str, Any] = ask(stack, "GET", f"/v1/batches/{batch_id}").json()
    return batch


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def check_complete(stack: RunningStack, batch_id: str) -> None:
    deadline_s = time.monotonic() + 120
    while (batch := look(stack, batch_id))["status"] != "completed":
        assert batch["status"] in {"validating", "in_progress", "finalizing"}, batch
        assert time.monotonic() < deadline_s, batch
        time.sleep(0.1)
    assert batch["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    lines = ask(stack, "GET", f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == [f"l{i}" for i in range(LINES)]


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.3])
def test_the_web_server_is_killed_just_after_it_took_a_batch(own_stack: RunningStack, delay_s: float) -> None:
    batch_id = begin(own_stack)
    time.sleep(delay_s)
    kill(own_stack.web_pids())
    check_complete(own_stack, batch_id)


def test_web_server_and_worker_are_killed_again_and_again(own_stack: RunningStack) -> None:
    batch_id = begin(own_stack)
    for _ in range(4):
        time.sleep(1.0)
        kill(own_stack.web_pids())
        time.sleep(1.0)
        kill(own_stack.worker_pids())
    check_complete(own_stack, batch_id)


def test_the_web_server_is_killed_while_the_files_are_written(own_stack: RunningStack) -> None:
    batch_id = begin(own_stack)
    while look(own_stack, batch_id)["request_counts"]["completed"] < LINES * 0.98:
        time.sleep(0.02)
    for _ in range(3):
        kill(own_stack.web_pids())
        look(own_stack, batch_id)
        time.sleep(0.05)
    check_complete(own_stack, batch_id)
