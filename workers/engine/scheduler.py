"""What runs next on a device and how much of it: the answers that a queue and a loop ask for.

Owns putting the parts together: which class goes (`fair_share`), how large its pass is (`sizing`, by `cost` and `oom`),
which bulk rows go along, and whether to wait a moment for callers that come back. Runs nothing and starts no thread, so
that a simulation can drive it.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tasks.lanes import Service
from workers.engine import sizing
from workers.engine.cost import CostModel
from workers.engine.fair_share import FairShare
from workers.engine.oom import SafeSizes
from workers.engine.packing import LEAST_PADDING, Budget
from workers.engine.pending import Batch
from workers.engine.queue import WorkQueue
from workers.models.loaded import LoadedModel

__all__ = ["RECENT_S", "Gathering", "Limits", "Scheduler"]

# How long after the last interactive call traffic still counts as present, and bulk passes stay short.
RECENT_S = 3.0
# How long callers that were just answered are waited for, by the fixed part of the pass that this may save.
_GATHER_SHARE = 0.5
_LEAST_GATHER_S = 0.0001
# Of so many answered callers at least this part must have come back in time of late.
_LEAST_RETURNING = 0.5
_RETURN_GAIN = 0.25
# So many that no pass of a job is longer than it has to be.
_MANY_CALLS_PER_S = 100.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a pass.

    Attributes:
        batch_tokens: padded tokens of any pass; one that would mostly be fixed cost may be four times as large.
        p99_ms: what a call should take at the 99th percentile: the rest of a running pass and its own.
        pass_timeout_s: a pass longer than this ends the process, and so does a device that fails for so long.
    """

    batch_tokens: int
    p99_ms: float
    pass_timeout_s: float

    @property
    def pass_ms(self) -> float:
        """What a pass should take: a call may have to wait for one, and then takes one."""
        return self.p99_ms / 2


@dataclass(frozen=True, slots=True)
class Gathering:
    """Wait until so many more calls have come, or this long."""

    calls: int
    within_s: float


@dataclass(frozen=True, slots=True)
class _AnsweredPass:
    """A pass that answered calls: how many, when it ended, and until when it pays to wait for their callers."""

    calls: int
    ended_s: float
    until_s: float


