"""The few live objects that routes need, made once per web process.

Owns how they are built and closed. Holds no logic of requests.
"""

import threading
from dataclasses import dataclass
from typing import cast

from flask import Flask, current_app
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from app.access.limits import Limiter
from config.catalog import Catalog, load_catalog
from config.settings import Settings
from tasks.connections import open_client
from tasks.files.batches import BatchStore
from tasks.files.store import FileStore
from tasks.interactive.client import InteractiveClient
from tasks.jobs.blobs import Blobs, open_blobs
from tasks.jobs.forecast import Forecasts
from tasks.jobs.store import JobStore
from tasks.presence.activity import ActivityRecorder
from tasks.presence.counters import Counters
from tasks.presence.fleet import Fleet
from tasks.presence.model_states import LearningCatalog, ModelReports
from tasks.presence.worker_registry import WorkerRegistry

__all__ = ["Services", "build_services", "connect_store", "services"]

_KEY = "twolane"
_ANSWER_TIMEOUT_S = 1.0
# Of the threads that send webhooks, move batches and the like.
_OTHER_CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class Services:
    """What a route may use."""

    settings: Settings
    catalog: Catalog
    redis: Redis
    store: JobStore
    blobs: Blobs
    interactive: InteractiveClient
    presence: WorkerRegistry
    forecasts: Forecasts
    reports: ModelReports
    fleet: Fleet
    activity: ActivityRecorder
    counters: Counters
    files: FileStore
    batches: BatchStore
    # None where no key has a limit.
    limiter: Limiter | None
    # Set when a batch was created or cancelled here, so that the scheduler's next run begins at once.
    batch_wake: threading.Event

    def close(self) -> None:
        """End the threads and connections of this process."""
        self.interactive.close()
        self.redis.close()


def connect_store(settings: Settings) -> Redis:
    """Return the web tier's client: Redis that is down costs a caller two seconds, not the library's ten retries."""
    return open_client(
        settings.redis_url,
        client_name="twolane-web",
        socket_timeout=_ANSWER_TIMEOUT_S,
        socket_connect_timeout=_ANSWER_TIMEOUT_S,
        socket_keepalive=True,
        # Each thread may need one at the same moment; the library's own limit is a hundred.
        max_connections=settings.web_threads + _OTHER_CONNECTIONS,
        retry=Retry(ConstantBackoff(0.05), 1),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )


def build_services(settings: Settings) -> Services:
    """Make the objects. No connection is opened before the first request.

    Raises:
        OSError, tomllib.TOMLDecodeError, pydantic.ValidationError: the catalogue file is bad.
        tasks.errors.ConfigError: the place for files is of an unknown kind.
    """
    redis = connect_store(settings)
    known = load_catalog(settings.catalog_file, settings.models, any_dimensions=settings.any_dimensions)
    catalog = LearningCatalog(known, redis)
    presence = WorkerRegistry(redis, (card.slug for card in catalog))
    return Services(
        settings=settings,
        catalog=catalog,
        redis=redis,
        store=JobStore(redis, settings),
        blobs=open_blobs(redis, settings),
        interactive=InteractiveClient(settings),
        presence=presence,
        forecasts=Forecasts(redis, presence.speed),
        reports=ModelReports(redis),
        fleet=Fleet(redis),
        activity=ActivityRecorder(redis),
        counters=Counters(redis),
        files=FileStore(redis, settings),
        batches=BatchStore(redis, settings),
        limiter=Limiter(redis) if settings.keys_file is not None else None,
        batch_wake=threading.Event(),
    )


def services() -> Services:
    """Return the services of the app that handles the request in progress."""
    return cast("Services", current_app.extensions[_KEY])


def install_services(app: Flask, built: Services) -> None:
    """Let `services()` find them."""
    app.extensions[_KEY] = built
