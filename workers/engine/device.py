"""The engine that a worker offers to its tasks: one device, the models on it, one queue in two classes.

Owns putting the parts together and the limits that follow from settings and device. The protocol, with its errors
and meanings, is `tasks.engine`.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from config.settings import Settings
from tasks.engine import Outcomes, Work
from tasks.errors import EngineClosed, ModelNotFound
from tasks.lanes import Service
from workers.engine.admission import admit
from workers.engine.fair_share import FairShare
from workers.engine.loop import DeviceLoop
from workers.engine.queue import WorkQueue
from workers.engine.scheduler import Limits
from workers.engine.warmup import warm_up
from workers.models.loaded import LoadedModel

__all__ = ["CallLatency", "DeviceEngine"]

# Defaults by device. Measured on CPUs: throughput is flat from 1,024 tokens per stream, and 9% lower with 512. Not
# measured on GPUs: half of what one would take, since two passes may run at once.
_CPU_BATCH_TOKENS, _CPU_STREAM_TOKENS, _GPU_BATCH_TOKENS = 2048, 1024, 32_768
_CPU_P99_MS, _GPU_P99_MS = 50.0, 20.0
# Bulk rows are sorted by length among so many passes' worth of tokens.
_WINDOW_PASSES = 32
_CLOSE_S = 10.0
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

    def __init__(self, settings: Settings, models: Mapping[str, LoadedModel]) -> None:
        """Start the device's thread for the loaded models, by card name."""
        self._models = models
        self._lanes = settings.lanes
        self._limits = _limits(settings, models)
        self._queue = WorkQueue(settings.engine_max_tokens, _WINDOW_PASSES * self._limits.batch_tokens)
        self._loops = self._start_loops(FairShare(settings.bulk_min_share, self._limits.pass_ms / 1000))
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, work: Work) -> Future[Outcomes]:
        """See `tasks.engine.Engine.submit`. Tokenizes in the calling thread.

        Raises:
            tasks.errors.ModelNotFound: this worker has no such model.
            tasks.errors.WrongCapability: the model cannot do the operation.
            tasks.errors.InvalidRequest: the work contradicts itself or the model.
            tasks.errors.LaneFull: more tokens of this class wait than `Settings.engine_max_tokens`.
            tasks.errors.EngineClosed: the worker is going away.
        """
        model = self._models.get(work.model)
        if model is None:
            raise ModelNotFound(f"this worker has no model {work.model}", param="model")
        if self._closed:
            raise EngineClosed("this worker is going away")
        if not self._lanes:
            work = replace(work, service=Service.BULK)
        request = admit(work, model)
        if request.rows:
            self._queue.put(request, self._retry_after_s)
        else:
            request.finish_if_complete()
        return request.future

    def warm_up(self) -> dict[str, Exception]:
        """Run every model at the shapes that will come, and return the errors of those that cannot make a vector."""
        failed: dict[str, Exception] = {}
        for loop in self._loops:
            for name, model in loop.models.items():
                if name in failed:
                    continue
                try:
                    loop.call(partial(warm_up, model, loop.passes, self._limits.batch_tokens)).result()
                except Exception as error:  # noqa: BLE001 - the edge of one model; the caller decides
                    failed[name] = error
                # The largest shapes that fit were tried: what they needed is not needed now.
                loop.call(model.backend.free_memory).result()
        return failed

    def healthy(self) -> bool:
        """Return whether the engine can make vectors now, as its last pass or probe showed. Costs nothing."""
        return all(loop.is_well() for loop in self._loops)

    def well_models(self) -> set[str]:
        """Return the models that made a vector in their last pass or probe; empty while the device is not well."""
        if not self.healthy():
            return set()
        return set(self._models).difference(*(loop.failing_models() for loop in self._loops))

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
        loop = next(loop for loop in self._loops if loop.scheduler.serves(model, Service.INTERACTIVE))
        return CallLatency(
            target_ms=self._limits.p99_ms,
            p99_ms=self._queue.call_p99_s(model) * 1000,
            expected_ms=loop.scheduler.expected_ms(model),
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

    def _start_loops(self, fair_share: FairShare) -> tuple[DeviceLoop, ...]:
        """Start one thread for the device, and a second for the interactive rows of models with a latency stream."""
        loops = [DeviceLoop(self._queue, self._models, self._limits, fair_share, interactive_only=False)]
        if streams := _latency_streams(self._models):
            loops.append(DeviceLoop(self._queue, streams, self._limits, fair_share, interactive_only=True))
        return tuple(loops)

    def _retry_after_s(self, tokens: int) -> float:
        rate = self._loops[0].passes.tokens_per_s
        return min(max(tokens / rate, _LEAST_RETRY_S), _MOST_RETRY_S) if rate else _LEAST_RETRY_S


def _latency_streams(models: Mapping[str, LoadedModel]) -> dict[str, LoadedModel]:
    """Return the models that have a latency stream, with that for a backend."""
    streams = {name: model.backend.latency_stream for name, model in models.items()}
    return {name: replace(models[name], backend=stream) for name, stream in streams.items() if stream is not None}


def _limits(settings: Settings, models: Mapping[str, LoadedModel]) -> Limits:
    on_cpu = all(model.backend.device == "cpu" for model in models.values())
    streams = max(model.backend.parallel for model in models.values())
    cpu_tokens = max(_CPU_BATCH_TOKENS, _CPU_STREAM_TOKENS * streams)
    return Limits(
        batch_tokens=settings.max_batch_tokens or (cpu_tokens if on_cpu else _GPU_BATCH_TOKENS),
        p99_ms=settings.p99_ms or (_CPU_P99_MS if on_cpu else _GPU_P99_MS),
        pass_timeout_s=settings.pass_timeout_s,
    )
