"""The engine's scheduling on a device whose time is computed instead of waited for.

Owns the clock, the device and the load. Everything that decides is the product's own: queue, scheduler, fair share,
packing, passes and warm-up; only the threads of `workers.engine.loop` are replaced by the loop below.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.engine import Outcomes
from tasks.errors import OutOfMemory
from tasks.lanes import Service
from tests.support.fakes import fake_card
from workers.engine.fair_share import FairShare
from workers.engine.passes import Passes
from workers.engine.pending import Batch, PendingWork
from workers.engine.queue import WorkQueue
from workers.engine.scheduler import Limits, Scheduler
from workers.engine.warmup import warm_up_steps
from workers.engine.watchdog import Watchdog
from workers.models.backends.fake import FakeBackend, FakeTokenizer
from workers.models.loaded import LoadedModel
from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["BATCH_TOKENS", "CALL_TOKENS", "RanPass", "VirtualDevice", "virtual_device"]

BATCH_TOKENS, CALL_TOKENS = 2048, 10
_CHUNK_TEXTS = 280


@dataclass(frozen=True, slots=True)
class RanPass:
    """A pass that ran, in virtual seconds."""

    batch: Batch
    began_s: float
    ended_s: float

    @property
    def took_s(self) -> float:
        return self.ended_s - self.began_s

    @property
    def bulk_tokens(self) -> int:
        return sum(len(row) for row in self.batch.rows if row.request.service is Service.BULK)

    @property
    def padded_tokens(self) -> int:
        return len(self.batch.rows) * max(map(len, self.batch.rows))


class VirtualDevice(FakeBackend):
    """A device with a cost per pass and per padded token, and the engine around it.

    Attributes:
        passes: what ran, without the warm-up.
        latencies_s: how long calls took.
        holds_tokens: more padded tokens than this do not fit into its memory.
    """

    def __init__(self, fixed_ms: float, ms_per_token: float, *, p99_ms: float = 50.0, noise: float = 0.0) -> None:
        card = fake_card(max_tokens=512)
        super().__init__(card)
        self.fixed_ms, self.ms_per_token = fixed_ms, ms_per_token
        self.now_s = 0.0
        self.holds_tokens = 10**9
        self.passes: list[RanPass] = []
        self.latencies_s: list[float] = []
        self._noise, self._draw = noise, random.Random(1)
        self._paced = False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.model = LoadedModel(card, FakeTokenizer(card), self, "fake:virtual")
        self.queue = WorkQueue(400_000, 32 * BATCH_TOKENS, lambda: self.now_s)
        limits = Limits(BATCH_TOKENS, p99_ms, pass_timeout_s=120)
        share = FairShare(0.1, limits.pass_ms / 1000)
        self.scheduler = Scheduler(self.queue, {card.name: self.model}, limits, share)
        self.watchdog = Watchdog(limits.pass_timeout_s)
        self.runner = Passes(self.scheduler.cost, self.scheduler.sizes, self.watchdog, lambda: self.now_s)
        for step in warm_up_steps(self.model, self.runner, BATCH_TOKENS):
            step()

    def run(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """Let the time of a pass go by."""
        padded = len(rows) * max(map(len, rows))
        if padded > self.holds_tokens:
            raise OutOfMemory(f"{padded} tokens")
        self.advance(self.cost_s(padded) * (1 + self._noise * self._draw.random()))
        return np.ones((len(rows), self.dimension or 1), np.float32)

    def cost_s(self, padded_tokens: float) -> float:
        """Return what a pass costs."""
        return (self.fixed_ms + self.ms_per_token * padded_tokens) / 1000

    def advance(self, seconds: float) -> None:
        """Let time go by, and do what was planned for it."""
        until_s = self.now_s + seconds
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, event = heapq.heappop(self._events)
            event()
        self.now_s = until_s

    def plan(self, after_s: float, event: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._events, (self.now_s + after_s, next(self._order), event))

    def drive(self, seconds: float) -> list[RanPass]:
        """Do what `DeviceLoop` does for so long; return the passes."""
        until_s, first = self.now_s + seconds, len(self.passes)
        while self.now_s < until_s:
            if gathering := self.scheduler.gather():
                self._gather(gathering.calls, gathering.within_s)
            batch = self.queue.take(self.scheduler, 0)
            if batch is not None:
                began_s = self.now_s
                self.runner.run(self.model, batch.rows)
                self.passes.append(RanPass(batch, began_s, self.now_s))
                self.scheduler.note_pass(batch, self.now_s - began_s, self.runner.ended_s)
            elif self._events:
                self.advance(self._events[0][0] - self.now_s)
            else:
                self.advance(until_s - self.now_s)
        return self.passes[first:]

    def submit(self, lengths: Sequence[int], service: Service, then: Callable[[], None]) -> None:
        """Bring work; `then` is called when it is done."""
        work = PendingWork(self.model, service, None, _discard)
        work.add_rows([Tokens(np.zeros(length, np.int32)) for length in lengths])
        work.future.add_done_callback(lambda _: then())
        self.queue.put(work, lambda tokens: 1.0)

    def start_job(self, chunks: int = 2) -> None:
        """Keep so many chunks of passages waiting or running, for ever."""
        for _ in range(chunks):
            self._bring_chunk()

    def start_callers(self, callers: int, think_s: float = 0.002) -> None:
        """Let callers ask, and again as soon as they are answered and thought about it, for ever."""
        for _ in range(callers):
            self.plan(self._draw.random() * think_s, lambda: self._call(lambda: 2 * self._draw.random() * think_s))

    def pace_calls(self, every_s: float) -> None:
        """Bring a call at every beat, until `stop_calls`."""
        self._paced = True
        self._beat(every_s)

    def stop_calls(self) -> None:
        """Bring no more paced calls."""
        self._paced = False

    def _beat(self, every_s: float) -> None:
        if self._paced:
            self._call(None)
            self.plan(every_s, lambda: self._beat(every_s))

    def _call(self, think_s: Callable[[], float] | None) -> None:
        asked_s = self.now_s

        def answered() -> None:
            self.latencies_s.append(self.now_s - asked_s)
            if think_s is not None:
                self.plan(think_s(), lambda: self._call(think_s))

        self.submit([CALL_TOKENS], Service.INTERACTIVE, answered)

    def _bring_chunk(self) -> None:
        lengths = [min(512, max(12, round(self._draw.gauss(80, 30)))) for _ in range(_CHUNK_TEXTS)]
        self.submit(lengths, Service.BULK, lambda: self.plan(0.0, self._bring_chunk))

    def _gather(self, calls: int, within_s: float) -> None:
        until_s, begun_s = self.now_s + within_s, self.now_s
        while self.queue.count_calls(begun_s, self.now_s) < calls and not self.queue.has_waiting(Service.BULK):
            next_s = self._events[0][0] if self._events else until_s
            self.advance(min(next_s, until_s) - self.now_s)
            if next_s >= until_s:
                return


@contextmanager
def virtual_device(
    fixed_ms: float, ms_per_token: float, *, p99_ms: float = 50.0, noise: float = 0.0
) -> Iterator[VirtualDevice]:
    """Return a warmed-up device without load."""
    device = VirtualDevice(fixed_ms, ms_per_token, p99_ms=p99_ms, noise=noise)
    try:
        yield device
    finally:
        device.watchdog.close()


def _discard(*_: object) -> Outcomes:
    return Outcomes(np.empty(0, np.float32), np.empty(0, np.int32), np.empty(0, np.bool_))