class Scheduler:
    """One for each loop; see `batch.Taker`, whose questions it answers under the queue's lock.

    Attributes:
        cost: what passes cost; fed by who runs them.
        sizes: what fits into memory; likewise.
    """

    def __init__(
        self,
        queue: WorkQueue,
        models: Mapping[str, LoadedModel],
        limits: Limits,
        fair_share: FairShare,
        *,
        interactive_only: bool = False,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Schedule for a loop.

        Args:
            queue: where rows wait.
            models: the loaded models, by key; after a change `note_models` is called.
            limits: bound each pass.
            fair_share: shared by all loops on a device.
            interactive_only: the loop owns latency streams.
            interrupted: see `Taker.interrupted`.
        """
        self.cost = CostModel()
        self.sizes = SafeSizes(sizing.MOST_GROWTH * limits.batch_tokens, queue.clock)
        self.interrupted = interrupted
        self._queue, self._models, self._limits = queue, models, limits
        self._fair_share, self._interactive_only = fair_share, interactive_only
        self.note_models()
        self._longest: dict[tuple[str, Service], int] = {}
        self._last: _AnsweredPass | None = None
        # The part of just answered callers that came back in time, of late.
        self._returning = 0.0

    def note_models(self) -> None:
        """Note that the models have changed."""
        # Whether the device itself lets calls go first, so that no pass makes room for another.
        self._preempted = _have_preemption(self._models, interactive_only=self._interactive_only)

    def bound(self, limits: Limits) -> None:
        """Bound passes otherwise from now on."""
        self._limits = limits
        self.sizes.max_tokens = sizing.MOST_GROWTH * limits.batch_tokens

    def choose(self, interactive: bool, bulk: bool) -> Service:  # noqa: FBT001 - called by position
        """See `Taker.choose`."""
        if self._preempted:
            return Service.INTERACTIVE if self._interactive_only else Service.BULK
        return self._fair_share.choose(interactive=interactive, bulk=bulk)

    def serves(self, model: str, service: Service) -> bool:
        """See `Taker.serves`."""
        if service is Service.BULK:
            return not self._interactive_only
        return model in self._models and (self._interactive_only or self._models[model].backend.latency_stream is None)

    def budget(self, model: str, service: Service) -> Budget:
        """See `Taker.budget`: bounded by memory, and by time where somebody may be waiting for the next pass."""
        calls_per_s = self._queue.calls_per_s() if self._queue.interactive_age_s() < RECENT_S else None

        @functools.cache
        def tokens(longest: int) -> int:
            return self._tokens(model, service, longest, calls_per_s)

        return self._make_budget(
            model, tokens, lambda longest: max(LEAST_PADDING, self._worthwhile_padding(model, longest))
        )

    def fill_budget(self, model: str) -> Budget:
        """See `Taker.fill_budget`."""

        @functools.cache
        def tokens(longest: int) -> int:
            return sizing.fill_tokens(self.cost.fit(model, longest), self._most_tokens(model, longest))

        return self._make_budget(model, tokens, lambda longest: self._worthwhile_padding(model, longest))

    def note_pass(self, batch: Batch, pass_s: float, ended_s: float) -> None:
        """Account for a batch that took `pass_s`; its answers went out from `ended_s` on, by the queue's clock."""
        self._fair_share.charge(pass_s, batch.bulk_part, contended=batch.contended)
        longest = max(map(len, batch.rows))
        self._longest[batch.model, batch.service] = longest
        if batch.service is Service.INTERACTIVE:
            self._note_answers(batch, longest, ended_s)

    def gather(self) -> Gathering | None:
        """Return for how many callers that were just answered to wait, and how long; None: take what there is.

        Callers that ask again as soon as they are answered would else split up into those whose calls a pass computes
        and those that wait for it, and every turn would cost two passes.
        """
        last = self._last
        if last is None or self._returning < _LEAST_RETURNING or self._queue.has_waiting(Service.BULK):
            return None
        now_s = self._queue.clock()
        calls = round(self._returning * last.calls) - self._queue.count_calls(last.ended_s, now_s)
        return Gathering(calls, last.until_s - now_s) if calls > 0 and last.until_s > now_s else None

    def expected_ms(self, model: str) -> float:
        """Return what a call may take by what passes cost while many calls come: a bulk pass, and its own.

        Lengths are those of the last passes; 0 before the first.
        """
        bulk, own = (self._longest.get((model, service), 0) for service in (Service.BULK, Service.INTERACTIVE))
        ms = 0.0
        if bulk and not self._preempted:
            ms += self.cost.fit(model, bulk).ms(self._tokens(model, Service.BULK, bulk, _MANY_CALLS_PER_S))
        if own:
            ms += self.cost.fit(model, own).ms(max(own, self.fill_budget(model).tokens(own) if bulk else 0))
        return ms

    def _make_budget(self, model: str, tokens: Callable[[int], int], padding: Callable[[int], float]) -> Budget:
        return Budget(tokens, padding, self._models[model].backend.counts_padding)

    def _tokens(self, model: str, service: Service, longest: int, calls_per_s: float | None) -> int:
        cost, most = self.cost.fit(model, longest), self._most_tokens(model, longest)
        if service is Service.INTERACTIVE:
            return sizing.shared_pass_tokens(cost, most, self._limits.pass_ms)
        if calls_per_s is None or self._preempted:
            return most
        return sizing.short_pass_tokens(cost, most, self._limits.pass_ms, calls_per_s)

    def _most_tokens(self, model: str, longest: int) -> int:
        full = sizing.full_tokens(self.cost.fit(model, longest), self._limits.batch_tokens)
        return min(full, self.sizes.limit(model, longest))

    def _worthwhile_padding(self, model: str, longest: int) -> float:
        return sizing.worthwhile_padding(self.cost.fit(model, longest), self._most_tokens(model, longest))

    def _note_answers(self, batch: Batch, longest: int, ended_s: float) -> None:
        last = self._last
        if last is not None:
            back = self._queue.count_calls(last.ended_s, last.until_s) / last.calls
            self._returning += _RETURN_GAIN * (min(back, 1.0) - self._returning)
        calls = len({id(row.request) for row in batch.rows if row.request.service is Service.INTERACTIVE})
        window_s = _GATHER_SHARE * self.cost.fit(batch.model, longest).fixed_ms / 1000
        self._last = (
            _AnsweredPass(calls, ended_s, self._queue.clock() + window_s) if window_s >= _LEAST_GATHER_S else None
        )


def _have_preemption(models: Mapping[str, LoadedModel], *, interactive_only: bool) -> bool:
    backends = [model.backend for model in models.values()]
    streams = backends if interactive_only else [backend.latency_stream for backend in backends]
    return all(stream is not None and stream.preempts for stream in streams)
