"""Takes one batch through the device: watched, guarded, halved where it fails, scattered to its requests, measured.

Owns what happens between a batch's start and the moment when each of its rows has a value or an error. Knows
nothing of waiting rows.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tasks.engine import NO_METER, ItemError, Meter
from tasks.errors import ItemFailed, OutOfMemory, WorkError
from workers.engine.cost import CostModel
from workers.engine.guard import INVALID, run_guarded, run_guarded_heads
from workers.engine.oom import SafeSizes, run_halving
from workers.engine.packing import pass_tokens
from workers.engine.pending import Row
from workers.engine.watchdog import Watchdog
from workers.models.backends.base import Values
from workers.models.loaded import LoadedModel

__all__ = ["Passes", "Started"]

log = logging.getLogger(__name__)

# What a measurement keeps of its weight in the rate of tokens when the next one comes.
_KEEP = 0.98


@dataclass(frozen=True, slots=True)
class Started:
    """A pass that computes while another one is waited for, and when it was started."""

    values: Values
    at_s: float


class Passes:
    """Runs batches; called by the device's thread only.

    Attributes:
        count: passes that ended well.
        last_ms: what the last of them took.
        ended_s: when it ended, by the clock.
        tokens, busy_s: real tokens and device time of all passes.
        meter: takes what passes show.
    """

    def __init__(
        self,
        cost: CostModel,
        sizes: SafeSizes,
        watchdog: Watchdog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Feed `cost` and `sizes` with what passes show; `clock` gives seconds."""
        self.count = 0
        self.last_ms = 0.0
        self._rate_tokens = self._rate_s = 0.0
        self.ended_s = 0.0
        self.tokens, self.busy_s = 0, 0.0
        self.meter: Meter = NO_METER
        self._cost, self._sizes, self._watchdog, self.clock = cost, sizes, watchdog, clock
        self._learns = True

    @property
    def tokens_per_s(self) -> float:
        """Real tokens per second of device time, over the last passes; 0 before the first."""
        return self._rate_tokens / self._rate_s if self._rate_s else 0.0

    @contextmanager
    def unmeasured(self) -> Iterator[None]:
        """Learn no costs meanwhile: the first pass of a shape costs what no later one does."""
        self._learns = False
        try:
            yield
        finally:
            self._learns = True

    def start(self, model: LoadedModel, rows: Sequence[Row]) -> Started | None:
        """Start a pass over all the rows, for `run` to wait for; None where the backend cannot, or it fails now."""
        pipeline = model.backend.pipeline
        if pipeline is None or any(row.tokens.extras for row in rows):
            return None
        at_s = self.clock()
        try:
            with self._watchdog.watch():
                return Started(pipeline.start([row.tokens for row in rows]), at_s)
        except Exception as error:  # noqa: BLE001 - what fails here fails again in `run`, which deals with it
            log.info("%s: a pass could not be started beside another: %s", model.card.name, error)
            return None

    def run(self, model: LoadedModel, rows: Sequence[Row], started: Started | None = None) -> bool:
        """Give every row a value or an error, end the requests that are complete; return whether any pass went well.

        Args:
            model: what computes them.
            rows: at least one.
            started: a pass over all of them that is under way.
        """
        before = self.count
        under_way = [] if started is None else [started]
        run_halving(
            rows,
            lambda part: self._run_part(model, part, under_way.pop() if under_way else None),
            lambda part, error: self._shrink(model, part, error),
            _give_up,
            lambda part: bool(under_way) or self._fits(model, part),
        )
        for request in {row.request for row in rows}:
            request.finish_if_complete()
        return self.count > before

    def _fits(self, model: LoadedModel, rows: Sequence[Row]) -> bool:
        longest = _longest(rows)
        return _tokens(model, rows) <= self._sizes.limit(model.key, longest)

    def _run_part(self, model: LoadedModel, rows: Sequence[Row], started: Started | None) -> None:
        # The device began a pass that was started early when it was done with the one before.
        began_s = self.clock() if started is None else max(started.at_s, self.ended_s)
        tokens = [row.tokens for row in rows]
        heads = model.backend.heads if any(row.extras for row in tokens) else None
        with self._watchdog.watch():
            if heads is None:
                values, bad = run_guarded(model.backend, tokens, started.values if started else None)
            else:
                values, bad, extras = run_guarded_heads(heads, tokens)
        self.ended_s = self.clock()
        self._measure(model, rows, self.ended_s - began_s)
        self._share_time(model, rows, began_s)
        if heads is not None:
            for row, parts in zip(rows, extras, strict=True):
                row.request.extras[row.index] = parts
        for row, value, is_bad in zip(rows, values, bad, strict=True):
            if is_bad:
                row.request.refuse(row.index, INVALID)
            else:
                row.request.accept(row.index, value)

    def _measure(self, model: LoadedModel, rows: Sequence[Row], pass_s: float) -> None:
        name, longest = model.key, _longest(rows)
        padded = _tokens(model, rows)
        if self._learns:
            self._cost.observe(name, longest, padded, pass_s * 1000)
        self._sizes.grow(name, longest, padded)
        self.count += 1
        self.last_ms = pass_s * 1000
        tokens = sum(map(len, rows))
        self.tokens += tokens
        self.busy_s += pass_s
        self._rate_tokens = self._rate_tokens * _KEEP + tokens
        self._rate_s = self._rate_s * _KEEP + pass_s
        if self._learns:
            labels = (model.card.slug,)
            self.meter.observe("pass_seconds", labels, pass_s)
            self.meter.add("pass_rows_total", labels, len(rows))
            self.meter.add("pass_tokens_total", labels, tokens)
            self.meter.add("pass_padded_tokens_total", labels, padded)

    def _share_time(self, model: LoadedModel, rows: Sequence[Row], began_s: float) -> None:
        """Note for each request how long it waited, and its part of the device's time."""
        token_s = (self.ended_s - began_s) / sum(map(len, rows))
        for row in rows:
            request = row.request
            request.device_s += token_s * len(row)
            if request.waited_s is None:
                request.waited_s = max(0.0, began_s - request.asked_s)
                if self._learns:
                    labels = (request.service.value, model.card.slug)
                    self.meter.observe("queue_wait_seconds", labels, request.waited_s)

    def _shrink(self, model: LoadedModel, rows: Sequence[Row], error: Exception) -> None:
        name, longest = model.key, _longest(rows)
        log.warning("%s: a pass of %d rows, longest %d tokens, failed: %s", name, len(rows), longest, error)
        if isinstance(error, OutOfMemory):
            self.meter.add("out_of_memory_splits_total", (model.card.slug,))
            self._sizes.shrink(name, longest, _tokens(model, rows))
            model.backend.free_memory()


def _give_up(row: Row, error: Exception) -> None:
    if isinstance(error, OutOfMemory):
        refusal: WorkError = OutOfMemory(f"The text does not fit on the device: {error}")
    else:
        refusal = ItemFailed(f"The model fails on this text: {error}")
    row.request.refuse(row.index, ItemError.of(refusal))


def _longest(rows: Sequence[Row]) -> int:
    return max(map(len, rows))


def _tokens(model: LoadedModel, rows: Sequence[Row]) -> int:
    return pass_tokens(list(map(len, rows)), counts_padding=model.backend.counts_padding)
