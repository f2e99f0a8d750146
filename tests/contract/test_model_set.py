"""Which models of a worker stay when memory is short, and which leave when nobody uses them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis

from config.catalog import Catalog, ModelCard
from config.settings import Settings
from tasks import keys
from tasks.engine import Work
from tasks.errors import ConfigError, NoWorker
from tasks.lanes import Lane, Service
from tasks.presence.model_orders import ModelOrders, stable_name
from tasks.presence.model_states import ModelReports
from tests.support.fakes import fake_card
from workers.engine import DeviceEngine
from workers.loading import ModelSet
from workers.model_control import ModelControl
from workers.reporting import ModelReporting

# Far above what the process grows by while a fake model is loaded.
MB = 10**9
WORKER = "gpu0.1@here#2"


class RecordedLanes:
    """Notes which lanes are open."""

    def __init__(self) -> None:
        self.open_now: list[str] = []

    def open(self, card: ModelCard) -> None:
        self.open_now.append(card.name)

    def close(self, card: ModelCard, *, refuse: bool) -> None:
        if card.name in self.open_now:
            self.open_now.remove(card.name)


class Worker:
    """The models of a worker, without its lanes."""

    def __init__(self, redis: Redis, settings: Settings, *cards: ModelCard, known: tuple[ModelCard, ...] = ()) -> None:
        self.settings = settings.model_copy(update={"models": tuple(card.name for card in cards)})
        self.engine = DeviceEngine(self.settings, {})
        self.lanes, self.reports = RecordedLanes(), ModelReporting(redis, WORKER, self.settings)
        self.models = ModelSet(self.settings, self.engine, self.lanes, self.reports)
        catalog = Catalog([*cards, *known], self.settings.models)
        self.control = ModelControl(redis, self.settings, catalog, self.models, self.reports)
        self.reports.start(self.engine.well_models, self.engine.idle_s)

    def start(self) -> None:
        self.models.start(self.control.wanted())

    def use(self, name: str) -> None:
        self.engine.submit(Work(name, "embeddings", ["a text"])).result(10)

    def close(self) -> None:
        self.reports.stop()
        self.engine.close()


Build = Callable[..., Worker]


@pytest.fixture
def build(redis: Redis, settings: Settings) -> Iterator[Build]:
    built: list[Worker] = []

    def build(*cards: ModelCard, known: tuple[ModelCard, ...] = (), start: bool = True, **fields: Any) -> Worker:
        built.append(Worker(redis, settings.model_copy(update=fields), *cards, known=known))
        if start:
            built[-1].start()
        return built[-1]

    yield build
    for worker in built:
        worker.close()


def card(name: str, memory: int = 1, **fields: Any) -> ModelCard:
    return fake_card(name, knobs={"memory_bytes": memory * MB}, **fields)


def test_the_least_recently_used_leaves_when_memory_is_short(build: Build) -> None:
    worker = build(card("a"), card("b"), card("c"), pinned_models=("none",), model_memory=int(2.5 * MB))
    assert worker.models.loaded == ["a", "b"]
    assert "TWOLANE_MODEL_MEMORY is 2,500 MB" in worker.models.state("c").reason
    worker.use("b")
    worker.use("a")
    worker.models.load("c")
    assert sorted(worker.models.loaded) == sorted(worker.lanes.open_now) == ["a", "c"]
    assert worker.models.state("b").reason == "it made room for c"
    with pytest.raises(NoWorker):
        worker.use("b")
    worker.use("c")


def test_what_is_pinned_stays_and_what_has_no_room_is_refused_with_the_numbers(build: Build) -> None:
    worker = build(card("a"), card("b"), known=(card("c", 2),), pinned_models=("a",), model_memory=int(2.5 * MB))
    worker.control.run_once()
    ModelOrders(worker.control._redis).give("c", "load")
    worker.control.run_once()
    assert worker.models.loaded == ["a", "b"], "unloading b would not be enough"
    state = worker.models.state("c")
    assert (state.state, state.order) == ("failed", 1)
    assert "c takes 2,000 MB" in state.reason


def test_what_is_pinned_is_loaded_first_and_ends_the_worker_when_there_is_no_room_for_it(build: Build) -> None:
    worker = build(card("a"), card("b"), pinned_models=("b",), model_memory=int(1.5 * MB))
    assert worker.models.loaded == ["b"]
    with pytest.raises(ConfigError, match="TWOLANE_MODEL_MEMORY"):
        build(card("large", 9), model_memory=int(1.5 * MB))


def test_a_model_that_takes_more_than_was_thought_makes_room_afterwards(build: Build) -> None:
    worker = build(card("a"), card("b"), pinned_models=("none",), model_memory=int(2.5 * MB))
    worker.models._fetch = lambda card: 10 if card.name == "c" else MB  # type: ignore[method-assign]
    measured = worker.models._install

    def install(card: ModelCard, weights: int) -> None:
        measured(card, weights)
        worker.models._bytes[card.name] = MB

    worker.models._install = install  # type: ignore[method-assign]
    worker.models.add(card("c"))
    worker.use("a")
    worker.models.load("c")
    assert sorted(worker.models.loaded) == ["a", "c"]


def test_an_idle_model_is_unloaded_and_a_pinned_one_is_not(build: Build) -> None:
    worker = build(card("a"), card("b"), pinned_models=("a",), model_idle_s=0.001)
    worker.control.run_once()
    assert worker.models.loaded == ["a"]
    assert worker.models.state("b").reason == "no work came for 0 s"


def test_a_reload_beside_keeps_the_rows_that_wait_and_one_without_room_drains_first(build: Build) -> None:
    for limit in (0, int(1.5 * MB)):
        worker = build(card("a"), model_memory=limit)
        before = worker.engine.loaded("a")
        waiting = [worker.engine.submit(Work("a", "embeddings", [f"text {at}"])) for at in range(50)]
        worker.models.reload("a")
        assert all(future.result(10).values.shape == (1, 16) for future in waiting)
        assert worker.engine.loaded("a") is not before
        assert worker.lanes.open_now == ["a"]
        worker.use("a")


def test_a_wanted_model_is_loaded_by_one_worker_only_and_not_at_once_after_a_failure(
    build: Build, redis: Redis
) -> None:
    bad = card("bad").model_copy(update={"family": "auto", "source": "path:/nothing/here"})
    worker = build(card("a"), card("b"), bad, load_on_demand=True)
    assert worker.models.state("bad").state == "failed"
    worker.models.unload("b", "a test")
    worker.control.run_once()
    assert worker.models.loaded == ["a"], "nobody wants it"
    redis.set(keys.model_loader("b"), "another worker")
    redis.set(keys.model_wanted("b"), 1)
    redis.set(keys.model_wanted("bad"), 1)
    worker.control.run_once()
    assert worker.models.loaded == ["a"], "another worker loads it"
    redis.delete(keys.model_loader("b"), keys.model_wanted("b"))
    redis.zadd(keys.lane_ready(Lane("b", Service.BULK)), {"job": 1})
    worker.control.run_once()
    assert worker.models.loaded == ["a", "b"], "a job waits for it"
    assert not redis.exists(keys.model_loader("bad")), "it failed less than a minute ago"


def test_orders_for_one_worker_are_followed_by_that_one_and_for_all_replace_them(redis: Redis) -> None:
    orders = ModelOrders(redis)
    orders.give("a", "unload", "gpu0@here")
    orders.give("a", "reload", "gpu0@here")
    assert [order.action for order in orders.read_for("gpu0@here")] == ["unload", "reload"]
    assert orders.read_for("gpu1@here") == []
    last = orders.give("a", "load")
    assert [order.action for order in orders.read()] == ["reload", "load"]
    assert orders.read_for("gpu1@here") == [last]


@pytest.mark.parametrize(
    ("worker_id", "name"),
    [("gpu0.4711@host#4712", "gpu0@host"), ("worker-0@host#12", "worker-0@host"), ("cpu.7@a.b.c#8", "cpu@a.b.c")],
)
def test_a_worker_keeps_its_name_when_it_starts_again(worker_id: str, name: str) -> None:
    assert stable_name(worker_id) == name


def test_a_card_for_other_devices_is_left_to_them(build: Build, redis: Redis) -> None:
    here, there = card("here", devices=("gpu0",)), card("there", devices=("gpu1@here",))
    worker = build(here, there)
    assert worker.models.loaded == ["here"]
    ModelOrders(redis).give("there", "load")
    worker.control.run_once()
    assert worker.models.loaded == ["here"]
    assert ModelReports(redis).of("there") == []
