"""Fixtures that all kinds of tests share: a real Redis-compatible server and settings that point to it."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.http import request_ids
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks.jobs.blobs import Blobs, open_blobs
from tasks.jobs.store import JobStore
from tests.support.stack_fixture import RunningStack, running_stack


class _SteadyLoggers(dict[str, Any]):
    """All loggers by name, as a walk over them that a new one does not end.

    pytest looks at every logger before each test (`_pytest/logging.py`, without the lock of `logging`). A thread of a
    worker that a module's fixture keeps running may import a module meanwhile, which makes its logger.
    """

    def values(self) -> Any:
        return list(super().values())


logging.root.manager.loggerDict = _SteadyLoggers(logging.root.manager.loggerDict)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One server for the whole test session."""
    with EmbeddedServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(autouse=True)
def _outside_of_a_request() -> None:
    """A test that answered requests in this process leaves the id of the last one: it is not this test's."""
    request_ids._request_id.set("")
    request_ids._facts.set({})


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """Undo what the test does to the root logger: it belongs to all tests of the process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.fixture
def redis_url(server: EmbeddedServer) -> str:
    """The URL of the session's server, emptied for this test."""
    with Redis.from_url(server.url) as client:
        client.flushall()
    return server.url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of the emptied server."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """Settings of a stack that uses the session's server, with the fake model."""
    return Settings(_env_file=None, redis_url=redis_url, data_dir=tmp_path / "data", port=0, models=("fake",))


@pytest.fixture
def store(redis: Redis, settings: Settings) -> JobStore:
    """The job store on the emptied server."""
    return JobStore(redis, settings)


@pytest.fixture
def blobs(redis: Redis, settings: Settings) -> Blobs:
    """The blobs that go with it."""
    return open_blobs(redis, settings)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The real product with the real MiniLM and the fake model: web, worker and Flower, each its own process."""
    with running_stack(
        tmp_path_factory.mktemp("stack"), "all-MiniLM-L6-v2,fake", dtype="float32", lease_s="4", chunk_items="64"
    ) as running:
        yield running
