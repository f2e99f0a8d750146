"""Values of one loaded model as its engine gives them, within a number of seconds.

Owns the order in which texts are computed (short ones first, so that the time decides how many there are) and the
measurement of speed. Loads the model and lets go of it: two of a large one may not fit beside each other.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from config.catalog import ModelCard
from config.settings import Settings
from tasks.engine import JobParams, Work
from tasks.errors import WorkError
from tasks.lanes import Service
from tasks.vectors import Kind, Parts
from workers.doctor.comparing import gather
from workers.engine import DeviceEngine
from workers.models.loaded import LoadedModel
from workers.models.registry import load_model

__all__ = ["Served", "Timed", "compute_within", "release", "serve"]

Values = NDArray[Any]
_SLICE_ITEMS, _SLICE_TOKENS = 16, 2048


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model with a running engine; items are texts, or (query, text) pairs for a cross-encoder."""

    model: LoadedModel
    engine: DeviceEngine

    def compute(
        self, items: Sequence[Any], service: Service = Service.BULK, instruction: str | None = None, role: Any = None
    ) -> Values:
        """Return what the engine gives: vectors or scores, weights of all words, or vectors of tokens (`gather`).

        Raises:
            WorkError: it gives no value for an item.
        """
        kind: Kind = next(iter(self.model.card.kinds), "dense")
        name, params = self.model.card.name, JobParams(instruction=instruction, returns=(kind,), role=role)
        if self.model.backend.dimension is None:
            queries, texts = [query for query, _ in items], [text for _, text in items]
            work = Work(name, "rerank", texts, queries=queries, service=service, params=params)
        else:
            work = Work(name, "embeddings", list(items), service=service, params=params)
        outcomes = self.engine.submit(work).result()
        if outcomes.errors:
            at, error = next(iter(outcomes.errors.items()))
            raise WorkError(f"no value for {str(items[at])[:60]!r}: {error.message}")
        if kind == "dense":
            return outcomes.values
        extras = list(outcomes.extras[kind])
        return gather([vectors for (vectors,) in extras]) if kind == "colbert" else self._spread(extras)

    def _spread(self, extras: Sequence[Parts]) -> Values:
        """Return sparse weights as those of all words."""
        spread = np.zeros((len(extras), cast("Any", self.model.backend).words), np.float32)
        for row, (ids, weights) in zip(spread, extras, strict=True):
            row[ids] = weights
        return spread

    def count_tokens(self, items: Sequence[Any]) -> list[tuple[int, bool, list[int]]]:
        """Return for each item its tokens, whether text was cut, and its ids."""
        if self.model.backend.dimension is None:
            pairs = [query for query, _ in items], [text for _, text in items]
            encoded = self.model.tokenizer.encode_pairs(*pairs, "end")
        else:
            encoded = self.model.tokenizer.encode(items, "end")
        return [(len(one.tokens), one.cut, one.tokens.ids.tolist()) for one in encoded]


@dataclass(slots=True)
class Timed:
    """Values of the first items, and what they took."""

    values: Values
    tokens: int = 0
    seconds: float = 0.0
    each_ms: list[float] = field(default_factory=list)

    @property
    def speed(self) -> str:
        """Tokens and texts per second."""
        seconds = max(self.seconds, 1e-9)
        return f"{self.tokens / seconds:,.0f} tokens/s, {len(self.values) / seconds:,.0f} texts/s"


@contextmanager
def serve(card: ModelCard, settings: Settings, **changes: str) -> Iterator[Served]:
    """Load a model, as its card says or with other fields, and prove it; as its card says, it is warmed up, too.

    Raises:
        ConfigError, WorkError: it cannot be served here.
    """
    release()
    model = load_model(card.model_copy(update=changes), settings)
    engine = DeviceEngine(settings, {model.card.name: model})
    try:
        if not changes and (failed := engine.warm_up()):
            raise next(iter(failed.values()))
        yield Served(model, engine)
    finally:
        engine.close()
        model.backend.free_memory()


def release() -> None:
    """Free the model that was served before: it and its engine refer to each other, and the next needs its memory."""
    gc.collect()
    # The next collection need not look again at what the libraries hold.
    gc.freeze()


def compute_within(
    compute: Callable[[Sequence[Any]], Values], items: Sequence[Any], tokens: Sequence[int], seconds: float
) -> Timed:
    """Compute as many items, from the first on, as fit into the time; at least the first few."""
    started_s = time.monotonic()
    done = Timed(np.empty((0,), np.float32))
    parts: list[Values] = []
    for start, end in _slices(tokens):
        count = sum(tokens[start:end])
        used_s = time.monotonic() - started_s
        if parts and used_s + done.seconds * count / max(done.tokens, 1) > seconds:
            break
        at_s = time.monotonic()
        parts.append(compute(items[start:end]))
        spent_s = time.monotonic() - at_s
        done.seconds += spent_s
        done.tokens += count
        done.each_ms.append(1000 * spent_s / (end - start))
    if parts:
        done.values = np.concatenate(parts)
    return done


def _slices(tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for end in range(1, len(tokens) + 1):
        full = end - start == _SLICE_ITEMS or sum(tokens[start : end + 1]) > _SLICE_TOKENS
        if end == len(tokens) or full:
            yield start, end
            start = end
