"""All workers, the lost ones of the last day too: what each says of itself, its last heartbeat, what it is asked to do.

Owns the cards of workers, the notes of launchers on how workers ended, and the orders to workers. Which workers are
ready for calls is `tasks.presence.worker_registry`; what is wrong with one is `tasks.presence.diagnosis`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, cast

import orjson
from redis import Redis

from tasks import keys
from tasks.keys import Key
from tasks.scripts import Script, command

__all__ = ["Fleet", "FleetMember", "Order", "WorkerCard", "WorkerEnd", "send_card"]

_KEEP_MS = 86_400_000
Order = Literal["", "drain", "restart"]


@dataclass(frozen=True, slots=True)
class WorkerCard:
    """What a worker says of itself, every second from its start on.

    Attributes:
        worker_id: unique among all workers: `slot#pid`.
        host: name of its machine.
        pid: its process there.
        device: the device's name.
        state: `loading`, `ready`, `draining` (finishes what it holds, takes nothing new) or `stopped` (left in order).
        reason: why it drains or stops, where somebody or something had it do so.
        models: what became of each model: `loading`, `ready` or `failed`, by slug.
        started_at: seconds since the epoch.
        tokens_per_s: tokens of the last seconds.
        usual_tokens_per_s: speed while it computes.
        busy: share of the last seconds in which the device computed, 0 to 1.
        passes: passes since the start.
        pass_s, slowest_pass_s: for how long the current pass runs, 0 without one; the longest one so far.
        waiting_tokens: what waits inside the worker.
        memory_bytes, memory_total_bytes: of the process; of its machine or its container.
        memory_ready_bytes: what the process took when it had become ready.
        memory_limit_bytes: above this it is recycled; 0: never.
        device_memory_bytes, device_memory_total_bytes: of a GPU, by all its processes; 0 on a CPU.
    """

    worker_id: str
    host: str
    pid: int
    device: str = ""
    state: Literal["loading", "ready", "draining", "stopped"] = "loading"
    reason: str = ""
    models: Mapping[str, str] = field(default_factory=dict)
    started_at: float = 0.0
    tokens_per_s: float = 0.0
    usual_tokens_per_s: float = 0.0
    busy: float = 0.0
    passes: int = 0
    pass_s: float = 0.0
    slowest_pass_s: float = 0.0
    waiting_tokens: int = 0
    memory_bytes: int = 0
    memory_total_bytes: int = 0
    memory_ready_bytes: int = 0
    memory_limit_bytes: int = 0
    device_memory_bytes: int = 0
    device_memory_total_bytes: int = 0

    @property
    def slot(self) -> str:
        """The place in the fleet that the worker fills: a restart changes the process, not the slot."""
        return self.worker_id.partition("#")[0]


@dataclass(frozen=True, slots=True)
class WorkerEnd:
    """How a worker ended: when (seconds since the epoch), and by what, in words."""

    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class FleetMember:
    """A worker as others see it.

    Attributes:
        card: what it said last.
        silent_s: seconds since then, by the clock of Redis.
        end: how its process ended, if its launcher saw that.
        order: what it is asked to do.
        restarts: the ends of the processes before it in its slot, the newest first.
    """

    card: WorkerCard
    silent_s: float
    end: WorkerEnd | None = None
    order: Order = ""
    restarts: Sequence[WorkerEnd] = ()


class WorkerCardScript(Script):
    """Keep a worker's card; `card` is JSON."""

    cards: Key
    seen: Key
    ends: Key
    orders: Key
    worker_id: str
    keep_ms: int
    card: bytes


def send_card(redis: Redis, card: WorkerCard) -> Order:
    """Send what a worker says of itself; return what it is asked to do.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    names = keys.worker_cards(), keys.workers_seen(), keys.worker_ends(), keys.worker_orders()
    call = WorkerCardScript(*names, card.worker_id, _KEEP_MS, orjson.dumps(asdict(card)))
    answer: bytes = redis.execute_command(*command(call))  # type: ignore[no-untyped-call]
    return cast("Order", answer.decode())


class Fleet:
    """Reads the workers of the last day, and asks them to do things. Thread-safe.

    All methods raise `redis.RedisError` when Redis does not answer.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def members(self) -> list[FleetMember]:
        """Return the workers that live, and those of the last day that no other process in their slot has replaced."""
        pipeline = self._redis.pipeline(transaction=False)
        for name in (keys.worker_cards(), keys.worker_ends(), keys.worker_orders()):
            pipeline.hgetall(name)
        pipeline.zrange(keys.workers_seen(), 0, -1, withscores=True)
        pipeline.time()
        cards, ends, orders, seen, (seconds, micros) = pipeline.execute()
        now_s = seconds + micros / 1e6
        read = [
            FleetMember(
                card=_read_card(cards[name]),
                silent_s=max(0.0, now_s - at_ms / 1000),
                end=WorkerEnd(**orjson.loads(ends[name])) if name in ends else None,
                order=orders.get(name, b"").decode(),
            )
            for name, at_ms in seen
            if name in cards
        ]
        return _by_slot(read)

    def order(self, worker_id: str, order: Order) -> bool:
        """Ask a worker to drain or to restart; return whether there is such a worker."""
        if not self._redis.hexists(keys.worker_cards(), worker_id):
            return False
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hset(keys.worker_orders(), worker_id, order)
        pipeline.pexpire(keys.worker_orders(), _KEEP_MS)
        pipeline.execute()
        return True

    def note_end(self, worker_id: str, end: WorkerEnd) -> None:
        """Note how a worker's process ended."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hset(keys.worker_ends(), worker_id, orjson.dumps(asdict(end)))
        pipeline.pexpire(keys.worker_ends(), _KEEP_MS)
        pipeline.execute()


def _by_slot(members: Sequence[FleetMember]) -> list[FleetMember]:
    """Return the newest worker of each slot, with the ends of those before it."""
    slots: dict[str, list[FleetMember]] = {}
    for member in sorted(members, key=lambda one: one.card.started_at, reverse=True):
        slots.setdefault(member.card.slot, []).append(member)
    newest = [_with_restarts(processes) for processes in slots.values()]
    return sorted(newest, key=lambda one: (one.card.host, one.card.slot))


def _with_restarts(processes: Sequence[FleetMember]) -> FleetMember:
    first, *before = processes
    ends = [one.end or WorkerEnd(one.card.started_at, one.card.reason or "ended") for one in before]
    return FleetMember(first.card, first.silent_s, first.end, first.order, ends)


def _read_card(line: bytes) -> WorkerCard:
    # A newer worker may send more fields than this process knows.
    known: dict[str, Any] = orjson.loads(line)
    return WorkerCard(**{one.name: known[one.name] for one in fields(WorkerCard) if one.name in known})
