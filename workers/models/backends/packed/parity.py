"""Whether two backends of one model agree: the same varied texts through both.

Owns the texts, the measure and the bounds. Runs at load, so that weights of an unforeseen kind, or a kernel that is
wrong on this card, are noticed before the first request.
"""

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from config.catalog import ModelCard
from workers.models.backends.base import Backend
from workers.models.tokenizing.tokenizer import TextTokenizer, Tokens

__all__ = ["agree", "check_rows", "disagreement"]

# What one path may differ from the other in the same precision: 1 - cosine for vectors, the difference for scores.
# Measured against float32 on a card (H200, torch 2.11), worst cosines were 0.999998 in float16 and 0.99985 in
# bfloat16, scores of a reranker 0.046 off in bfloat16; a wrong mask, position or pooling costs far more than that.
_VECTOR_BOUNDS = {"float32": 1e-5, "float16": 1e-4, "bfloat16": 2e-3}
_SCORE_BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}

_LEAST_NORM = 1e-6

_SENTENCES = (
    "The lighthouse keeper writes down every ship that passes.",
    "Ünïcödé ẞtraße, ÆØÅ und ein Satz auf Deutsch.",
    "深夜的灯塔照亮了海面，渔船缓缓归港。",
    "これは日本語で書かれた短い文章です。",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "العربية نص قصير من أجل الاختبار",
    "def area(r: float) -> float:\n    return 3.14159 * r ** 2",
    "🙂 https://example.org/a?b=c&d=%20e#f 1,234.56 EUR [SEP] <pad>",
)
# Words that are repeated until a text is so long, in sentences; with eight sentences each, 64 texts.
_REPEATS = (1, 2, 3, 5, 8, 13, 21)
_ODD = ("", " ", "a", "深", "word", "?!", "\n\n\t", "0")


def check_rows(card: ModelCard, tokenizer: TextTokenizer) -> list[Tokens]:
    """Return 64 rows of many lengths and scripts: texts, or pairs for a cross-encoder."""
    cycle = [*_SENTENCES, *_SENTENCES]
    long = [
        " ".join(itertools.islice(itertools.cycle(cycle[at:]), count))
        for count in _REPEATS
        for at in range(len(_SENTENCES))
    ]
    texts = [*_ODD, *long]
    if card.rerank_by != "cross-encoder":
        return [encoded.tokens for encoded in tokenizer.encode(texts, "end")]
    queries = [_SENTENCES[at % len(_SENTENCES)] for at in range(len(texts))]
    return [encoded.tokens for encoded in tokenizer.encode_pairs(queries, texts, "end")]


def agree(reference: Backend, other: Backend, rows: list[Tokens]) -> tuple[bool, float]:
    """Return whether another backend gives the values of the reference, and their largest disagreement."""
    # Of similar length together, as the engine does it, so that padding is what it is in practice.
    ordered = sorted(rows, key=len)
    parts = [ordered[at : at + 16] for at in range(0, len(ordered), 16)]
    expected, got = (np.concatenate([backend.run(part) for part in parts]) for backend in (reference, other))
    bounds = _SCORE_BOUNDS if reference.dimension is None else _VECTOR_BOUNDS
    worst = disagreement(expected, got)
    return worst <= bounds[reference.dtype], worst


def disagreement(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Return the largest of 1 - cosine over (n, d) vectors, or the largest difference of (n,) scores.

    Rows that the engine's guard would compute again are left out: those that are not finite in the reference, as some
    are in half precision, and vectors without a length. Infinity if no row is left, or one is not finite in the other.
    """
    left, right = (values.reshape(len(values), -1).astype(np.float64) for values in (expected, got))
    norms = np.linalg.norm(left, axis=1)
    usable = np.isfinite(norms) & ((norms > _LEAST_NORM) | (expected.ndim == 1))
    left, right = left[usable], right[usable]
    if not len(left) or not np.isfinite(right).all():
        return math.inf
    if expected.ndim == 1:
        return float(np.abs(left - right).max())
    products = norms[usable] * np.maximum(np.linalg.norm(right, axis=1), _LEAST_NORM)
    return float(1 - ((left * right).sum(axis=1) / products).min())
