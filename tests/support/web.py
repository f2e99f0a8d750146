"""A whole product inside one test process: the Flask app, and a worker with the real engine and the fake model.

The worker's threads are those of the product: the interactive server, the heartbeat, and one that takes
tickets off the broker and runs their chunks.
"""

import contextlib
import hashlib
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from app import create_app
from app.batches.batch_scheduler import BatchScheduler
from app.services import Services
from config.catalog import ModelCard, load_catalog
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks.bulk import chunk_task
from tasks.bulk.chunk_task import WorkerContext
from tasks.cache.caching_engine import CachingEngine
from tasks.cache.values import ContentCache
from tasks.celery import make_app
from tasks.connections import connect
from tasks.interactive.server import serve
from tasks.jobs.blobs import open_blobs
from tasks.jobs.leases import Leases
from tasks.lanes import Lane, Service
from tasks.presence.counters import Counters
from tasks.presence.worker_registry import WorkerHeartbeat, WorkerInfo, WorkerRegistry
from workers.engine.device import DeviceEngine
from workers.models.registry import load_models

__all__ = [
    "CORPUS",
    "NDJSON",
    "opened_app",
    "running_scheduler",
    "running_worker",
    "services_of",
    "settings_of",
    "wait_for_end",
    "write_keys",
]

NDJSON = "application/x-ndjson"
CORPUS = [f"passage number {i}" for i in range(700)]


def settings_of(server: EmbeddedServer, folder: Path, **fields: Any) -> Settings:
    """Settings with the fake model for a whole module; the server is emptied first."""
    with Redis.from_url(server.url) as client:
        client.flushall()
    return Settings(_env_file=None, redis_url=server.url, data_dir=folder, port=0, models=("fake",), **fields)


def write_keys(path: Path, tenants: Mapping[str, str]) -> Path:
    """Write a keys file: by tenant, further fields in TOML. The name of a tenant is its key."""
    blocks = (
        f'[[keys]]\ntenant = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n{fields}\n'
        for name, fields in tenants.items()
    )
    path.write_text("\n".join(blocks), "utf-8")
    return path


@contextlib.contextmanager
def opened_app(settings: Settings) -> Iterator[Flask]:
    """The app, closed at the end."""
    app = create_app(settings)
    try:
        yield app
    finally:
        services_of(app).close()


def services_of(app: Flask) -> Services:
    live: Services = app.extensions["twolane"]
    return live


@contextlib.contextmanager
def running_scheduler(app: Flask) -> Iterator[BatchScheduler]:
    """The one that works off the batches of this app; gone at the end."""
    scheduler = BatchScheduler(services_of(app))
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.close()


def cards_of(settings: Settings) -> list[ModelCard]:
    catalog = load_catalog(settings.catalog_file)
    return [card for name in settings.models if (card := catalog.find(name)) is not None]


@contextlib.contextmanager
def running_worker(settings: Settings) -> Iterator[DeviceEngine]:
    """A ready worker for the settings' models; gone at the end."""
    cards, stop = cards_of(settings), threading.Event()
    with contextlib.ExitStack() as stack:
        models = load_models(cards, settings)
        blocking = stack.enter_context(connect(settings.redis_url, name="test-serve", block_s=1))
        state = stack.enter_context(connect(settings.redis_url, name="test-state"))
        counters = Counters(state, every_s=0.05)
        counters.start()
        stack.callback(counters.stop)
        engine = stack.enter_context(DeviceEngine(settings, models, meter=counters))
        fingerprints = {name: model.fingerprint for name, model in models.items()}
        reusing = CachingEngine(engine, fingerprints, ContentCache(state, settings))
        stack.callback(reusing.close)
        context = WorkerContext(
            Leases(state, settings),
            open_blobs(state, settings),
            reusing,
            settings,
            "w-test",
            dimensions={card.name: card.dimension or 0 for card in cards},
            meter=counters,
        )
        calls = {"call_target_ms": 50.0, "call_p99_ms": 12.0, "call_expected_ms": 80.0}
        facts = {
            card.slug: WorkerInfo("w-test", "here", 1, "cpu", "float32", "fp-1", 1000.0, **calls) for card in cards
        }
        heartbeat = WorkerHeartbeat(state, "w-test", lambda: facts, settings.worker_ttl_s)
        threads = [
            threading.Thread(target=serve, args=(blocking, cards, reusing, stop)),
            threading.Thread(target=_take_messages, args=(settings, cards, context, stop)),
        ]
        for thread in threads:
            thread.start()
        heartbeat.start()
        try:
            _wait_until_announced(settings, cards)
            yield engine
        finally:
            stop.set()
            heartbeat.stop()
            for thread in threads:
                thread.join()


def wait_for_end(client: FlaskClient, job_id: str, within_s: float = 30.0) -> dict[str, Any]:
    """The job object when the job has ended."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=5"}).json or {}
        if job["status"] in {"succeeded", "failed", "cancelled", "expired"}:
            return job
    raise AssertionError(f"the job did not end: {job}")


def _take_messages(settings: Settings, cards: list[ModelCard], context: WorkerContext, stop: threading.Event) -> None:
    chunk_task.app.twolane = context
    lanes = [Lane(card.slug, Service.BULK) for card in cards]
    with make_app(settings).connection() as connection:
        boxes = [connection.SimpleQueue(lane.queue) for lane in lanes]
        while not stop.is_set():
            for lane, box in zip(lanes, boxes, strict=True):
                try:
                    message = box.get(timeout=0.05)
                except (queue.Empty, box.Empty):
                    chunk_task.reap(context.leases, lane)
                    continue
                message.ack()
                chunk_task.run_chunk(*message.payload[0])
        for box in boxes:
            box.close()


def _wait_until_announced(settings: Settings, cards: list[ModelCard]) -> None:
    with connect(settings.redis_url, name="test-presence") as redis:
        deadline_s = time.monotonic() + 10
        while len(WorkerRegistry(redis, [card.slug for card in cards]).ready_models()) < len(cards):
            assert time.monotonic() < deadline_s, "the worker did not announce itself"
            time.sleep(0.02)
