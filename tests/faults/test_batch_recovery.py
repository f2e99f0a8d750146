"""A web process dies while it moves a batch on: at every single command that it sends to Redis, before the command
is done and after it, when only the answer is lost. Another process has to bring the batch to the same end.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Connection, ConnectionPool, Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.batches.batch_scheduler import BatchScheduler
from app.services import Services
from stack.embedded_redis import EmbeddedServer
from tasks import keys
from tasks.files.batches import BatchStore
from tasks.files.store import FileStore
from tasks.jobs.blobs import open_blobs
from tasks.jobs.store import JobStore
from tests.support.batch_requests import embed, read, start
from tests.support.web import opened_app, running_worker, services_of, settings_of

LINES = [
    *(embed(f"a{i}", f"text {i}") for i in range(25)),
    embed("bad", "x", model="none"),
    *(embed(f"b{i}", [f"text {i}", "more"], dimensions=8) for i in range(25)),
]


class Death:
    """Counts commands and cuts the line at one of them, for good."""

    def __init__(self, at: int, *, answer_lost: bool) -> None:
        self.left = at
        self.answer_lost = answer_lost


class DyingConnection(Connection):
    """A connection of a process that is going to die."""

    def __init__(self, *args: Any, death: Death, **options: Any) -> None:
        self._death = death
        self._reading = False
        super().__init__(*args, **options)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self._death.left -= 1
        if self._death.left < 0 and not (self._death.answer_lost and self._death.left == -1):
            raise RedisConnectionError("dead")
        super().send_packed_command(command, check_health)

    def read_response(self, *args: Any, **options: Any) -> Any:
        response = super().read_response(*args, **options)
        if self._death.left < 0:
            raise RedisConnectionError("dead")
        return response


def dying_services(live: Services, death: Death) -> Services:
    """The services of another process, whose line to Redis will be cut."""
    url = live.settings.redis_url
    options = ConnectionPool.from_url(url).connection_kwargs
    redis = Redis(connection_pool=ConnectionPool(connection_class=DyingConnection, death=death, retry=None, **options))
    return replace(
        live,
        redis=redis,
        store=JobStore(redis, live.settings),
        blobs=open_blobs(redis, live.settings),
        files=FileStore(redis, live.settings),
        batches=BatchStore(redis, live.settings),
    )


@pytest.fixture(scope="module")
def app_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    settings = settings_of(server, tmp_path_factory.mktemp("data"), chunk_items=10, ticket_timeout_s=1)
    with opened_app(settings) as app, running_worker(settings):
        yield app


@pytest.fixture
def client(app_here: Flask) -> FlaskClient:
    return app_here.test_client()


def jobs_have_ended(live: Services, batch_id: str) -> bool:
    batch = live.batches.get(batch_id, "default")
    return all(live.store.get(group.job_id).ended for group in batch.groups)


def wait_for_jobs(live: Services, batch_id: str) -> None:
    deadline_s = time.monotonic() + 30
    while not jobs_have_ended(live, batch_id):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def forget_hold(live: Services, batch_id: str) -> None:
    """The hold of a dead process runs out; here at once. It looked at the batch long ago, too."""
    if live.redis.exists(keys.batch(batch_id)):
        live.redis.hset(keys.batch(batch_id), "held_until_ms", 0)
    for member in live.redis.zrange(keys.batches_active(), 0, -1):
        live.redis.zadd(keys.batches_active(), {member: 0})


def look_until_ended(client: FlaskClient, live: Services, batch_id: str) -> dict[str, Any]:
    scheduler = BatchScheduler(live)
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        forget_hold(live, batch_id)
        scheduler.run_once()
        if not live.redis.exists(keys.batches_active()):
            return client.get(f"/v1/batches/{batch_id}").json or {}
        time.sleep(0.01)
    raise AssertionError("nobody could bring the batch to its end")


def check_outcome(client: FlaskClient, live: Services, batch: dict[str, Any]) -> None:
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 51, "completed": 50, "failed": 1}
    output, errors = read(client, batch["output_file_id"]), read(client, batch["error_file_id"])
    assert list(output) == [line["custom_id"] for line in LINES if line["custom_id"] != "bad"]
    assert list(errors) == ["bad"]
    assert len(output["b3"]["response"]["body"]["data"]) == 2
    # Nothing is left but the input and the two files: no job, no plan, no draft.
    live.files.sweep()
    assert [name for name in live.redis.scan_iter("*{job_*", count=1000) if not is_to_be_swept(live, name)] == []
    listed = {file["id"] for file in client.get("/v1/files").json["data"]}  # type: ignore[index]
    assert listed == {batch["input_file_id"], batch["output_file_id"], batch["error_file_id"]}


def is_to_be_swept(live: Services, name: bytes) -> bool:
    """Inputs of a job that was never created are known to Redis' own sweep."""
    job_id = name.partition(b"{")[2].partition(b"}")[0]
    return b":input:" in name and live.redis.zscore(keys.store_uploads(), job_id) is not None


def clean_up(live: Services) -> None:
    for file in live.files.list("default", limit=100):
        live.files.discard(file.id, "default")


def commands_of(client: FlaskClient, live: Services, step: str) -> int:
    """How many commands a healthy process sends for this step, give or take some tickets."""
    death = Death(10_000, answer_lost=False)
    batch_id = begin(client, live, step)
    before = death.left
    BatchScheduler(dying_services(live, death)).run_once()
    look_until_ended(client, live, batch_id)
    clean_up(live)
    return before - death.left


def begin(client: FlaskClient, live: Services, step: str) -> str:
    """A batch that is due for a step: its file is to be taken in, or its outputs to be written."""
    batch_id: str = start(client, LINES)["id"]
    if step == "outputs":
        BatchScheduler(live).run_once()
        wait_for_jobs(live, batch_id)
        forget_hold(live, batch_id)
    return batch_id


def die_and_recover(client: FlaskClient, live: Services, step: str, death: Death) -> None:
    batch_id = begin(client, live, step)
    scheduler = BatchScheduler(dying_services(live, death))
    with contextlib.suppress(RedisConnectionError):
        scheduler.run_once()
    batch = look_until_ended(client, live, batch_id)
    # Bytes that a dead process was writing are swept when nothing was heard of it for long: here at once.
    expire_drafts(live)
    check_outcome(client, live, batch)
    clean_up(live)


def expire_drafts(live: Services) -> None:
    for name in live.redis.scan_iter("*:file", count=1000):
        if live.redis.hget(name, "state") == b"writing" or live.redis.hget(name, "purpose") == b"batch_plan":
            for member in live.redis.zrange(keys.files_expiry(), 0, -1):
                if member.decode().partition("/")[2] in name.decode():
                    live.redis.zadd(keys.files_expiry(), {member: 0})


@pytest.mark.parametrize("answer_lost", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["intake", "outputs"])
def test_a_death_at_any_seventh_command_changes_nothing(
    client: FlaskClient, app_here: Flask, step: str, answer_lost: bool
) -> None:
    live = services_of(app_here)
    commands = commands_of(client, live, step)
    assert commands > 30
    for at in range(1, commands, 7):
        die_and_recover(client, live, step, Death(at, answer_lost=answer_lost))


@pytest.mark.slow
@pytest.mark.parametrize("answer_lost", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["intake", "outputs"])
def test_a_death_at_any_command_changes_nothing(
    client: FlaskClient, app_here: Flask, step: str, answer_lost: bool
) -> None:
    live = services_of(app_here)
    for at in range(1, commands_of(client, live, step)):
        die_and_recover(client, live, step, Death(at, answer_lost=answer_lost))
