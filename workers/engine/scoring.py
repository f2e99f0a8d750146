"""How an embedding model scores pairs: by cosine, or by all that bge-m3 says of two texts.

Owns both formulas, and that no text's token vectors are kept longer than until its last pair is scored: those of a
large rerank call would take gigabytes. Embeds nothing.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.vectors import ExtraParts, Parts

__all__ = ["BLEND", "TOKENS_ONLY", "PairScores", "cosines", "to_unit_range"]

# What the authors of bge-m3 advise for dense, sparse and colbert (model card of BAAI/bge-m3).
BLEND = (0.4, 0.2, 0.4)
# ColBERT's own score.
TOKENS_ONLY = (0.0, 0.0, 1.0)


def cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine of each row of (n, d) with the same row of the other, 0 where one has no length."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray(np.einsum("nd,nd->n", left, right) / np.where(norms > 0, norms, 1), np.float32)


def to_unit_range(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Move scores from [-1, 1] to [0, 1]; sparse weights may lead out of it, which is cut."""
    return np.asarray(np.clip((1 + scores) / 2, 0, 1), np.float32)


class PairScores:
    """Takes the extras of rows as they are computed, and scores a pair as soon as it has both.

    Args:
        pairs: the row of the query and that of the text; None for a text that has no row.
        weights: of what dense, sparse and token vectors say.
    """

    def __init__(
        self, pairs: Sequence[tuple[int | None, int | None]], weights: tuple[float, float, float] = BLEND
    ) -> None:
        self._pairs = pairs
        self._dense, self._sparse, self._colbert = weights
        self._scores = np.zeros(len(pairs), np.float32)
        self._open: dict[int, set[int]] = {}
        self._parts: dict[int, ExtraParts] = {}
        for at, (query, text) in enumerate(pairs):
            if query is not None and text is not None:
                self._open.setdefault(query, set()).add(at)
                self._open.setdefault(text, set()).add(at)

    def __setitem__(self, row: int, parts: ExtraParts) -> None:
        """Take what a row got."""
        if row not in self._open:
            return
        self._parts[row] = parts
        for at in list(self._open[row]):
            query, text = self._pairs[at]
            if query in self._parts and text in self._parts:
                self._score(at, query, text)

    def mix(self, dense: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the weighted scores of all pairs, given the cosines of their dense vectors."""
        return np.asarray(self._dense * dense + self._scores, np.float32)

    @property
    def held(self) -> int:
        """How many rows' extras are held."""
        return len(self._parts)

    def _score(self, at: int, query: int, text: int) -> None:
        left, right = self._parts[query], self._parts[text]
        sparse = _match_weights(left["sparse"], right["sparse"]) if self._sparse else 0.0
        self._scores[at] = self._sparse * sparse + self._colbert * _match_tokens(left["colbert"], right["colbert"])
        for row in {query, text}:
            self._open[row].discard(at)
            if not self._open[row]:
                del self._parts[row], self._open[row]


def _match_weights(left: Parts, right: Parts) -> float:
    """Return the sum of the products of weights that both have (FlagEmbedding's lexical matching score)."""
    _, mine, theirs = np.intersect1d(left[0], right[0], assume_unique=True, return_indices=True)
    return float(left[1][mine] @ right[1][theirs])


def _match_tokens(left: Parts, right: Parts) -> float:
    """Return the mean, over the query's tokens, of the largest product with a token of the text (ColBERT's MaxSim)."""
    (query,), (text,) = left, right
    if not len(query) or not len(text):
        return 0.0
    return float((query @ text.T).max(axis=1).mean())
