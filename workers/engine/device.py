"""The engine that a worker offers to its tasks: one device, the models on it, one queue in two classes.

Owns putting the parts together and the limits that follow from settings and device. The protocol, with its errors
and meanings, is `tasks.engine`.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from config.settings import Settings
from tasks.engine import NO_METER, Meter, Outcomes, Work
from tasks.errors import EngineClosed, NoWorker
from tasks.lanes import Service
from workers.engine.admission import admit_alike
from workers.engine.fair_share import FairShare
from workers.engine.loop import DeviceLoop
from workers.engine.pending import PendingWork
from workers.engine.queue import WorkQueue
from workers.engine.scheduler import Limits
from workers.engine.warmup import warm_up_steps
from workers.models.loaded import LoadedModel

__all__ = ["CallLatency", "DeviceEngine"]

# Defaults by device. Measured on CPUs: throughput is flat from 1,024 tokens per stream, and 9% lower with 512. Not
# measured on GPUs: half of what one would take, since two passes may run at once.
_CPU_BATCH_TOKENS, _CPU_STREAM_TOKENS, _GPU_BATCH_TOKENS = 2048, 1024, 32_768
_CPU_P99_MS, _GPU_P99_MS = 50.0, 20.0
# Bulk rows are sorted by length among so many passes' worth of tokens.
_WINDOW_PASSES = 32
_CLOSE_S = 10.0
_POLL_S = 0.02
_LEAST_RETRY_S, _MOST_RETRY_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class CallLatency:
    """Milliseconds of small calls inside a worker.

    Attributes:
        target_ms: what they should take at the 99th percentile.
        p99_ms: what they did take, over the last minute; 0 without any.
        expected_ms: what a call beside a job can expect by what passes cost; 0 before the first.
    """

    target_ms: float
    p99_ms: float
    expected_ms: float


class DeviceEngine:
    """See `tasks.engine.Engine`. Thread-safe; also a context manager that closes itself."""

    def __init__(
        self, settings: Settings, models: Mapping[str, LoadedModel], *, on_cpu: bool = True, meter: Meter = NO_METER
    ) -> None:
        """Start the device's thread for the loaded models, by card name.

        Args:
            settings: limits and times.
            models: what is served.
            on_cpu: counts while there are no models.
            meter: takes what passes show.
        """
        self._meter = meter
        # What serves each name. One that was replaced is still in the loops until its rows are computed.
        self._models = dict(models)
        self._lock = threading.Lock()
        self._open = Counter[str]()
        self._used_s = dict.fromkeys(models, time.monotonic())
        self._settings = settings
        self._limits = _limits(settings, models, on_cpu=on_cpu)
        window_tokens = _WINDOW_PASSES * self._limits.batch_tokens
        self._queue = WorkQueue(settings.engine_max_tokens, window_tokens, short_first=settings.lanes)
        self._fair_share = FairShare(settings.bulk_min_share, self._limits.pass_ms / 1000)
        # One thread for the device, and a second for the interactive rows of models with a latency stream.
        self._loops: tuple[DeviceLoop, ...] = (
            self._start_loop({model.key: model for model in models.values()}, interactive_only=False),
        )
        for model in models.values():
            self._add_stream(model)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, work: Work) -> Future[Outcomes]:
        """See `tasks.engine.Engine.submit`. Tokenizes in the calling thread.

        Raises:
            tasks.errors.NoWorker: the model is not loaded here, or not the one whose fingerprint the work asks for.
            tasks.errors.WrongCapability: the model cannot do the operation.
            tasks.errors.InvalidRequest: the work contradicts itself or the model.
            tasks.errors.LaneFull: more tokens of this class wait than `Settings.engine_max_tokens`.
            tasks.errors.EngineClosed: the worker is going away.
        """
        (taken,) = self._submit([work])
        if isinstance(taken, Exception):
            raise taken
        return taken

    def submit_all(self, works: Sequence[Work]) -> list[Future[Outcomes]]:
        """See `tasks.engine.Engine.submit_all`. Texts of works with equal params are tokenized in one go."""
        places = defaultdict[object, list[int]](list)
        for place, work in enumerate(works):
            alike = work.operation == "embeddings"
            places[work.model, work.fingerprint, work.params, None if alike else place].append(place)
        futures: dict[int, Future[Outcomes]] = {}
        for group in places.values():
            for place, taken in zip(group, self._submit([works[at] for at in group]), strict=True):
                futures[place] = _failed(taken) if isinstance(taken, Exception) else taken
        return [futures[place] for place in range(len(works))]

    def _submit(self, works: Sequence[Work]) -> list[Future[Outcomes] | Exception]:
        """Submit works of equal model, operation and params; return the future of each, or why it was not taken."""
        if not self._settings.lanes:
            works = [replace(work, service=Service.BULK) for work in works]
        try:
            model = self._hold(works[0], len(works))
        except (EngineClosed, NoWorker) as error:
            return [error] * len(works)
        try:
            requests = admit_alike(works, model)
        except Exception as error:  # noqa: BLE001 - an edge: it goes to who asked
            self._let_go(model, len(works))
            return [error] if len(works) == 1 else [self._submit([work])[0] for work in works]
        return self._queue_up(requests, model)

    def _queue_up(self, requests: Sequence[PendingWork], model: LoadedModel) -> list[Future[Outcomes] | Exception]:
        filled = [request for request in requests if request.rows]
        refused = dict(zip(filled, self._queue.put_all(filled, self._retry_after_s), strict=True))
        taken: list[Future[Outcomes] | Exception] = []
        for request in requests:
            error = refused.get(request)
            if error is None:
                request.future.add_done_callback(lambda _: self._let_go(model))
                if not request.rows:
                    request.finish_if_complete()
            else:
                self._let_go(model)
            taken.append(error or request.future)
        return taken

    def loaded(self, model: str) -> LoadedModel | None:
        """Return a model as it is loaded now; None: it is not."""
        return self._models.get(model)

    def idle_s(self, model: str) -> float:
        """Return how long ago work came for a model, or since when it is loaded."""
        return time.monotonic() - self._used_s.get(model, 0.0)

    def warm_up(self) -> dict[str, Exception]:
        """Run every model at the shapes that will come, and return the errors of those that cannot make a vector."""
        failed: dict[str, Exception] = {}
        for name, model in self._models.copy().items():
            try:
                self._warm_up(model)
            except Exception as error:  # noqa: BLE001 - the edge of one model; the caller decides
                failed[name] = error
        return failed

    def add(self, model: LoadedModel) -> LoadedModel | None:
        """Warm up a model beside the others, then let it serve its name; return what served it, to be retired.

        Rows that wait for that one are still computed by it, until it is retired.

        Raises:
            WorkError: the model cannot make a vector; all is as it was.
            tasks.errors.EngineClosed: the worker is going away.
        """
        name = model.card.name
        current = self._models.get(name)
        # Two loads of a card exist for a moment: each has rows of its own.
        model = replace(model, key=f"{name}~" if current is not None and current.key == name else name)
        self._bound_passes({**self._models, name: model})
        self._loops[0].call(partial(self._loops[0].add, model)).result()
        try:
            self._add_stream(model)
            self._warm_up(model)
        except BaseException:
            self._forget(model)
            raise
        with self._lock:
            self._models[name], self._used_s[name] = model, time.monotonic()
        return current

    def remove(self, name: str) -> LoadedModel:
        """Take no more work for a model, and return it to be retired."""
        with self._lock:
            return self._models.pop(name)

    def retire(self, model: LoadedModel, within_s: float) -> None:
        """Wait until a model that takes no more work has computed what it has, and forget it.

        What is not computed in time ends with `NoWorker`, which gives chunks back to others.
        """
        until_s = time.monotonic() + within_s
        while self._open[model.key]:
            if time.monotonic() > until_s:
                self._queue.end_all(NoWorker(f"{model.card.name} is being unloaded"), model.key)
            time.sleep(_POLL_S)
        self._forget(model)

    def healthy(self) -> bool:
        """Return whether the engine can make vectors now, as its last pass or probe showed. Costs nothing."""
        return all(loop.is_well() for loop in self._loops)

    def well_models(self) -> set[str]:
        """Return the models that made a vector in their last pass or probe; empty while the device is not well."""
        if not self.healthy():
            return set()
        failing = set[str]().union(*(loop.failing_models() for loop in self._loops))
        return {name for name, model in self._models.copy().items() if model.key not in failing}

    def stats(self) -> dict[str, float]:
        """Return what an operator wants to see: waiting tokens by class, passes, what they took, the rate."""
        return {
            "interactive_tokens": self._queue.waiting_tokens(Service.INTERACTIVE),
            "bulk_tokens": self._queue.waiting_tokens(Service.BULK),
            "passes": self.progress(),
            "tokens": sum(loop.passes.tokens for loop in self._loops),
            "busy_s": sum(loop.passes.busy_s for loop in self._loops),
            "pass_s": max(loop.watchdog.running_s() for loop in self._loops),
            "last_pass_ms": self._loops[0].passes.last_ms,
            "tokens_per_s": self._loops[0].passes.tokens_per_s,
        }

    def call_latency(self, model: str) -> CallLatency:
        """Return what calls of a model should take, did take and can expect."""
        loaded = self._models.get(model)
        key = model if loaded is None else loaded.key
        loops = [loop for loop in self._loops if loop.scheduler.serves(key, Service.INTERACTIVE)]
        return CallLatency(
            target_ms=self._limits.p99_ms,
            p99_ms=self._queue.call_p99_s(model) * 1000,
            expected_ms=loops[0].scheduler.expected_ms(key) if loops else 0.0,
        )

    def progress(self) -> int:
        """See `tasks.engine.Engine.progress`."""
        return sum(loop.passes.count for loop in self._loops)

    def close(self) -> None:
        """End waiting work with EngineClosed, let the current pass end, stop the thread. Idempotent."""
        self._closed = True
        self._queue.close()
        for loop in self._loops:
            loop.close(_CLOSE_S)

    def _hold(self, work: Work, count: int) -> LoadedModel:
        """Return the model that computes so many such works; it is not forgotten before `_let_go` for all of them."""
        if self._closed:
            raise EngineClosed("this worker is going away")
        with self._lock:
            model = self._models.get(work.model)
            if model is None:
                raise NoWorker(f"{work.model} is not loaded in this worker")
            if work.fingerprint not in {"", model.fingerprint}:
                raise NoWorker(f"this worker has {work.model} by now as {model.fingerprint}")
            self._open[model.key] += count
            self._used_s[work.model] = time.monotonic()
            return model

    def _let_go(self, model: LoadedModel, count: int = 1) -> None:
        with self._lock:
            self._open[model.key] -= count

    def _warm_up(self, model: LoadedModel) -> None:
        for loop in self._loops:
            own = loop.models.get(model.key)
            if own is None:
                continue
            try:
                for step in warm_up_steps(own, loop.passes, self._limits.batch_tokens):
                    loop.call(step).result()
            finally:
                # The largest shapes that fit were tried: what they needed is not needed now.
                loop.call(own.backend.free_memory).result()

    def _bound_passes(self, models: Mapping[str, LoadedModel]) -> None:
        """Let the limits of passes follow the models."""
        self._limits = _limits(self._settings, models, on_cpu=True)
        self._queue.window_tokens = _WINDOW_PASSES * self._limits.batch_tokens
        for loop in self._loops:
            loop.call(partial(loop.scheduler.bound, self._limits)).result()

    def _start_loop(self, models: Mapping[str, LoadedModel], *, interactive_only: bool) -> DeviceLoop:
        loop = DeviceLoop(self._queue, models, self._limits, self._fair_share, interactive_only=interactive_only)
        loop.passes.meter = self._meter
        return loop

    def _add_stream(self, model: LoadedModel) -> None:
        """Serve the model's interactive rows by its latency stream, if it has one."""
        stream = model.backend.latency_stream
        if stream is None:
            return
        own = replace(model, backend=stream)
        if len(self._loops) == 1:
            self._loops = (*self._loops, self._start_loop({own.key: own}, interactive_only=True))
        else:
            self._loops[1].call(partial(self._loops[1].add, own)).result()

    def _forget(self, model: LoadedModel) -> None:
        """Remove a model that has no rows from the loops, and free what its device keeps for it."""
        for loop in self._loops:
            loop.call(partial(loop.remove, model.key)).result()
        self._loops[0].call(model.backend.free_memory).result()
        self._queue.drop_lanes(model.key)

    def _retry_after_s(self, tokens: int) -> float:
        rate = self._loops[0].passes.tokens_per_s
        return min(max(tokens / rate, _LEAST_RETRY_S), _MOST_RETRY_S) if rate else _LEAST_RETRY_S


def _failed(error: Exception) -> Future[Outcomes]:
    future = Future[Outcomes]()
    future.set_exception(error)
    return future


def _limits(settings: Settings, models: Mapping[str, LoadedModel], *, on_cpu: bool) -> Limits:
    on_cpu = all(model.backend.device == "cpu" for model in models.values()) if models else on_cpu
    streams = max((model.backend.parallel for model in models.values()), default=settings.threads)
    cpu_tokens = max(_CPU_BATCH_TOKENS, _CPU_STREAM_TOKENS * streams)
    return Limits(
        batch_tokens=settings.max_batch_tokens or (cpu_tokens if on_cpu else _GPU_BATCH_TOKENS),
        p99_ms=settings.p99_ms or (_CPU_P99_MS if on_cpu else _GPU_P99_MS),
        pass_timeout_s=settings.pass_timeout_s,
    )
