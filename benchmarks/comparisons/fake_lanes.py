"""`python -m benchmarks.comparisons.fake_lanes`: a device shared between lanes, at any cost of a pass.

Owns a table over devices that are faked (`workers.models.backends.fake`), everything around them being the real engine:
what a job keeps of its rate beside one small call every 2 s, how many calls a second closed loops of callers get by
what one full pass per turn allows, how long calls take, and what a job keeps under a flood of calls.
"""

import argparse
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from config.catalog import ModelCard
from config.settings import Settings
from tasks.engine import Work
from tasks.lanes import Service
from workers.engine import DeviceEngine
from workers.models.backends.fake import FakeBackend, FakeTokenizer
from workers.models.loaded import LoadedModel

__all__ = ["main"]

_FIXED_MS = (1.0, 5.0, 30.0, 100.0, 300.0)
# Steep as a large model on a CPU, flat as a small one on a GPU.
_MS_PER_TOKEN = (0.1, 0.002)
_CALL_WORDS, _CALL_TOKENS = 8, 10
_CHUNK_TEXTS = 280
_CALL_EVERY_S = 2.0
# As many calls as a worker takes together.
_PER_TRIP = 64
_HEADS = (
    *("fixed ms", "ms per token", "job alone, tokens/s", "job kept beside a call every 2 s"),
    *("worst call, ms", "longest pass, ms", "32 callers /s", "of one pass per turn", "256 callers /s"),
    *("of one pass per turn", "flood: job's share of device time", "flood: calls /s"),
)


class RecordingBackend(FakeBackend):
    """Keeps when passes began and ended, their tokens, and how many of these belonged to long (bulk) texts."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.passes: list[tuple[float, float, int, int]] = []

    def run(self, rows: Sequence[object]) -> NDArray[np.float32]:  # type: ignore[override]
        """Run a pass and note it."""
        began_s = time.perf_counter()
        values = super().run(rows)  # type: ignore[arg-type]
        lengths = [len(row) for row in rows]  # type: ignore[arg-type]
        bulk = sum(length for length in lengths if length > _CALL_TOKENS)
        self.passes.append((began_s, time.perf_counter(), sum(lengths), bulk))
        return values


@dataclass
class _Device:
    """An engine on a faked device."""

    engine: DeviceEngine
    backend: RecordingBackend
    fixed_ms: float
    ms_per_token: float

    def bulk_rate(self, start_s: float) -> float:
        """Return the job's tokens per second over the passes that ended since then, to the end of the last one."""
        passes = [one for one in self.backend.passes if one[1] >= start_s]
        if len(passes) < 2:
            return 0.0
        return sum(one[3] for one in passes[1:]) / (passes[-1][1] - passes[0][1])

    def bulk_share(self, start_s: float) -> float:
        """Return the job's part of the passes' time since then, by its tokens in each pass."""
        passes = [one for one in self.backend.passes if one[0] >= start_s]
        total_s = sum(ended_s - began_s for began_s, ended_s, _, _ in passes)
        return sum((ended_s - began_s) * bulk / tokens for began_s, ended_s, tokens, bulk in passes) / total_s

    def one_pass_per_turn(self, callers: int) -> float:
        """Return the calls per second if all callers shared each pass."""
        return callers / (self.fixed_ms + self.ms_per_token * callers * _CALL_TOKENS) * 1000


@dataclass
class _Callers:
    """Closed loops: each caller asks again as soon as it is answered. One thread submits for all of them."""

    engine: DeviceEngine
    answered: int = 0
    latencies_ms: list[float] = field(default_factory=list)

    def run(self, callers: int, seconds: float) -> float:
        """Return calls per second."""
        turns: SimpleQueue[float] = SimpleQueue()
        for _ in range(callers):
            turns.put(0.0)
        start_s = time.perf_counter()
        while time.perf_counter() < start_s + seconds:
            answered = [turns.get()]
            while len(answered) < _PER_TRIP and not turns.empty():
                answered.append(turns.get())
            now_s = time.perf_counter()
            self.latencies_ms += [(now_s - asked_s) * 1000 for asked_s in answered if asked_s]
            self._ask(turns, len(answered))
        rate = len(self.latencies_ms) / (time.perf_counter() - start_s)
        for _ in range(callers - 1):
            turns.get()
        return rate

    def _ask(self, turns: "SimpleQueue[float]", count: int) -> None:
        asked_s = time.perf_counter()
        calls = [_a_call(self.answered + number) for number in range(count)]
        self.answered += count
        for future in self.engine.submit_all(calls):
            future.add_done_callback(lambda _: turns.put(asked_s))


