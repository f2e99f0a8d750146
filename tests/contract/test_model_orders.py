"""An admin's orders over HTTP, and calls for models that come and go, with a worker's parts in this process."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from redis import Redis

from config.settings import Settings
from tasks.cache.caching_engine import CachingEngine
from tasks.cache.values import ContentCache
from tasks.connections import connect
from tasks.interactive.server import InteractiveServer
from tasks.presence.model_orders import ModelOrders
from tasks.presence.worker_registry import WorkerHeartbeat, WorkerInfo
from tests.support.fakes import write_fake_card
from tests.support.polling import wait_until
from tests.support.web import opened_app, write_keys
from workers.boot import _read_catalog
from workers.engine import DeviceEngine
from workers.loading import LoadedModels, ModelSet
from workers.model_control import ModelControl
from workers.reporting import ModelReporting
from workers.served_lanes import ServedLanes

WORKER = "cpu.7@here#8"
SECOND = """
[[models]]
name = "second"
source = "none:"
family = "fake"
capabilities = ["dense"]
dimension = 8
max_tokens = 64
knobs = { memory_bytes = 1000 }
"""


@pytest.fixture
def settings(redis_url: str, settings: Settings) -> Settings:
    cards = write_fake_card(settings.data_dir.parent, "latency_ms = 1")
    cards.write_text(cards.read_text("utf-8") + SECOND, "utf-8")
    return settings.model_copy(update={"catalog_file": cards, "load_on_demand": True, "interactive_timeout_s": 10.0})


class Worker:
    """A worker without Celery: it answers calls, reports, and follows orders."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.engine = DeviceEngine(settings, {})
        self.reports = ModelReporting(redis, WORKER, settings)
        self.lanes = ServedLanes(redis, self._describe)
        self.models = ModelSet(settings, self.engine, self.lanes, self.reports)
        self.control = ModelControl(redis, settings, _read_catalog(settings), self.models, self.reports)
        self.models.start(self.control.wanted())
        fingerprints = LoadedModels(self.models, self.engine).fingerprints
        cache = ContentCache(connect(settings.redis_url, name="test-cache"), settings)
        self.reusing = CachingEngine(self.engine, fingerprints, cache)
        self.server = InteractiveServer(settings, self.lanes.cards, self.reusing)
        self.heartbeat = WorkerHeartbeat(redis, WORKER, self.lanes.describe, settings.worker_ttl_s)
        self.lanes.announce = self.heartbeat.beat

    def start(self) -> None:
        self.server.start()
        self.heartbeat.start()
        self.reports.start(self.engine.well_models, self.engine.idle_s)
        self.control.start()

    def stop(self) -> None:
        self.control.stop()
        self.reports.stop()
        self.heartbeat.stop()
        self.server.stop()
        self.reusing.close()

    def _describe(self, name: str) -> WorkerInfo | None:
        model = self.engine.loaded(name)
        return model and WorkerInfo(WORKER, "here", 1, "cpu", "float32", model.fingerprint, 0.0)


@pytest.fixture
def worker(redis: Redis, settings: Settings) -> Iterator[Worker]:
    worker = Worker(redis, settings)
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def client(settings: Settings) -> Iterator[FlaskClient]:
    with opened_app(settings) as app:
        yield app.test_client()


def embed(client: FlaskClient, model: str, **more: Any) -> Any:
    return client.post("/v1/embeddings", json={"model": model, "input": ["a text"], **more})


def follow(client: FlaskClient, model: str, action: str, **body: str) -> dict[str, Any]:
    """Give an order, wait until it was followed, and return what the worker then says."""
    answer = client.post(f"/v1/models/{model}/{action}", json=body)
    assert answer.status_code == 202, answer.json
    number = (answer.json or {})["id"]

    def reports() -> list[dict[str, Any]]:
        return list((client.get(f"/v1/models/{model}").json or {})["workers"])

    wait_until(lambda: any(report["order"] >= number for report in reports()), 20, 0.05)
    (report,) = reports()
    return report


