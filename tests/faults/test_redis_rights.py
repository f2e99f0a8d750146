"""The product with a user of Redis that has the documented rights and no other."""

import re
from pathlib import Path

import httpx
import pytest

from tests.support.audit import audit, call, submit, wait_for_end
from tests.support.own_stack import opened_stack

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_calls_and_jobs_need_no_other_right_than_those_that_the_page_names(tmp_path: Path) -> None:
    found = re.search(
        r"^user twolane on >PASSWORD (.*)$", (ROOT / "docs/operations.md").read_text("utf-8"), re.MULTILINE
    )
    assert found is not None
    with opened_stack(tmp_path / "stack") as stack, stack.redis() as redis:
        redis.execute_command("ACL", "SETUSER", "twolane", "on", ">PASSWORD", *found[1].split())
        url = stack.server.url.replace("redis://", "redis://twolane:PASSWORD@")
        stack.start_web(url)
        stack.start_worker(url)
        stack.wait_until_ready()
        with httpx.Client(base_url=stack.url, timeout=20) as http:
            wanted = [f"text {number}" for number in range(200)]
            job_id = submit(http, wanted)
            wait_for_end(http, job_id)
            audit(http, redis, job_id, wanted)
            assert call(http, "POST", "/v1/embeddings", json={"model": "fake", "input": "a text"}).status_code == 200
            assert "twolane_store_up 1.0" in http.get("/metrics").text
            assert call(http, "POST", "/v1/files", files={"file": ("a.jsonl", b"{}\n")}, data={"purpose": "batch"})
            assert call(http, "GET", "/health").json()["warnings"] == []
        assert "NOPERM" not in stack.log()
        assert "NoPermission" not in stack.log()
