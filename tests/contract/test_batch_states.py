"""States of a batch that a test has to hold still: an app, and neither a worker nor anybody who looks after batches."""

import time
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from app.batches.batch_scheduler import BatchScheduler
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks import keys
from tests.support.batch_requests import EMBED, GOOD, embed, ndjson, read, start, upload
from tests.support.web import services_of, settings_of


@pytest.fixture(scope="module")
def settings_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_of(server, tmp_path_factory.mktemp("data"), chunk_items=20)


@pytest.fixture(scope="module")
def idle(app_here: Flask) -> FlaskClient:
    return app_here.test_client()


def test_an_input_file_that_is_gone_fails_the_batch(idle: FlaskClient, app_here: Flask) -> None:
    begun = start(idle, [GOOD])
    idle.delete(f"/v1/files/{begun['input_file_id']}")
    BatchScheduler(services_of(app_here)).run_once()
    failed = idle.get(f"/v1/batches/{begun['id']}").json or {}
    assert failed["status"] == "failed"
    assert "No such File" in failed["errors"]["data"][0]["message"]


def test_a_batch_that_was_not_yet_validated_is_cancelled_without_files(idle: FlaskClient, app_here: Flask) -> None:
    begun = start(idle, [GOOD])
    for _ in range(2):
        answer = idle.post(f"/v1/batches/{begun['id']}/cancel")
        assert (answer.status_code, (answer.json or {})["status"]) == (200, "cancelling")
    BatchScheduler(services_of(app_here)).run_once()
    ended = idle.get(f"/v1/batches/{begun['id']}").json or {}
    assert ended["status"] == "cancelled"
    assert (ended["output_file_id"], ended["error_file_id"]) == (None, None)


def test_lines_that_were_not_run_within_the_window_expire(idle: FlaskClient, app_here: Flask) -> None:
    """Nobody computes: there is no worker here, and the window is over before one could come."""
    live = services_of(app_here)
    scheduler = BatchScheduler(live)
    begun = start(idle, [embed(f"l{i}", f"text {i}") for i in range(30)])
    shorten_window(live.redis, begun["id"], 500)
    scheduler.run_once()
    assert (idle.get(f"/v1/batches/{begun['id']}").json or {})["status"] == "in_progress"
    time.sleep(1.2)
    scheduler.run_once()
    ended = idle.get(f"/v1/batches/{begun['id']}").json or {}
    assert ended["status"] == "expired"
    assert ended["request_counts"] == {"total": 30, "completed": 0, "failed": 30}
    assert ended["output_file_id"] is None
    errors = read(idle, ended["error_file_id"])
    assert {line["error"]["code"] for line in errors.values()} == {"batch_expired"}


def test_a_batch_that_nobody_validated_within_its_window_expires(idle: FlaskClient, app_here: Flask) -> None:
    begun = start(idle, [GOOD])
    shorten_window(services_of(app_here).redis, begun["id"], 0)
    BatchScheduler(services_of(app_here)).run_once()
    assert (idle.get(f"/v1/batches/{begun['id']}").json or {})["status"] == "expired"


def shorten_window(redis: Redis, batch_id: str, left_ms: int) -> None:
    seconds, micros = redis.time()
    redis.hset(keys.batch(batch_id), "deadline_ms", int(seconds * 1000 + micros // 1000 + left_ms))


def test_the_same_idempotency_key_gives_the_same_batch(idle: FlaskClient) -> None:
    file = upload(idle, ndjson([GOOD])).json
    body = {"input_file_id": file["id"], "endpoint": EMBED, "completion_window": "24h"}
    headers = {"Idempotency-Key": "k-1"}
    first, second = (idle.post("/v1/batches", json=body, headers=headers).json or {} for _ in range(2))
    assert first["id"] == second["id"]
    other = idle.post("/v1/batches", json={**body, "metadata": {"a": "b"}}, headers=headers)
    assert other.status_code == 422
    assert (idle.post("/v1/batches", json=body).json or {})["id"] != first["id"]


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"input_file_id": "file-" + "0" * 31}, 404, "file_id"),
        ({"input_file_id": "../../etc/passwd"}, 404, "file_id"),
        ({"input_file_id": None}, 400, "input_file_id"),
        ({"endpoint": "/v1/chat/completions"}, 400, "endpoint"),
        ({"completion_window": "48h"}, 400, "completion_window"),
        ({"metadata": {f"k{i}": "v" for i in range(17)}}, 400, "metadata"),
        ({"metadata": {"k" * 65: "v"}}, 400, "metadata"),
        ({"metadata": {"k": "v" * 513}}, 400, "metadata.k"),
        ({"metadata": {"k": 1}}, 400, "metadata.k"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "output_expires_after.seconds"),
    ],
)
def test_a_bad_request_makes_no_batch(idle: FlaskClient, change: dict[str, Any], status: int, param: str) -> None:
    file = upload(idle, ndjson([GOOD])).json
    before = (idle.get("/v1/batches?limit=1").json or {})["first_id"]
    body = {"input_file_id": file["id"], "endpoint": EMBED, "completion_window": "24h", **change}
    answer = idle.post("/v1/batches", json=body)
    assert (answer.status_code, (answer.json or {})["error"]["param"]) == (status, param)
    assert (idle.get("/v1/batches?limit=1").json or {})["first_id"] == before


def test_batches_are_listed_newest_first_in_pages(idle: FlaskClient) -> None:
    made = [start(idle, [GOOD])["id"] for _ in range(5)]
    first = idle.get("/v1/batches?limit=3").json or {}
    assert [batch["id"] for batch in first["data"]] == made[:1:-1]
    assert (first["first_id"], first["last_id"], first["has_more"]) == (made[4], made[2], True)
    second = idle.get(f"/v1/batches?limit=2&after={first['last_id']}").json or {}
    assert [batch["id"] for batch in second["data"]] == made[1::-1]
    assert idle.get("/v1/batches?limit=0").status_code == 400


def test_an_unknown_batch_is_not_found(idle: FlaskClient) -> None:
    for path in ("/v1/batches/batch_nope", "/v1/batches/batch_" + "0" * 31):
        assert idle.get(path).status_code == 404
        assert idle.post(f"{path}/cancel").status_code == 404
