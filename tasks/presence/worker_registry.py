"""Which workers are ready for which model: workers send heartbeats, the web reads the registry.

Owns both and a short cache of the reader. Time is that of Redis: a worker whose clock is wrong counts as gone neither
too early nor too late.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import orjson
from redis import Redis, RedisError

from tasks import keys
from tasks.keys import Key
from tasks.periodic import PeriodicThread
from tasks.redis_failures import explain_failure, words_of
from tasks.scripts import Script, command

__all__ = ["WorkerHeartbeat", "WorkerInfo", "WorkerRegistry"]

_log = logging.getLogger(__name__)

_PERIOD_S = 1.0
_CACHE_S = 0.5


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Description of a worker, for one model.

    Attributes:
        worker_id: unique among all workers.
        host: name of its machine.
        pid: its process there.
        device: `cpu`, or a GPU's name.
        dtype: precision in which the model runs.
        fingerprint: what decides the numbers: weights, tokenizer, pooling, precision.
        tokens_per_s: measured speed of late; 0 when nothing was measured yet.
        healthy: whether its engine made a vector when it was last probed.
        backend: the code that runs the model: openvino, torch, packed, ...
        fallback: why it is not the backend that was wanted; empty where it is.
        call_target_ms: what a small call should take inside the worker at the 99th percentile.
        call_p99_ms: what calls did take, over the last minute; 0 without any.
        call_expected_ms: what a call beside a job can expect by what passes cost; 0 before the first.
        bulk: whether it takes chunks of jobs, besides calls.
    """

    worker_id: str
    host: str
    pid: int
    device: str
    dtype: str
    fingerprint: str
    tokens_per_s: float
    healthy: bool = True
    backend: str = ""
    fallback: str = ""
    call_target_ms: float = 0.0
    call_p99_ms: float = 0.0
    call_expected_ms: float = 0.0
    bulk: bool = True


class WorkerHeartbeatScript(Script):
    """Register a worker as ready for a model, for `ttl_ms`; `info` is JSON."""

    workers: Key
    infos: Key
    worker_id: str
    ttl_ms: int
    info: bytes


class ReadyWorkersScript(Script):
    """Read which workers are ready; for each model the key of its workers and that of what they are."""

    models: Sequence[Key]


class WorkerHeartbeat:
    """Sends the heartbeat of one worker every second, in a thread of its own, while it is healthy.

    Args:
        redis: a client with short timeouts, see `tasks.connections.connect`.
        worker_id: unique among all workers.
        describe: called each time; descriptions by model slug, empty while the worker is not ready.
        ttl_s: after how long without a heartbeat the worker counts as gone.
    """

    def __init__(
        self, redis: Redis, worker_id: str, describe: Callable[[], Mapping[str, WorkerInfo]], ttl_s: float
    ) -> None:
        self._redis = redis
        self._worker_id = worker_id
        self._describe = describe
        self._ttl_ms = int(ttl_s * 1000)
        self._registered: set[str] = set()
        self._lock = threading.Lock()
        self._thread = PeriodicThread(self.beat, _PERIOD_S, "heartbeat")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and leave the registry. Safe to call twice."""
        self._thread.stop(2 * _PERIOD_S + 1)
        try:
            self._send({})
        except RedisError:
            _log.debug("the worker stays registered until its heartbeat expires")

    def beat(self) -> None:
        """Send a heartbeat now: a model was loaded or unloaded.

        Raises:
            redis.RedisError: the server does not answer.
        """
        with self._lock:
            self._send(self._describe())

    def _send(self, described: Mapping[str, WorkerInfo]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for model, info in described.items():
            call = WorkerHeartbeatScript(
                keys.lane_workers(model),
                keys.worker_info(model),
                self._worker_id,
                self._ttl_ms,
                orjson.dumps(asdict(info)),
            )
            pipeline.execute_command(*command(call))  # type: ignore[no-untyped-call]
        for model in self._registered - described.keys():
            pipeline.zrem(keys.lane_workers(model), self._worker_id)
            pipeline.hdel(keys.worker_info(model), self._worker_id)
        pipeline.execute()
        self._registered = set(described)


class WorkerRegistry:
    """The ready workers. Thread-safe; answers are at most half a second old.

    Args:
        redis: a client with short timeouts.
        models: slugs of the models to look for.
    """

    def __init__(self, redis: Redis, models: Iterable[str]) -> None:
        self._redis = redis
        self._models = tuple(dict.fromkeys(models))
        self._lock = threading.Lock()
        self._read_at_s = float("-inf")
        self._ready: dict[str, list[WorkerInfo]] = {}

    def ready_models(self) -> dict[str, list[WorkerInfo]]:
        """Return the ready workers by model slug; a model without one is left out.

        Raises:
            tasks.errors.StoreUnavailable: Redis does not answer, or refuses.
        """
        with self._lock:
            if time.monotonic() - self._read_at_s > _CACHE_S:
                self._ready = self._read()
                self._read_at_s = time.monotonic()
            return dict(self._ready)

    def speed(self, model: str) -> float:
        """Return the tokens per second that the ready workers of a model (a slug) announce, in sum.

        Raises:
            tasks.errors.StoreUnavailable: Redis does not answer, or refuses.
        """
        return sum(info.tokens_per_s for info in self.ready_models().get(model, ()))

    def _read(self) -> dict[str, list[WorkerInfo]]:
        names = [name for model in self._models for name in (keys.lane_workers(model), keys.worker_info(model))]
        try:
            answer: list[list[bytes]] = self._redis.execute_command(*command(ReadyWorkersScript(names)))  # type: ignore[no-untyped-call]
        except RedisError as error:
            _log.debug("the registry of workers cannot be read: %s", words_of(error))
            raise explain_failure(error) from error
        found = {model: [_read_info(line) for line in lines] for model, lines in zip(self._models, answer, strict=True)}
        return {model: workers for model, workers in found.items() if workers}


def _read_info(line: bytes) -> WorkerInfo:
    # A newer worker may send more fields than this process knows.
    known = orjson.loads(line)
    return WorkerInfo(**{field.name: known[field.name] for field in fields(WorkerInfo) if field.name in known})
