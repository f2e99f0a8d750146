"""A packed model: a body that gives the states of tokens, and what makes a vector or a score of them.

Owns pooling over flat rows, and that the last layer is computed only for the tokens that pooling reads.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from workers.models.backends.packed.flat import Flat
from workers.models.backends.packed.layers import Linear

__all__ = ["Body", "MultiVectorHeads", "PackedModel"]

# From pooled states (n, d) to float32 values, (n, d) vectors or (n,) scores.
Finish = Callable[[torch.Tensor], torch.Tensor]


class Body(Protocol):
    """A transformer over flat rows."""

    def can_pick(self, pooling: str) -> bool:
        """Return whether the states of the tokens that this pooling reads can be computed without all others."""
        ...

    def states(self, flat: Flat, dtype: torch.dtype, picks: torch.Tensor | None = None) -> torch.Tensor:
        """Return the last states (T, d) in `dtype`, or (n, d) of one picked token of each row."""
        ...


class MultiVectorHeads:
    """The two heads of bge-m3 over flat rows.

    Attributes:
        silent: ids of special tokens, which have no weight.
    """

    def __init__(self, sparse: Linear, colbert: Linear, silent: list[int]) -> None:
        self.silent = silent
        self._sparse, self._colbert = sparse, colbert

    def weights(self, states: torch.Tensor) -> torch.Tensor:
        """Return a float32 weight for each of the tokens, shape (_,)."""
        return torch.relu(self._sparse(states)).float().view(-1)

    def vectors(self, states: torch.Tensor) -> torch.Tensor:
        """Return a float32 vector for each of the tokens, not normalized, shape (_, d)."""
        return self._colbert(states).float()


class PackedModel:
    """Gives values for flat rows. Keeps nothing between passes, so that several threads may use it at once."""

    def __init__(self, body: Body, pooling: str, finish: Finish, heads: MultiVectorHeads | None = None) -> None:
        """Put the parts together; `pooling` is cls, mean or last_token."""
        self.heads = heads
        self._body, self._pooling, self._finish = body, pooling, finish
        self._picks = pooling != "mean" and body.can_pick(pooling)

    def values(self, flat: Flat, dtype: torch.dtype) -> torch.Tensor:
        """Return float32 vectors (n, d), or scores (n,), computed in `dtype`. An empty row gets any values."""
        if self._picks:
            return self._finish(self._body.states(flat, dtype, self._places(flat)))
        return self._finish(self._pool(flat, self._body.states(flat, dtype)))

    def all_values(
        self, flat: Flat, dtype: torch.dtype, sparse: torch.Tensor, colbert: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what `families.MultiVectorEmbedder.forward_all` returns, of one pass over all tokens.

        Args:
            flat: the batch.
            dtype: precision of the pass.
            sparse: bool, shape (n,): rows whose token weights are wanted.
            colbert: bool, shape (n,): rows whose token vectors are wanted.
        """
        if self.heads is None:
            raise TypeError("this model has no heads for other kinds of vectors")
        states = self._body.states(flat, dtype)
        weights = self.heads.weights(states[sparse[flat.row_of]])
        vectors = self.heads.vectors(states[colbert[flat.row_of] & (flat.positions > 0)])
        return self._finish(self._pool(flat, states)), weights, self._finish(vectors)

    def _places(self, flat: Flat) -> torch.Tensor:
        return flat.last_tokens() if self._pooling == "last_token" else flat.first_tokens()

    def _pool(self, flat: Flat, states: torch.Tensor) -> torch.Tensor:
        if self._pooling != "mean":
            return states[self._places(flat)]
        sums = torch.zeros((flat.rows, states.shape[1]), dtype=torch.float32, device=states.device)
        sums.index_add_(0, flat.row_of, states.float())
        return sums / flat.lengths.clamp(min=1)[:, None]
