"""What this worker takes work from while models come and go: lists of calls, queues of chunks, the registry.

Owns which models are served now and which are announced, and the order in which that changes, so that no call is
refused or lost by it. Loads nothing (`workers.loading`).
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from redis import Redis, RedisError

from config.catalog import ModelCard
from tasks import keys
from tasks.celery import bulk_queue
from tasks.lanes import Lane, Service
from tasks.presence.worker_registry import WorkerInfo

__all__ = ["QueueFollower", "ServedLanes", "select_queues"]

# How long calls that came before the worker withdrew may take to be taken off their list.
_EMPTY_S = 2.0
_POLL_S = 0.05


class ServedLanes:
    """See `workers.loading.Lanes`. Changed by one thread, read by many.

    Args:
        redis: a client with short timeouts.
        describe: what the registry says of a model (name of the card); None: not ready.

    Attributes:
        cards: of the models that are served. The same list for ever: who takes calls looks at it before each trip.
        on_open, on_close: called with the bulk lane of a model that is served, or served no more.
        announce: called when the registry has to be brought up to date.
    """

    def __init__(self, redis: Redis, describe: Callable[[str], WorkerInfo | None]) -> None:
        self._redis, self._describe = redis, describe
        self.cards: list[ModelCard] = []
        self.on_open: Callable[[Lane], None] = lambda _: None
        self.on_close: Callable[[Lane], None] = lambda _: None
        self.announce: Callable[[], None] = lambda: None
        self._announced: dict[str, ModelCard] = {}
        # What was said last of each model: it holds while the model is replaced and calls wait for it.
        self._said: dict[str, WorkerInfo] = {}
        self._held: set[str] = set()

    def serves(self, slug: str) -> bool:
        """Return whether work for this model is taken now."""
        return any(card.slug == slug for card in self.cards)

    def open(self, card: ModelCard) -> None:
        """See `Lanes.open`."""
        self._held.discard(card.name)
        self._announced[card.name] = card
        if not self.serves(card.slug):
            self.cards.append(card)
            self.on_open(Lane(card.slug, Service.BULK))
        self._announce()

    def close(self, card: ModelCard, *, refuse: bool) -> None:
        """See `Lanes.close`."""
        if refuse:
            self._announced.pop(card.name, None)
            self._held.discard(card.name)
            self._announce()
            self._await_empty(card)
        else:
            self._held.add(card.name)
        if self.serves(card.slug):
            self.cards[:] = [one for one in self.cards if one.slug != card.slug]
            self.on_close(Lane(card.slug, Service.BULK))

    def describe(self) -> Mapping[str, WorkerInfo]:
        """Return what the registry is to say, by model slug."""
        found = {}
        for name, card in list(self._announced.items()):
            info = self._said.get(name) if name in self._held else self._describe(name)
            if info is not None:
                found[card.slug] = self._said[name] = info
        return found

    def _announce(self) -> None:
        # The heartbeat says it again within a second.
        with suppress(RedisError):
            self.announce()

    def _await_empty(self, card: ModelCard) -> None:
        lists = [keys.lane_requests(Lane(card.slug, service)) for service in Service]
        until_s = time.monotonic() + _EMPTY_S
        with suppress(RedisError):
            while self.serves(card.slug) and self._redis.exists(*lists) and time.monotonic() < until_s:
                time.sleep(_POLL_S)


def select_queues(app: Any, cards: Iterable[ModelCard]) -> None:
    """Let a worker's consumer, which has not started, take the chunks of these models and no others."""
    queues, wanted = app.amqp.queues, [bulk_queue(Lane(card.slug, Service.BULK)) for card in cards]
    for queue in wanted:
        queues.add(queue)
    names = {queue.name for queue in wanted}
    queues.deselect([name for name in queues if name not in names])


class QueueFollower:
    """Lets Celery's consumer take the chunks of models while they are loaded.

    Args:
        worker: Celery's worker, whose consumer is changed by its own thread.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def take(self, lane: Lane) -> None:
        """Take the chunks of a lane from now on."""
        consumer = self._worker.consumer
        consumer.call_soon(self._take, consumer, lane)

    def leave(self, lane: Lane) -> None:
        """Take no more chunks of a lane."""
        consumer = self._worker.consumer
        consumer.call_soon(consumer.cancel_task_queue, lane.queue)

    def leave_all(self) -> None:
        """Take no more chunks; those that the worker has are worked off."""
        consumer = self._worker.consumer
        for queue in list(consumer.app.amqp.queues.consume_from):
            consumer.call_soon(consumer.cancel_task_queue, queue)

    @staticmethod
    def _take(consumer: Any, lane: Lane) -> None:
        queues = consumer.app.amqp.queues
        if lane.queue not in queues:
            queues.add(bulk_queue(lane))
        consumer.add_task_queue(lane.queue)
