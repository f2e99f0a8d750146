"""The Celery app, which delivers the chunk messages of the bulk lanes. `celery -A tasks` finds it here.

Owns its settings, which went through chaos runs exactly like this. The job record is the truth (`tasks.jobs.store`), so
nothing here has to be reliable: no result backend, no chords, messages that hold IDs only.
"""

import logging
import os
from functools import lru_cache
from typing import Any

from celery import Celery
from kombu import Queue

from config.catalog import load_catalog
from config.foreign_variables import drop_celery_variables
from config.redis_url import RedisAddress
from config.settings import Settings
from tasks import keys
from tasks.lanes import Lane, Service

__all__ = ["app", "bulk_queue", "celery_config", "make_app", "publisher"]

_log = logging.getLogger(__name__)

_WORKER_SOCKET_TIMEOUT_S = 10
_WEB_SOCKET_TIMEOUT_S = 2


class OwnCelery(Celery):  # type: ignore[misc] # Celery has no types
    """Celery that takes nothing from the environment past our settings."""

    loader_cls = "celery.loaders.app:AppLoader"

    def on_configure(self) -> None:
        """Remove what Celery would prefer to its own configuration; it is called before that is read."""
        foreign = drop_celery_variables(os.environ)
        if foreign:
            _log.warning("ignored in the environment, since Twolane has settings of its own: %s", ", ".join(foreign))

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        """Return a connection to our broker; `conf.broker_read_url` asks the environment first."""
        return super().connection_for_read(url or self.conf["broker_url"], **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        """See `connection_for_read`."""
        return super().connection_for_write(url or self.conf["broker_url"], **options)

    def connection(self, hostname: str | None = None, **options: Any) -> Any:
        """See `connection_for_read`."""
        return super().connection(hostname or self.conf["broker_url"], **options)

    def _get_default_loader(self) -> str:
        return self.loader_cls


def celery_config(settings: Settings, socket_timeout_s: float = _WORKER_SOCKET_TIMEOUT_S) -> dict[str, Any]:
    """Return Celery's settings.

    Args:
        settings: Redis, models and chunks in flight.
        socket_timeout_s: how long a command may take; a web request cannot wait as long as a worker.
    """
    queues = bulk_queues(settings)
    return {
        **_describe_broker(settings.redis_url),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "broker_transport_options": {
            # Longer than the longest chunk: an unacknowledged message is delivered again after it, which its claim
            # answers with BUSY or DONE.
            "visibility_timeout": 900,
            "unacked_restore_interval": 10,
            # Otherwise a sweep of what a dead worker held takes 100 s.
            "unacked_restore_throttle": 1,
            "socket_timeout": socket_timeout_s,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "client_name": "twolane-celery",
            "global_keyprefix": keys.BROKER_PREFIX,
            "priority_steps": [0],
            **_describe_sentinels(settings.redis_url),
        },
        "imports": ("tasks.bulk.chunk_task",),
        "result_backend": None,
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_create_missing_queues": False,
        "task_queues": queues,
        "task_default_queue": queues[0].name,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_publish_retry_policy": {"max_retries": 3, "interval_step": 0.2, "interval_max": 0.5},
        # Threads, never processes: the device was touched before the first chunk, and a forked child cannot use it.
        "worker_pool": "threads",
        # One thread more than chunks are held, for small ones: see `tasks.bulk.chunk_task`.
        "worker_concurrency": settings.chunks_in_flight + 1,
        "worker_prefetch_multiplier": 1,
        "worker_send_task_events": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }


def _describe_broker(url: str) -> dict[str, Any]:
    if not url:
        return {"broker_url": ""}
    address = RedisAddress.parse(url)
    tls = {"broker_use_ssl": address.celery_tls} if address.celery_tls else {}
    return {"broker_url": address.celery_url, **tls}


def _describe_sentinels(url: str) -> dict[str, Any]:
    return RedisAddress.parse(url).celery_options if url else {}


def bulk_queues(settings: Settings) -> list[Queue]:
    """Return the queue of each served model's bulk lane."""
    served = load_catalog(settings.catalog_file, settings.models).served
    return [bulk_queue(Lane(card.slug, Service.BULK)) for card in served]


def bulk_queue(lane: Lane) -> Queue:
    """Return the queue of a bulk lane, of a model that the settings name or of one that was loaded later."""
    return Queue(lane.queue, routing_key=lane.queue)


def make_app(settings: Settings, socket_timeout_s: float = _WORKER_SOCKET_TIMEOUT_S) -> Celery:
    """Return an app for these settings, apart from the process's own one; it connects when it is used."""
    made = OwnCelery("twolane", set_as_current=False)
    made.conf.update(celery_config(settings, socket_timeout_s))
    return made


@lru_cache(maxsize=4)
def publisher(settings: Settings) -> Celery:
    """Return the app through which this process publishes chunk messages."""
    return make_app(settings, _WEB_SOCKET_TIMEOUT_S)


def _configure_from_environment() -> dict[str, Any]:
    return celery_config(Settings())


app = OwnCelery("twolane")
# Read when Celery first asks for a setting: importing this module reads no environment.
app.add_defaults(_configure_from_environment)
