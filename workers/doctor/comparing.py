"""How far two sets of values are apart, and how far they may be. Owns the limits of an examination.

Limits: float32 within 1e-5 in every number of a vector of length 1; half precision a cosine of at least 0.999. Scores
are in [0, 1] and compared as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Check", "Verdict", "compare", "gather"]

Verdict = Literal["ok", "note", "skipped", "FAILED"]

_EXACT, _LEAST_COSINE, _MOST_SCORE, _MOST_LENGTH = 1e-5, 0.999, 2e-2, 1e-3


@dataclass(frozen=True, slots=True)
class Check:
    """A line of the report."""

    name: str
    verdict: Verdict
    found: str


def gather(items: Sequence[NDArray[np.float32]]) -> NDArray[Any]:
    """Return arrays of several shapes as an array of objects, shape (n,)."""
    gathered = np.empty(len(items), object)
    for at, item in enumerate(items):
        gathered[at] = item
    return gathered


def compare(name: str, found: NDArray[Any], expected: NDArray[Any], dtype: str, *, lengths: bool = True) -> Check:
    """Hold values against those that are right.

    Args:
        name: of the check.
        found: float32, shape (n, d) or (n,); or (n,) of vectors of tokens, each of shape (tokens, d).
        expected: the same shape, or the check has failed.
        dtype: precision in which `found` was computed.
        lengths: whether vectors have to have the same length too, and not only the same direction.
    """
    if found.shape != expected.shape:
        return Check(name, "FAILED", f"values of shape {found.shape}, the reference gives {expected.shape}")
    if not len(found):
        return Check(name, "skipped", "no text was compared: too slow here")
    if found.dtype == object:
        return _compare_tokens(name, found, expected, dtype)
    if found.ndim == 1:
        apart, limit = float(np.abs(found - expected).max()), _EXACT if dtype == "float32" else _MOST_SCORE
        what = f"{len(found)} pairs, scores apart by at most {apart:.1e} (limit {limit:g})"
        return Check(name, _judge(apart <= limit), what)
    return _compare_vectors(name, found, expected, dtype, lengths=lengths)


def _compare_tokens(name: str, found: NDArray[Any], expected: NDArray[Any], dtype: str) -> Check:
    """Compare every token's vector: a text has as many as the reference gives it."""
    for at, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        if mine.shape != theirs.shape:
            message = f"a text has {len(mine)} vectors, the reference gives it {len(theirs)} (text {at} by length)"
            return Check(name, "FAILED", message)
    check = _compare_vectors(name, np.concatenate(found), np.concatenate(expected), dtype, lengths=True)
    return replace(check, found=f"{len(found)} texts: {check.found.replace('texts', 'tokens', 1)}")


def _compare_vectors(
    name: str, found: NDArray[np.float32], expected: NDArray[np.float32], dtype: str, *, lengths: bool
) -> Check:
    # Sparse weights of a text may be none at all, by both.
    some = np.any(found != 0, axis=1) | np.any(expected != 0, axis=1)
    if not some.any():
        return Check(name, "FAILED", "no text has a value")
    found, expected = found[some], expected[some]
    ours, theirs = (np.linalg.norm(each, axis=1, keepdims=True) for each in (found, expected))
    a, b = found / ours, expected / theirs
    apart, cosine = float(np.abs(a - b).max()), float((a * b).sum(axis=1).min())
    stretch = float(np.abs(ours / theirs - 1).max())
    # Written so that what is no number has failed.
    good = apart <= _EXACT if dtype == "float32" else cosine >= _LEAST_COSINE
    limit = f"apart by at most {apart:.1e} (limit {_EXACT:g})" if dtype == "float32" else f"(limit {_LEAST_COSINE:g})"
    what = f"{len(found)} texts, least cosine {cosine:.6f} {limit}"
    if lengths and not stretch <= _MOST_LENGTH:
        return Check(name, "FAILED", f"{what}; lengths differ by up to {stretch:.1%}")
    return Check(name, _judge(good), what)


def _judge(good: bool) -> Verdict:  # noqa: FBT001 - one argument that says itself
    return "ok" if good else "FAILED"
