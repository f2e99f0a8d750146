"""The thread that owns a device: it takes batches from the queue and runs them, one after the other.

Where the backend computes on its own (`Backend.pipeline`), the next pass is started before the last one is waited for.
Owns the backends that it is given. Every call into them comes from here, probes and warm-up too, so no backend needs
a lock. Where backends have a latency stream, a second loop owns those and serves the interactive rows.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue

from tasks.errors import EngineClosed, WorkError
from tasks.lanes import Service
from workers.engine.fair_share import FairShare
from workers.engine.guard import run_guarded
from workers.engine.passes import Passes, Started
from workers.engine.pending import Batch
from workers.engine.queue import WorkQueue
from workers.engine.scheduler import RECENT_S, Limits, Scheduler
from workers.engine.watchdog import DeviceHealth, Watchdog, end_process
from workers.models.loaded import LoadedModel
from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["DeviceLoop"]

log = logging.getLogger(__name__)

# How often a model is probed that makes no vectors.
_PROBE_FAILING_S = 1.0


@dataclass(frozen=True, slots=True)
class _Taken:
    """A batch that is this loop's.

    Attributes:
        model: what computes it.
        started: its pass, where the device has it already.
        at_s: when it was taken.
    """

    batch: Batch
    model: LoadedModel
    started: Started | None
    at_s: float


class DeviceLoop:
    """Runs until it is closed. A failure inside it ends the work that waits, and the loop goes on."""

    def __init__(
        self,
        queue: WorkQueue,
        models: Mapping[str, LoadedModel],
        limits: Limits,
        fair_share: FairShare,
        *,
        interactive_only: bool,
    ) -> None:
        """Start the thread.

        Args:
            queue: where rows wait.
            models: the loaded models, by key.
            limits: bound each pass.
            fair_share: shared by all loops on a device.
            interactive_only: this loop owns latency streams. Another one serves the bulk rows of their models, and
                leaves out the interactive rows.
        """
        self.watchdog = Watchdog(limits.pass_timeout_s)
        self.health = DeviceHealth()
        self._device_calls: SimpleQueue[tuple[Callable[[], None], Future[None]]] = SimpleQueue()
        # Changed by the device's thread only, between two passes.
        self.models = dict(models)
        self.scheduler = Scheduler(
            queue,
            self.models,
            limits,
            fair_share,
            interactive_only=interactive_only,
            interrupted=lambda: not self._device_calls.empty(),
        )
        self.passes = Passes(self.scheduler.cost, self.scheduler.sizes, self.watchdog, queue.clock)
        self._queue, self._limits = queue, limits
        self._probes = {name: _make_probe(model) for name, model in models.items()}
        # Models whose last pass and probe failed, with the time when each is probed again.
        self._failing: dict[str, float] = {}
        # What was started behind the pass that is waited for, and when the device was done with the last batch.
        self._ahead: _Taken | None = None
        self._free_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-device", daemon=True)
        self._thread.start()

    def is_well(self) -> bool:
        """Return whether the thread runs, its last pass or probe gave a vector, and no pass seems to hang."""
        stuck = self.watchdog.running_s() > self._limits.pass_timeout_s / 2
        return self._thread.is_alive() and self.health.well and not stuck

    def failing_models(self) -> set[str]:
        """Return the models that made no vector when they last ran, while others did."""
        return set(self._failing)

    def add(self, model: LoadedModel) -> None:
        """Run the model's batches from now on. Only on the device's thread, see `call`."""
        self.models[model.key] = model
        self._probes[model.key] = _make_probe(model)
        self.scheduler.note_models()

    def remove(self, key: str) -> None:
        """Forget a model for which no row waits. Only on the device's thread, see `call`."""
        for known in (self.models, self._probes, self._failing):
            known.pop(key, None)
        self.scheduler.note_models()

    def call(self, function: Callable[[], None]) -> Future[None]:
        """Run a function on the device's thread, between two passes."""
        future: Future[None] = Future()
        self._device_calls.put((function, future))
        self._queue.wake()
        if not self._thread.is_alive():
            self._run_device_calls(closed=True)
        return future

    def close(self, timeout_s: float) -> None:
        """End what waits with EngineClosed, let the current pass end, and stop."""
        self._stop.set()
        self._queue.close()
        self._thread.join(timeout_s)
        self.watchdog.close()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._turn()
                except Exception as error:
                    log.exception("the engine's loop failed; what waits is ended, the loop goes on")
                    self._queue.end_all(WorkError(f"the engine failed: {error}"))
                    self.health.note(well=False)
        finally:
            self._queue.close()
            if self._ahead is not None:
                self._run_batch(self._ahead)
            self._run_device_calls(closed=True)

    def _turn(self) -> None:
        taken, self._ahead = self._ahead or self._take_next(), None
        self._run_device_calls()
        if taken is not None:
            try:
                if self._works_ahead(taken):
                    self._ahead = self._take(timeout_s=0)
            finally:
                self._run_batch(taken)
        elif self.health.probe_due_s() == 0:
            self._probe(self._probes)
        now_s = time.monotonic()
        if due := [name for name, at_s in self._failing.items() if at_s <= now_s]:
            self._probe(due)

    def _probe_due_s(self) -> float:
        again_s = min(self._failing.values(), default=math.inf) - time.monotonic()
        return max(0.0, min(self.health.probe_due_s(), again_s))

    def _take_next(self) -> _Taken | None:
        if gathering := self.scheduler.gather():
            self._queue.await_calls(self.scheduler, gathering.calls, gathering.within_s)
        return self._take(self._probe_due_s())

    def _take(self, timeout_s: float) -> _Taken | None:
        batch = self._queue.take(self.scheduler, timeout_s)
        if batch is None:
            return None
        at_s = self._queue.clock()
        model = self.models[batch.model]
        return _Taken(batch, model, self.passes.start(model, batch.rows), at_s)

    def _works_ahead(self, taken: _Taken) -> bool:
        """Return whether to start the next pass behind this one: not where an interactive row would wait for both."""
        if taken.started is None:
            return False
        elsewhere = not self.scheduler.serves(taken.batch.model, Service.INTERACTIVE)
        return elsewhere or self._queue.interactive_age_s() >= RECENT_S

    def _run_batch(self, taken: _Taken) -> None:
        batch = taken.batch
        try:
            well = self.passes.run(taken.model, batch.rows, taken.started)
        except BaseException as error:
            log.exception("%s: a batch failed outside the model; its requests are ended", batch.model)
            for request in {row.request for row in batch.rows}:
                self._queue.forget(request)
                request.fail(WorkError(f"the engine failed: {error}"))
            if not isinstance(error, Exception):
                raise
            well = False
        began_s, self._free_s = max(taken.at_s, self._free_s), self._queue.clock()
        self.scheduler.note_pass(batch, self._free_s - began_s, self.passes.ended_s)
        if well:
            self._failing.pop(batch.model, None)
            self.health.note(well=True)
        else:
            # Bad rows, a bad model or a bad device? A row that is known to be good tells, with every model.
            self._probe(self._probes)

    def _probe(self, names: Iterable[str]) -> None:
        """Make one real vector with each of the models. The device is well while any model makes one."""
        for name in names:
            if self._makes_a_vector(name):
                self._failing.pop(name, None)
            else:
                self._failing[name] = time.monotonic() + _PROBE_FAILING_S
        self.health.note(well=not self.models or len(self._failing) < len(self.models))
        sick_s = self.health.sick_s()
        if sick_s > self._limits.pass_timeout_s:
            # Some failures of a device stay with the process that met them; only a fresh one can use it again.
            end_process(f"no vector for {sick_s:.1f} s")

    def _makes_a_vector(self, name: str) -> bool:
        try:
            with self.watchdog.watch():
                _, bad = run_guarded(self.models[name].backend, [self._probes[name]])
        except Exception:
            if name not in self._failing:
                log.exception("%s: the engine cannot make a vector", name)
            return False
        return not bad.any()

    def _run_device_calls(self, *, closed: bool = False) -> None:
        while not self._device_calls.empty():
            function, future = self._device_calls.get()
            if closed:
                future.set_exception(EngineClosed("this worker is going away"))
                continue
            try:
                function()
            except Exception as error:  # noqa: BLE001 - an edge: somebody waits for this future
                future.set_exception(error)
            else:
                future.set_result(None)


def _make_probe(model: LoadedModel) -> Tokens:
    return model.tokenizer.encode(["probe"], "end")[0].tokens
