"""Rows of ids to one rectangular batch. Owns the padding side: always the right, which every pooling here expects."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["pad"]


def pad(
    rows: Sequence[Tokens], pad_id: int, least: tuple[int, int] = (0, 0)
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return ids, attention mask and token types, each int64 of shape (n, longest), or of `least` where that is more.

    Rows that are added to get there have one token, since nothing can be averaged over none.
    """
    count = max(len(rows), least[0])
    lengths = np.array([len(row) for row in rows] + [1] * (count - len(rows)))
    shape = count, max(int(lengths.max()), least[1])
    ids = np.full(shape, pad_id, np.int64)
    types = np.zeros(shape, np.int64)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row.ids
        if row.second_at:
            types[at, row.second_at : len(row)] = 1
    mask = (np.arange(shape[1])[None, :] < lengths[:, None]).astype(np.int64)
    return ids, mask, types
