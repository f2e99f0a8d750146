"""Settings for the tests of Redis: short leases, which a server is soon up long enough for, and a small window."""

from collections.abc import Iterator

import pytest
from redis import Redis

from config.settings import Settings
from tasks.bulk.chunk_task import WorkerContext
from tasks.celery import app, publisher
from tasks.jobs.blobs import Blobs
from tasks.jobs.store import JobStore
from tests.support.bulk_worker import ThreadEngine
from tests.support.job_maker import outlive_restart_grace


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Those of all tests, with a short lease and a small window."""
    return settings.model_copy(update={"lease_s": 1.0, "window": 3})


@pytest.fixture
def engine() -> ThreadEngine:
    return ThreadEngine()


@pytest.fixture
def worker(store: JobStore, blobs: Blobs, engine: ThreadEngine, settings: Settings) -> Iterator[Redis]:
    """This process as a worker."""
    outlive_restart_grace(store)
    app.twolane = WorkerContext(store.leases, blobs, engine, settings, "this process", dimensions={"fake": 64})
    publisher.cache_clear()
    yield store.redis
    publisher(settings).close()
    publisher.cache_clear()
    del app.twolane
