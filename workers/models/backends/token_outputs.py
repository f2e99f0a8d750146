"""What the heads of bge-m3 give for the tokens of a row, as the numbers that callers get.

Owns the rule which tokens have a weight. Computes no pass (the backends).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.vectors import Extra, ExtraParts, Parts
from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["deal_out", "deal_out_all"]


def deal_out(
    row: Tokens, weights: NDArray[np.float32], vectors: NDArray[np.float32], silent: NDArray[np.int32]
) -> Mapping[Extra, Parts]:
    """Return the extras that a row asks for.

    Args:
        row: its ids, and what it wants.
        weights: float32, one for each token; read only if it wants sparse weights.
        vectors: float32, shape (tokens - 1, d), behind the first token; read only if it wants those.
        silent: ids of special tokens, which have no weight.
    """
    parts: dict[Extra, Parts] = {}
    if "sparse" in row.extras:
        parts["sparse"] = _weigh_tokens(row.ids, weights, silent)
    if "colbert" in row.extras:
        # A copy: one row that waits must not keep those of the whole batch.
        parts["colbert"] = (np.array(vectors, np.float32),)
    return parts


def deal_out_all(
    rows: Sequence[Tokens], weights: NDArray[np.float32], vectors: NDArray[np.float32], silent: Sequence[int]
) -> list[ExtraParts]:
    """Return the extras of each row, of what was computed for those that want it, one row's after the other's.

    Args:
        rows: the batch.
        weights: float32, one for each token of the rows that want sparse weights.
        vectors: float32, shape (_, d), one for each token but the first of the rows that want those.
        silent: ids of special tokens, which have no weight.
    """
    found: list[ExtraParts] = []
    weight_at = vector_at = 0
    for row in rows:
        of_row = weights[weight_at : weight_at + len(row)], vectors[vector_at : vector_at + len(row) - 1]
        found.append(deal_out(row, *of_row, np.asarray(silent, np.int32)))
        weight_at += len(row) if "sparse" in row.extras else 0
        vector_at += len(row) - 1 if "colbert" in row.extras else 0
    return found


def _weigh_tokens(ids: NDArray[np.int32], weights: NDArray[np.float32], silent: NDArray[np.int32]) -> Parts:
    """Return the distinct ids that have a weight, ascending, each with its largest: FlagEmbedding's lexical weights."""
    # Not `weights > 0`: what is no number has to stay, so that it is noticed.
    kept = ~(weights <= 0) & ~np.isin(ids, silent)
    unique, place = np.unique(ids[kept], return_inverse=True)
    largest = np.zeros(len(unique), np.float32)
    with np.errstate(invalid="ignore"):
        np.maximum.at(largest, place, weights[kept])
    return unique, largest
