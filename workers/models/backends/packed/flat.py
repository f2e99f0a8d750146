"""Rows of ids one after the other: how they lie in one array, and what a forward pass reads of it on the device.

Owns the layout `[ids | edges | second_at]` of int32, so that a batch goes to the device in one copy, and a recorded
pass can read it from memory that never moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["Flat", "Shape", "Spans", "write_rows"]


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """How many tokens and rows an array has room for; ordered by tokens."""

    tokens: int
    rows: int

    @classmethod
    def of(cls, rows: Sequence[Tokens]) -> Self:
        """Return the shape that holds these rows and nothing else."""
        return cls(sum(map(len, rows)), len(rows))

    @property
    def size(self) -> int:
        """Length of the array: an id for each token, rows + 1 edges, a `second_at` for each row."""
        return self.tokens + 2 * self.rows + 1

    def holds(self, other: "Shape") -> bool:
        """Return whether a batch of the other shape fits."""
        return other.tokens <= self.tokens and other.rows <= self.rows


def write_rows(rows: Sequence[Tokens], shape: Shape, out: NDArray[np.int32]) -> None:
    """Write rows into an array of `shape.size`.

    Where the shape has more rows than are given, they are empty, but for the last, which gets the tokens left over: so
    each token belongs to a row, whose values are thrown away. Where none is left, the tokens have to match.
    """
    count = len(rows)
    ids, edges, second_at = np.split(out, [shape.tokens, shape.tokens + shape.rows + 1])
    edges[0] = 0
    np.cumsum([len(row) for row in rows], out=edges[1 : count + 1])
    total = edges[count]
    left_over = np.zeros(shape.tokens - total, np.int32)
    np.concatenate([*(row.ids for row in rows), left_over], out=ids)
    edges[count + 1 :] = total
    edges[-1] = shape.tokens
    second_at[:count] = [row.second_at for row in rows]
    second_at[count:] = 0


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Where rows begin and end in a flat tensor.

    Attributes:
        edges: int32, shape (n + 1,), ascending from 0.
        longest: at least the length of the longest row.
    """

    edges: torch.Tensor
    longest: int


@dataclass(frozen=True, slots=True, eq=False)
class Flat:
    """A batch on the device.

    Attributes:
        ids: int32, shape (T,).
        spans: the n rows.
        second_at: int32, shape (n,): where the second text of a pair begins in its row; 0 for a single text.
        row_of: int64, shape (T,): the row of each token.
        positions: int64, shape (T,): its place in the row, from 0.
    """

    ids: torch.Tensor
    spans: Spans
    second_at: torch.Tensor
    row_of: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def over(cls, array: torch.Tensor, shape: Shape, longest: int) -> Self:
        """Read an array that `write_rows` wrote. Everything else is computed on the device, without waiting for it."""
        ids, edges, second_at = torch.split(array, [shape.tokens, shape.rows + 1, shape.rows])
        places = torch.arange(shape.tokens, dtype=torch.int32, device=array.device)
        # The first row that ends behind the token: empty rows are passed over.
        row_of = torch.searchsorted(edges[1:], places, right=True)
        positions = (places - edges[row_of]).long()
        return cls(ids, Spans(edges, longest), second_at, row_of, positions)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.second_at.shape[0]

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens per row, int32, shape (n,)."""
        return self.spans.edges.diff()

    @property
    def types(self) -> torch.Tensor:
        """1 for tokens of the second text of a pair, else 0; int64, shape (T,)."""
        starts = self.second_at[self.row_of]
        return ((starts > 0) & (self.positions >= starts)).long()

    def first_tokens(self) -> torch.Tensor:
        """Return the place of each row's first token, int64; of an empty row some other token's."""
        return self.spans.edges[:-1].long().clamp(max=self.ids.shape[0] - 1)

    def last_tokens(self) -> torch.Tensor:
        """Return the place of each row's last token, int64; of an empty row some other token's."""
        return (self.spans.edges[1:].long() - 1).clamp(min=0)

    def one_each(self) -> Spans:
        """Return spans of one token per row."""
        edges = torch.arange(self.rows + 1, dtype=torch.int32, device=self.ids.device)
        return Spans(edges, 1)
