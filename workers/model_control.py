"""Follows what admins order of models, and what calls and jobs need, while the worker serves.

Owns the thread that looks once a second, and the rule which worker loads a model that is wanted. `workers.loading`
loads it.
"""

import logging
from collections.abc import Sequence

from redis import Redis, RedisError

from config.catalog import Catalog, ModelCard
from config.settings import Settings
from tasks import keys
from tasks.lanes import Lane, Service
from tasks.periodic import PeriodicThread
from tasks.presence.model_orders import ModelOrder, ModelOrders
from tasks.presence.model_states import ModelReports
from tasks.redis_failures import explain_failure, words_of
from workers.loading import ModelSet
from workers.reporting import ModelReporting

__all__ = ["ModelControl", "fits"]

_log = logging.getLogger(__name__)

_PERIOD_S = 0.5
_STOP_S = 1.0
# A model whose loading failed is not loaded for a caller before so long.
_PAUSE_S = 60.0
# Workers see in a second what others load; until then this key keeps them from loading the same.
_CLAIM_S = 5
_ORDERED = "an admin unloaded it"


class ModelControl:
    """See the module. Orders from before the worker's start are known by `wanted()`, later ones are followed.

    Args:
        redis: a client that gives up quickly.
        settings: whether models are loaded on demand.
        catalog: the models that orders may name.
        models: what is loaded and unloaded.
        reports: where it is said which orders were followed.
    """

    def __init__(
        self, redis: Redis, settings: Settings, catalog: Catalog, models: ModelSet, reports: ModelReporting
    ) -> None:
        self._redis, self._settings, self._catalog = redis, settings, catalog
        self._models, self._reports = models, reports
        self._orders, self._others = ModelOrders(redis), ModelReports(redis)
        # The last order that was followed, of each kind and model.
        self._followed: dict[tuple[str, bool], int] = {}
        self._thread = PeriodicThread(self.run_once, _PERIOD_S, "model-control")

    def wanted(self) -> list[str]:
        """Set up what this worker has to serve, by settings and orders; return the names of what is to be loaded."""
        wanted: list[str] = []
        for served in self._catalog.served:
            if fits(served, self._reports.worker):
                self._models.add(served, named=True)
                wanted.append(served.name)
        for order in self._read_orders():
            card = self._set_up(order)
            if card is not None and order.action == "load" and card.name not in wanted:
                wanted.append(card.name)
            elif card is not None and order.action == "unload":
                wanted = [name for name in wanted if name != card.name]
                _log.warning("%s is set up and not loaded: %s by order %d", card.name, _ORDERED, order.id)
                self._reports.note(card.name, reason=_ORDERED)
            self._followed[_subject(order)] = order.id
            if card is not None:
                self._reports.note(card.name, order=order.id)
        return wanted

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let no more models come and go. Safe to call twice."""
        self._thread.stop(_STOP_S)

    def _read_orders(self) -> Sequence[ModelOrder]:
        try:
            return self._orders.read_for(self._reports.worker)
        except RedisError as error:
            _log.warning("orders of admins are followed later, %s: %s", explain_failure(error).message, words_of(error))
            return []

    def run_once(self) -> None:
        """Follow new orders, load what is wanted, unload what is idle.

        Raises:
            redis.RedisError: the server does not answer.
        """
        for order in self._orders.read_for(self._reports.worker):
            if order.id > self._followed.get(_subject(order), 0) and not self._thread.stopping:
                self._followed[_subject(order)] = order.id
                self._follow(order)
        if self._settings.load_on_demand:
            for card in self._find_wanted():
                self._models.load(card.name)
        self._models.drop_idle()

    def _follow(self, order: ModelOrder) -> None:
        card = self._set_up(order)
        if card is None:
            return
        _log.info("order %d: %s %s", order.id, order.action, card.name)
        if order.action == "load":
            self._models.load(card.name)
        elif order.action == "unload":
            self._models.unload(card.name, _ORDERED)
        elif self._models.state(card.name).state != "unloaded":
            self._models.reload(card.name)
        self._reports.note(card.name, order=order.id)

    def _set_up(self, order: ModelOrder) -> ModelCard | None:
        """Return the card that an order names, if it is for a model of this worker or makes it one."""
        card = self._catalog.find(order.model)
        if card is None and order.action == "load":
            _log.warning("order %d: the catalogue of this worker has no model %s", order.id, order.model)
        if card is None or card.name in {one.name for one in self._models.cards}:
            return card
        if order.action != "load" or not fits(card, self._reports.worker):
            return None
        self._models.add(card)
        return card

    def _find_wanted(self) -> list[ModelCard]:
        """Return the models that somebody waits for, and that no other worker has or loads."""
        states = {card.name: self._models.state(card.name) for card in self._models.cards}
        asleep = [card for card in self._models.cards if _may_wake(states[card.name].state, states[card.name].since_s)]
        found = []
        for card in asleep:
            lane = Lane(card.slug, Service.BULK)
            signs = keys.model_wanted(card.slug), keys.lane_ready(lane), keys.lane_inflight(lane)
            if self._redis.exists(*signs) and not self._others_have(card) and self._claim(card):
                found.append(card)
        return found

    def _others_have(self, card: ModelCard) -> bool:
        return any(report.state in {"loading", "ready"} for report in self._others.of(card.slug))

    def _claim(self, card: ModelCard) -> bool:
        return bool(self._redis.set(keys.model_loader(card.slug), self._reports.worker, nx=True, ex=_CLAIM_S))


def _subject(order: ModelOrder) -> tuple[str, bool]:
    return order.model, order.action == "reload"


def _may_wake(state: str, since_s: float) -> bool:
    return state == "unloaded" or (state == "failed" and since_s > _PAUSE_S)


def fits(card: ModelCard, worker: str) -> bool:
    """Return whether a card is for this worker (`gpu0@host`): `devices` may name it, or its part before the @."""
    return not card.devices or not {worker, worker.partition("@")[0]}.isdisjoint(card.devices)
