"""The proof that a loaded model can be served: run before a worker is ready, on a handful of texts.

Owns what has to hold: every value is finite, a row gives the same alone and in a batch beside longer ones, different
rows give different values, vectors have the promised length. Knows nothing of the engine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigError
from tasks.vectors import Extra, Parts
from workers.models.backends.base import Backend, Heads
from workers.models.loaded import LoadedModel
from workers.models.tokenizing.tokenizer import FastTokenizer, Tokens

__all__ = ["find_disagreement", "prove"]

_TEXTS = (
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "向量检索 ベクトル検索 векторный поиск البحث المتجه",
    "Numbers, 1234567890, and signs: {}[]()<>#@!? \u20ac",
    " ".join(["A longer text, so that shorter ones beside it are padded."] * 8),
)
# Rows of random ordinary tokens besides: of so many tokens.
_LENGTHS = (3, 9, 17, 40, 64)
# What batching may change: cosine of vectors, difference of scores. Wrong masks and positions change far more.
_LEAST_COSINE = {"float32": 0.9999, "float16": 0.995, "bfloat16": 0.95}
_MOST_DIFFERENCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 0.1}
_LEAST_NORM = _SAME = 1e-6


def prove(model: LoadedModel) -> None:
    """Run the model on texts and on random tokens.

    Raises:
        ConfigError: it cannot be served; the message says why.
    """
    rows = _rows(model)
    ways = [model.backend, model.backend.latency_stream]
    for backend in [way for way in ways if way is not None]:
        try:
            together = _run(model, backend, rows)
            alone = np.concatenate([_run(model, backend, [row]) for row in rows])
        except ConfigError:
            raise
        except Exception as error:  # whatever a device library raises, this model cannot be served
            reason = " ".join(str(error).split()) or type(error).__name__
            raise _refuse(model, f"it fails on a text: {reason}") from error
        _compare(model, together, alone)
        if backend.heads is not None and model.card.extras:
            _prove_heads(model, backend.heads, rows)


def _prove_heads(model: LoadedModel, heads: Heads, rows: Sequence[Tokens]) -> None:
    """Hold what the heads give for a row alone against what they give for it in a batch."""
    extras = cast("tuple[Extra, ...]", model.card.extras)
    wanted = [replace(row, extras=extras) for row in rows]
    together = heads.run_all(wanted)[1]
    for row, parts in zip(wanted, together, strict=True):
        (alone,) = heads.run_all([row])[1]
        for kind, found in parts.items():
            if (cosine := _cosine(kind, found, alone[kind])) < _LEAST_COSINE[model.backend.dtype]:
                message = f"a text has other {kind} vectors alone than in a batch: their cosine is {cosine:.4f}"
                raise _refuse(model, message)


def _cosine(kind: Extra, left: Parts, right: Parts) -> float:
    """Return the cosine of two texts' weights, or the least one of their tokens' vectors."""
    if kind == "sparse":
        _, mine, theirs = np.intersect1d(left[0], right[0], assume_unique=True, return_indices=True)
        norm = float(np.linalg.norm(left[1]) * np.linalg.norm(right[1]))
        return float(left[1][mine] @ right[1][theirs]) / norm if norm else float(len(left[0]) == len(right[0]))
    (first,), (second,) = left, right
    if first.shape != second.shape:
        return 0.0
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(axis=1) / norms).min(initial=1))


def _rows(model: LoadedModel) -> list[Tokens]:
    if model.backend.dimension is None:
        rows = [one.tokens for one in model.tokenizer.encode_pairs([_TEXTS[1]] * len(_TEXTS), _TEXTS, "end")]
    else:
        rows = [one.tokens for one in model.tokenizer.encode(_TEXTS, "end")]
    if len({row.ids.tobytes() for row in rows}) == 1:
        raise _refuse(model, "its tokenizer reads all texts alike: its files are not those of its class")
    return rows + list(_random_rows(model, rows[0])) if isinstance(model.tokenizer, FastTokenizer) else rows


def _random_rows(model: LoadedModel, frame: Tokens) -> Iterator[Tokens]:
    """Yield rows that begin and end as a text of this model does, with ordinary tokens between."""
    first, last = frame.ids[:1], frame.ids[-1:]
    for length in _LENGTHS:
        if length <= model.tokenizer.max_tokens:
            middle = np.asarray(model.tokenizer.draw_ids(length, length - 2), np.int32)  # type: ignore[attr-defined]
            ids = np.concatenate([first, middle, last]).astype(np.int32)
            yield Tokens(ids, second_at=length // 2 if frame.second_at else 0)


def _run(model: LoadedModel, backend: Backend, rows: Sequence[Tokens]) -> NDArray[np.float32]:
    values = backend.run(rows)
    expected = (len(rows),) if backend.dimension is None else (len(rows), backend.dimension)
    if values.shape != expected:
        raise _refuse(model, f"it gives values of shape {values.shape[1:]}, its folder says {expected[1:]}")
    bad = _find_bad(values)
    if bad.any():
        # Half precision overflows in some models; the engine computes such rows again in float32, and so does this.
        values = np.array(values)
        for at in np.flatnonzero(bad).tolist():
            values[at] = backend.run_exact([rows[at]])[0]
        if _find_bad(values).any():
            raise _refuse(model, "it gives no finite value for a text, not even in float32")
    return values


def _find_bad(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    if values.ndim == 1:
        return ~np.isfinite(values)
    norms = np.linalg.norm(values, axis=1)
    return np.asarray(~np.isfinite(norms) | (norms < _LEAST_NORM))


def _compare(model: LoadedModel, together: NDArray[np.float32], alone: NDArray[np.float32]) -> None:
    if reason := find_disagreement(model.backend.dtype, together, alone):
        raise _refuse(model, reason)
    if float(np.ptp(together, axis=0).max()) < _SAME:
        raise _refuse(model, "it gives the same for all texts")


def find_disagreement(dtype: str, together: NDArray[np.float32], alone: NDArray[np.float32]) -> str:
    """Return how rows of a batch differ from the same rows alone, by more than the precision explains; empty: not."""
    if together.ndim == 1:
        apart = float(np.abs(together - alone).max())
        return (
            f"a pair scores differently alone and in a batch, by {apart:.3f}" if apart > _MOST_DIFFERENCE[dtype] else ""
        )
    norms = np.linalg.norm(together, axis=1) * np.linalg.norm(alone, axis=1)
    cosine = float(((together * alone).sum(axis=1) / norms).min())
    if cosine < _LEAST_COSINE[dtype]:
        return f"a text has another vector alone than in a batch: their cosine is {cosine:.4f}"
    return ""


def _refuse(model: LoadedModel, reason: str) -> ConfigError:
    return ConfigError(f"model {model.card.name}: it cannot be served by {model.backend.kind} here: {reason}")