def test_a_model_of_the_catalogue_is_loaded_used_and_unloaded(client: FlaskClient, worker: Worker) -> None:
    assert embed(client, "second").status_code == 404, "it is not set up"
    loaded = follow(client, "second", "load", worker="cpu@here")
    assert (loaded["state"], loaded["name"], loaded["pinned"]) == ("ready", "cpu@here", False)
    assert loaded["memory_bytes"] >= 1000
    wait_until(lambda: (client.get("/v1/models/second").json or {})["ready"], 20)
    assert loaded["fingerprint"] in {None, *(client.get("/v1/models/second").json or {})["fingerprints"]}
    answer = embed(client, "second")
    assert answer.status_code == 200
    assert [model["id"] for model in (client.get("/v1/models").json or {})["data"]] == ["fake", "second"]
    assert follow(client, "second", "unload")["state"] == "unloaded"
    assert worker.models.loaded == ["fake"]


def test_a_call_has_a_model_loaded_and_waits_for_it(client: FlaskClient, worker: Worker) -> None:
    before = embed(client, "fake").json
    assert follow(client, "fake", "unload")["reason"] == "an admin unloaded it"
    ready = client.get("/readyz")
    assert (ready.status_code, (ready.json or {})["models"]["fake"]["unloaded"]) == (200, True)
    again = embed(client, "fake")
    assert (again.status_code, again.json) == (200, before)


def test_a_call_for_what_loads_too_slowly_is_refused_with_the_time_that_it_takes(
    client: FlaskClient, worker: Worker
) -> None:
    follow(client, "fake", "unload")
    worker.control.stop()
    worker.reports.note("fake", load_s=45.0)
    wait_until(lambda: (client.get("/v1/models/fake").json or {})["workers"][0]["load_s"] == 45)
    refused = embed(client, "fake")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "45")
    assert "fake is not loaded: an admin unloaded it" in (refused.json or {})["error"]["message"]
    worker.reports.note("fake", state="loading", step="warming up")
    wait_until(lambda: (client.get("/v1/models/fake").json or {})["workers"][0]["state"] == "loading")
    assert "is being loaded (warming up)" in (embed(client, "fake").json or {})["error"]["message"]


def test_no_call_fails_and_none_is_mixed_while_models_are_swapped(client: FlaskClient, worker: Worker) -> None:
    stop, answers = threading.Event(), list[Any]()

    def call() -> None:
        while not stop.is_set():
            answers.append(embed(client, "fake", cache=True))

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for _ in range(3):
        follow(client, "fake", "reload")
        follow(client, "second", "load")
        follow(client, "second", "unload")
    stop.set()
    for caller in callers:
        caller.join()
    assert len(answers) > 20
    assert {answer.status_code for answer in answers} == {200}
    assert len({tuple(answer.json["data"][0]["embedding"]) for answer in answers}) == 1


def test_a_worker_that_starts_later_follows_the_orders_before(redis: Redis, settings: Settings) -> None:
    orders = ModelOrders(redis)
    orders.give("fake", "unload")
    orders.give("second", "load", "cpu@here")
    orders.give("second", "load", "cpu@there")
    last = orders.give("second", "reload")
    worker = Worker(redis, settings)
    try:
        assert worker.models.loaded == ["second"]
        before = worker.engine.loaded("second")
        worker.control.run_once()
        assert worker.engine.loaded("second") is before, "it is as new as the order"
        assert worker.models.state("second").order == last.id
    finally:
        worker.stop()


def test_bad_orders_are_refused_and_name_what_there_is(client: FlaskClient, worker: Worker) -> None:
    unknown = client.post("/v1/models/fakee/load")
    assert (unknown.status_code, "`fake`" in (unknown.json or {})["error"]["message"]) == (404, True)
    nobody = client.post("/v1/models/fake/reload", json={"worker": "gpu9@here"})
    assert nobody.status_code == 404
    assert "there are cpu@here" in (nobody.json or {})["error"]["message"]
    assert client.post("/v1/models/fake/reload", json={"wroker": "cpu@here"}).status_code == 400
    assert client.post("/v1/models/fake/reload", data=b"[", content_type="application/json").status_code == 400


def test_only_an_admin_orders(settings: Settings) -> None:
    keys_file = write_keys(settings.data_dir.parent / "keys.toml", {"ada": "", "root": "admin = true"})
    with opened_app(settings.model_copy(update={"keys_file": keys_file})) as app:
        client = app.test_client()
        for key, status in (("ada", 403), ("root", 202)):
            answer = client.post("/v1/models/fake/unload", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == status, answer.json
        assert (answer.json or {})["workers"] == []
