"""What is measured inside a process that holds a device: passes over ids, small calls beside bulk, memory, limits.

Loaded by `benchmarks.stacks.host`; each class is a contender whose `run` returns figures, or values.
"""

import resource
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.devices.bare_engine import BareEngine
from config.catalog import load_catalog
from config.settings import Settings
from tasks.engine import Work
from tasks.lanes import Service
from workers.models.backends.base import Values
from workers.models.registry import load_models
from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["Ids", "Lanes", "Limits", "Memory"]

_PASS_TOKENS = 32_768
_GAP_S = 0.02


class Limits:
    """What the card does at most: products of the models' shapes, attention, copies."""

    FIGURES = ("copy, TB/s", "attention at 86, TFLOP/s", "attention at 512, TFLOP/s")

    def __init__(self, device: str) -> None:
        import torch  # noqa: PLC0415 - only this process needs it

        self._torch, self._device = torch, device

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Return `FIGURES`; `items` is [rows of 512 tokens], the size of what is measured."""
        (rows,) = items
        with self._torch.inference_mode():
            return np.array([self._copy(rows), self._attention(86, rows * 6), self._attention(512, rows)], np.float32)

    def _copy(self, rows: int) -> float:
        numbers = self._torch.empty(rows * 2**22, dtype=self._torch.bfloat16, device=self._device)
        other = self._torch.empty_like(numbers)
        return 2 * numbers.nbytes / self._seconds(lambda: other.copy_(numbers)) / 1e12

    def _attention(self, length: int, rows: int) -> float:
        from workers.models.backends.packed.attention import FULL, attend  # noqa: PLC0415 - imports torch
        from workers.models.backends.packed.flat import Spans  # noqa: PLC0415

        heads, size, like = 12, 64, {"dtype": self._torch.float16, "device": self._device}
        query, key, value = (self._torch.randn(rows * length, heads, size, **like) for _ in range(3))
        edges = self._torch.arange(0, rows * length + 1, length, dtype=self._torch.int32, device=self._device)
        spans = Spans(edges, length)
        seconds = self._seconds(lambda: attend(query, key, value, (spans, spans), FULL))
        return 4 * heads * size * rows * length**2 / seconds / 1e12

    def _seconds(self, run: Any, times: int = 5) -> float:
        spent = []
        for _ in range(times + 2):
            started_s = time.perf_counter()
            run()
            if self._device != "cpu":
                self._torch.cuda.synchronize()
            spent.append(time.perf_counter() - started_s)
        return float(np.median(spent[2:]))


class Ids:
    """A model's backend over ids: what is left when tokenizing and queues are taken away.

    Args:
        model: name of the card.
        data_dir: folder for models.
        catalog_file: where the card is.
        settings: further settings by field name.
    """

    def __init__(self, model: str, data_dir: str, catalog_file: str, settings: dict[str, Any]) -> None:
        chosen = Settings(
            _env_file=None, models=(model,), data_dir=Path(data_dir), catalog_file=Path(catalog_file), **settings
        )
        card = load_catalog(chosen.catalog_file).find(model)
        if card is None:
            raise ValueError(f"no card is named {model}")
        self._model = load_models([card], chosen)[card.name]
        self._batches: dict[Any, list[list[Tokens]]] = {}

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Return the values in order of length. Texts are tokenized when they are first seen: run them twice."""
        key = tuple(item if isinstance(item, str) else tuple(item) for item in items)
        batches = self._batches.get(key)
        if batches is None:
            batches = self._batches[key] = self._make_batches(items)
        backend, waiting = self._model.backend, list[Values]()
        parts: list[NDArray[np.float32]] = []
        for batch in batches:
            if len(batch) == 1 and backend.latency_stream is not None:
                parts.append(backend.latency_stream.run(batch))
            elif backend.pipeline is None:
                parts.append(backend.run(batch))
            else:
                waiting.append(backend.pipeline.start(batch))
                if len(waiting) == 2:
                    parts.append(waiting.pop(0)())
        parts += [wait() for wait in waiting]
        return np.concatenate(parts)

    def _make_batches(self, items: list[Any]) -> list[list[Tokens]]:
        tokenizer = self._model.tokenizer
        if isinstance(items[0], str):
            encoded = tokenizer.encode(items, "end")
        else:
            encoded = tokenizer.encode_pairs([pair[0] for pair in items], [pair[1] for pair in items], "end")
        rows = sorted((one.tokens for one in encoded), key=len)
        batches: list[list[Tokens]] = [[]]
        tokens = 0
        for row in rows:
            if tokens + len(row) > _PASS_TOKENS:
                batches.append([])
                tokens = 0
            batches[-1].append(row)
            tokens += len(row)
        return batches


class Lanes(BareEngine):
    """Small calls beside saturating bulk work in one engine."""

    FIGURES = (
        "bulk alone, texts/s",
        "bulk kept, %",
        "p50, ms",
        "p99, ms",
        "longest, ms",
        "idle p50, ms",
        "idle p99, ms",
    )

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Return `FIGURES`; `items` is [texts, queries, seconds]."""
        texts, queries, seconds = items
        idle = self._call_for(queries, seconds / 2)
        done, stop = [0], threading.Event()
        feeder = threading.Thread(target=self._feed, args=(texts, done, stop))
        feeder.start()
        try:
            self._rate(done, seconds / 2)
            alone = self._rate(done, seconds)
            before, started_s = done[0], time.perf_counter()
            beside = self._call_for(queries, seconds)
            kept = (done[0] - before) / (time.perf_counter() - started_s) / max(alone, 1e-9)
        finally:
            stop.set()
            feeder.join()
        return np.array(
            [alone, 100 * kept, *np.percentile(beside, (50, 99, 100)), *np.percentile(idle, (50, 99))], np.float32
        )

    def _feed(self, texts: list[str], done: list[int], stop: threading.Event) -> None:
        """Keep three works of bulk in the engine."""
        waiting = []
        while not stop.is_set():
            waiting.append(self._engine.submit(Work(self._model, "embeddings", texts, service=Service.BULK)))
            if len(waiting) == 3:
                waiting.pop(0).result()
                done[0] += len(texts)
        for future in waiting:
            future.result()

    def _rate(self, done: list[int], seconds: float) -> float:
        before, started_s = done[0], time.perf_counter()
        time.sleep(seconds)
        return (done[0] - before) / (time.perf_counter() - started_s)

    def _call_for(self, queries: list[str], seconds: float) -> list[float]:
        each_ms, ends_s = list[float](), time.perf_counter() + seconds
        for at in range(10**6):
            if time.perf_counter() > ends_s and at > 10:
                break
            started_s = time.perf_counter()
            work = Work(self._model, "embeddings", [queries[at % len(queries)]], service=Service.INTERACTIVE)
            self._engine.submit(work).result()
            each_ms.append((time.perf_counter() - started_s) * 1000)
            time.sleep(_GAP_S)
        return each_ms


class Memory(BareEngine):
    """What loading and warming up took, and what stays."""

    FIGURES = ("host memory, highest while loading, MB", "device, in use, MB", "device, reserved after warm-up, MB")

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Return `FIGURES`, whatever it is given."""
        del items
        import torch  # noqa: PLC0415 - loaded by now

        on_gpu = torch.cuda.is_available()
        device = (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) if on_gpu else (np.nan, np.nan)
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return np.array([highest, *device], np.float32) / 1e6