def main(arguments: list[str] | None = None) -> int:
    """Measure each device and print the table."""
    options = _parse(arguments)
    table = Table(*_HEADS)
    for fixed_ms, ms_per_token in product(options.fixed_ms, options.ms_per_token):
        cells = _measure(fixed_ms, ms_per_token, options.seconds)
        print(f"{fixed_ms:g} ms, {ms_per_token:g} ms/token: {' | '.join(cells)}", file=sys.stderr, flush=True)
        table.add_row(f"{fixed_ms:g}", f"{ms_per_token:g}", *cells)
    Console(width=180).print(table)
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparisons.fake_lanes", description=__doc__)
    parser.add_argument("--fixed-ms", type=float, nargs="+", default=_FIXED_MS, help="fixed cost of a pass")
    parser.add_argument("--ms-per-token", type=float, nargs="+", default=_MS_PER_TOKEN, help="cost of a padded token")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the paced calls are watched")
    return parser.parse_args(arguments)


def _measure(fixed_ms: float, ms_per_token: float, seconds: float) -> list[str]:
    with _opened(fixed_ms, ms_per_token) as device:
        alone, kept, worst_ms, longest_ms = _measure_paced(device, seconds)
        cells = [f"{alone:,.0f}", f"{kept:.0%}", f"{worst_ms:.0f}", f"{longest_ms:.0f}"]
        for callers in (32, 256):
            rate = _Callers(device.engine).run(callers, max(seconds / 4, 10 * fixed_ms / 1000))
            cells += [f"{rate:,.0f}", f"{rate / device.one_pass_per_turn(callers):.0%}"]
        with _job(device.engine):
            start_s = time.perf_counter()
            rate = _Callers(device.engine).run(256, max(seconds / 2, 20 * fixed_ms / 1000))
            cells += [f"{device.bulk_share(start_s):.0%}", f"{rate:,.0f}"]
    return cells


def _measure_paced(device: _Device, seconds: float) -> tuple[float, float, float, float]:
    with _job(device.engine):
        start_s = time.perf_counter() + 1
        time.sleep(1 + seconds / 2)
        alone = device.bulk_rate(start_s)
        device.engine.submit(_a_call(0)).result()
        time.sleep(_CALL_EVERY_S)
        start_s, latencies_ms = time.perf_counter(), []
        while time.perf_counter() < start_s + seconds:
            asked_s = time.perf_counter()
            device.engine.submit(_a_call(len(latencies_ms))).result()
            latencies_ms.append((time.perf_counter() - asked_s) * 1000)
            time.sleep(max(0.0, asked_s + _CALL_EVERY_S - time.perf_counter()))
        kept = device.bulk_rate(start_s) / alone
    longest_ms = max(ended_s - began_s for began_s, ended_s, _, _ in device.backend.passes if began_s >= start_s) * 1000
    return alone, kept, max(latencies_ms), longest_ms


@contextmanager
def _opened(fixed_ms: float, ms_per_token: float) -> Iterator[_Device]:
    card = ModelCard(
        name="fake",
        source="none:",
        family="fake",
        backend="fake",
        capabilities=("dense",),
        dimension=16,
        max_tokens=512,
        pooling="mean",
        knobs={"latency_ms": fixed_ms, "ms_per_token": ms_per_token},
    )
    backend = RecordingBackend(card)
    model = LoadedModel(card, FakeTokenizer(card), backend, "fake:benchmark")
    with DeviceEngine(Settings(_env_file=None), {"fake": model}) as engine:
        engine.warm_up()
        yield _Device(engine, backend, fixed_ms, ms_per_token)


@contextmanager
def _job(engine: DeviceEngine) -> Iterator[None]:
    """Keep two chunks of passages in flight during the block, as a worker does."""
    stop = threading.Event()
    draw = random.Random(1)

    def feed() -> None:
        number = 0
        while not stop.is_set():
            lengths = [max(12, round(draw.gauss(80, 30))) for _ in range(_CHUNK_TEXTS)]
            texts = [f"{'word ' * length}{number} {at}" for at, length in enumerate(lengths)]
            number += 1
            engine.submit(Work("fake", "embeddings", texts)).result()

    feeders = [threading.Thread(target=feed) for _ in range(2)]
    for feeder in feeders:
        feeder.start()
    try:
        yield
    finally:
        stop.set()
        for feeder in feeders:
            feeder.join()


def _a_call(number: int) -> Work:
    return Work("fake", "embeddings", [f"{'query ' * (_CALL_WORDS - 1)}{number}"], service=Service.INTERACTIVE)


if __name__ == "__main__":
    sys.exit(main())
