"""The web server is killed while it tells the end of a job."""

import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.stack_fixture import running_stack
from tests.support.webhook_receiver import receiving

pytestmark = pytest.mark.slow
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_an_end_that_a_killed_web_server_had_begun_to_tell_is_told_by_the_next_one(tmp_path: Path) -> None:
    options = {"webhook_allow_private": "true", "webhook_timeout_s": "2"}
    with receiving() as receiver, running_stack(tmp_path, "fake", **options) as stack:
        receiver.hold.clear()
        order = {"type": "embeddings", "model": "fake", "input": ["a"], "webhook": {"url": receiver.url}}
        answer = httpx.post(f"{stack.url}/v1/jobs", json=order, timeout=30).json()
        receiver.wait_for(1)
        for pid in reversed(stack.web_pids()):
            psutil.Process(pid).kill()
        receiver.hold.set()
        receiver.wait_for(2, within_s=60)
        assert receiver.read(answer["webhook"]["secret"], 1)["type"] == "job.succeeded"
        assert len({headers["webhook-id"] for headers, _ in receiver.calls}) == 1
        until_s = time.monotonic() + 30
        while (state := _look(stack.url, answer["id"])) != {"status": "delivered", "attempts": 1}:
            assert time.monotonic() < until_s, state
            time.sleep(0.1)


def _look(url: str, job_id: str) -> dict[str, object]:
    try:
        webhook = httpx.get(f"{url}/v1/jobs/{job_id}", timeout=10).json()["webhook"]
    except httpx.TransportError as error:
        return {"error": repr(error)}
    return {"status": webhook["status"], "attempts": webhook["attempts"]}
