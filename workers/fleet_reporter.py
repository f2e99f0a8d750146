"""What a worker says of itself every second, and what it does when it is asked to drain or to restart, or has grown.

Owns the worker's card and the limits of its memory. A worker that is above one of them ends in order and its launcher
starts a fresh one: what it holds is finished first, so nothing is lost. How cards travel is `tasks.presence.fleet`.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import psutil
from redis import Redis, RedisError

from config.settings import Settings
from tasks.periodic import PeriodicThread
from tasks.presence.fleet import WorkerCard, send_card

__all__ = ["FleetReporter", "MeasuredEngine"]

_log = logging.getLogger(__name__)

_PERIOD_S = 1.0
# Speed and busy share are those of about so many seconds.
_SMOOTHED_S = 5.0


class MeasuredEngine(Protocol):
    """What the reporter reads of an engine."""

    def stats(self) -> Mapping[str, float]:
        """Return its counters."""
        ...


class FleetReporter:
    """Sends the card of one worker in a thread of its own, from the start of loading to the end of the process.

    Args:
        redis: a client that gives up quickly.
        worker_id: unique among all workers.
        models: called each time; the state of each model by slug.
        settings: the limits of memory.
    """

    def __init__(
        self, redis: Redis, worker_id: str, models: Callable[[], Mapping[str, str]], settings: Settings
    ) -> None:
        self._redis, self._models = redis, models
        self._limit_bytes, self._device_limit_bytes = settings.worker_max_memory_bytes, settings.worker_max_device_bytes
        self._process = psutil.Process()
        self._card = WorkerCard(
            worker_id=worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_at=time.time(),
            memory_total_bytes=psutil.virtual_memory().total,
            memory_limit_bytes=self._limit_bytes,
        )
        self._engine: MeasuredEngine | None = None
        self._drain: Callable[[], None] = lambda: None
        self._ending = False
        self._counted = (time.monotonic(), 0.0, 0.0)
        self._thread = PeriodicThread(self.report, _PERIOD_S, "fleet-reporter")
        self._thread.start()

    def serve(self, engine: MeasuredEngine, device: str, drain: Callable[[], None]) -> None:
        """Report as ready from now on; `drain` has the worker take nothing new."""
        stats = engine.stats()
        self._counted = (time.monotonic(), stats["tokens"], stats["busy_s"])
        self._engine, self._drain = engine, drain
        self._card = replace(self._card, state="ready", device=device)

    def stop(self) -> None:
        """Say that this worker leaves in order, and end the thread. Safe to call twice."""
        self._thread.stop(2 * _PERIOD_S + 1)
        self._card = replace(self._card, state="stopped", tokens_per_s=0.0, busy=0.0)
        with suppress(RedisError):
            send_card(self._redis, self._card)

    def report(self) -> None:
        """Measure, say so, and do what is asked or has become necessary.

        Raises:
            redis.RedisError: the server does not answer.
        """
        self._card = card = self._measure()
        order = send_card(self._redis, card)
        if card.state == "loading" or self._thread.stopping:
            return
        # One that was above it from the start would restart for ever.
        if card.memory_ready_bytes <= self._limit_bytes < card.memory_bytes and self._limit_bytes:
            self._restart(_over("memory", card.memory_bytes, self._limit_bytes))
        elif 0 < self._device_limit_bytes < card.device_memory_bytes:
            self._restart(_over("device memory", card.device_memory_bytes, self._device_limit_bytes))
        elif order == "restart":
            self._restart("an operator asked for a restart")
        elif order == "drain" and card.state == "ready":
            self._leave("an operator asked for it to be drained")
            self._drain()

    def _restart(self, reason: str) -> None:
        if not self._ending:
            self._ending = True
            self._leave(reason)
            # As when its launcher stops it: what is held is finished, then the process ends.
            os.kill(os.getpid(), signal.SIGTERM)

    def _leave(self, reason: str) -> None:
        _log.warning("worker %s drains: %s", self._card.worker_id, reason)
        self._card = replace(self._card, state="draining", reason=reason)

    def _measure(self) -> WorkerCard:
        models = self._models()
        memory_bytes = self._process.memory_info().rss
        used_bytes, total_bytes = _device_memory()
        card = replace(
            self._card,
            memory_bytes=memory_bytes,
            device_memory_bytes=used_bytes,
            device_memory_total_bytes=total_bytes,
        )
        if self._engine is not None:
            card = self._read_engine(card, self._engine.stats())
            # A model that was loaded since takes memory, which is no growth.
            if card.memory_ready_bytes == 0 or models != card.models:
                card = replace(card, memory_ready_bytes=memory_bytes)
        return replace(card, models=models)

    def _read_engine(self, card: WorkerCard, stats: Mapping[str, float]) -> WorkerCard:
        then_s, tokens, busy_s = self._counted
        now_s = time.monotonic()
        passed_s = max(now_s - then_s, 1e-3)
        self._counted = (now_s, stats["tokens"], stats["busy_s"])
        newest = min(1.0, passed_s / _SMOOTHED_S)
        speed, busy = (stats["tokens"] - tokens) / passed_s, min(1.0, (stats["busy_s"] - busy_s) / passed_s)
        return replace(
            card,
            tokens_per_s=card.tokens_per_s + newest * (speed - card.tokens_per_s),
            busy=card.busy + newest * (busy - card.busy),
            usual_tokens_per_s=stats["tokens_per_s"],
            passes=int(stats["passes"]),
            pass_s=stats["pass_s"],
            slowest_pass_s=max(card.slowest_pass_s, stats["last_pass_ms"] / 1000),
            waiting_tokens=int(stats["interactive_tokens"] + stats["bulk_tokens"]),
        )


def _device_memory() -> tuple[int, int]:
    """Return what is used of the GPU's memory, and all of it; zeros without one."""
    # Of a GPU's memory only torch can tell. It is not imported for that, and another thread may be about to import it.
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_available() or not cuda.is_initialized():
        return 0, 0
    free_bytes, total_bytes = cuda.mem_get_info()
    return total_bytes - free_bytes, total_bytes


def _over(what: str, size_bytes: int, limit_bytes: int) -> str:
    return f"its {what} of {size_bytes / 1e9:.1f} GB is above the limit of {limit_bytes / 1e9:.1f} GB"
