"""What an admin wants of models while workers run: load, unload, reload; for all workers or one.

Owns the record of these orders in Redis, where a worker finds them that starts later or was away. Workers follow them
(`workers.model_control`) and say so in their reports (`model_states`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import orjson
from redis import Redis

from tasks import keys

__all__ = ["Action", "ModelOrder", "ModelOrders", "stable_name"]

Action = Literal["load", "unload", "reload"]
_LAST = "last"


@dataclass(frozen=True, slots=True)
class ModelOrder:
    """One order.

    Attributes:
        id: later orders have larger ones.
        model: name of the card.
        action: what to do. A model that was loaded or unloaded by an order stays so when a worker starts again.
        worker: the worker that it is for, as `stable_name` gives it; empty: all.
    """

    id: int
    model: str
    action: Action
    worker: str = ""


class ModelOrders:
    """Records orders and reads them. Methods raise `redis.RedisError` when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def give(self, model: str, action: Action, worker: str = "") -> ModelOrder:
        """Record an order; one for all workers replaces those for single ones."""
        number = int(self._redis.hincrby(keys.model_orders(), _LAST, 1))
        order = ModelOrder(number, model, action, worker)
        line = orjson.dumps({"id": number, "model": model, "action": action, "worker": worker})
        before = [] if worker else [one for one in self.read() if one.worker and _replaces(order, one)]
        pipeline = self._redis.pipeline()
        pipeline.hset(keys.model_orders(), _field(order), line)
        if before:
            pipeline.hdel(keys.model_orders(), *map(_field, before))
        pipeline.execute()
        return order

    def read(self) -> Sequence[ModelOrder]:
        """Return all orders that hold, the earlier ones first."""
        lines = self._redis.hgetall(keys.model_orders())
        orders = [ModelOrder(**orjson.loads(line)) for name, line in lines.items() if name != _LAST.encode()]
        # A newer version may know more actions.
        return sorted((order for order in orders if order.action in get_args(Action)), key=lambda order: order.id)

    def read_for(self, worker: str) -> Sequence[ModelOrder]:
        """Return the last orders that this worker has to follow: for each model one on its state, one to reload."""
        last = {(order.model, order.action == "reload"): order for order in self.read() if order.worker in {"", worker}}
        return sorted(last.values(), key=lambda order: order.id)


def stable_name(worker_id: str) -> str:
    """Return the name that a worker keeps over restarts: `gpu0@host` for `gpu0.4711@host#4712`."""
    return re.sub(r"(\.\d+)?@", "@", worker_id.partition("#")[0], count=1)


def _replaces(order: ModelOrder, before: ModelOrder) -> bool:
    same = (order.model, order.action == "reload") == (before.model, before.action == "reload")
    return same and order.id > before.id


def _field(order: ModelOrder) -> str:
    # An order to reload says nothing of whether the model is to be loaded when a worker starts.
    kind = "reload" if order.action == "reload" else "state"
    return f"{order.model} {kind} {order.worker}"
