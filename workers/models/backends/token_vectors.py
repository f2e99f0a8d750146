"""The torch backend of models that give a vector for each token and no dense vector.

Owns which tokens of a row are seen and which have a vector. The mean of a row's vectors stands for its value, so that
the guard of values sees them. The forward pass is `families.TokenEmbedder`.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.vectors import ExtraParts
from workers.models.backends.base import Values
from workers.models.backends.device_memory import copy_back
from workers.models.backends.padding import pad
from workers.models.backends.torch import TorchBackend
from workers.models.tokenizing.token_tokenizer import TokenTokenizer
from workers.models.tokenizing.tokenizer import Tokens
from workers.models.weights import Weights

__all__ = ["TokenBackend"]


class TokenBackend(TorchBackend):
    """See `workers.models.backends.base.Backend`; values are means of vectors."""

    def __init__(self, weights: Weights, device: str, dtype: str) -> None:
        super().__init__(weights, device, dtype)
        self.heads = self
        tokenizer = cast("TokenTokenizer", weights.tokenizer)
        self._skipped, self._skips_in_queries = tokenizer.skipped, tokenizer.skips_in_queries

    def _launch(self, rows: Sequence[Tokens]) -> Values:
        with torch.inference_mode():
            return copy_back(self._compute(rows)[0])

    def _forward_all(self, rows: Sequence[Tokens]) -> tuple[NDArray[np.float32], list[ExtraParts]]:
        with torch.inference_mode():
            values, vectors, kept = self._compute(rows)
            parts = [
                {"colbert": (vectors[at][kept[at]].cpu().numpy(),)} if "colbert" in row.extras else {}
                for at, row in enumerate(rows)
            ]
            return values.cpu().numpy(), cast("list[ExtraParts]", parts)

    def _compute(self, rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return values (n, d), vectors (n, length, d), and which of them are kept (n, length)."""
        ids, mask, _ = pad(rows, self._pad_id)
        seen, kept = mask.copy(), mask.astype(np.bool_)
        for at, row in enumerate(rows):
            if row.unseen:
                seen[at, len(row) - row.unseen : len(row)] = 0
            if self._skips_in_queries or not row.is_query:
                kept[at] &= ~np.isin(ids[at], self._skipped)
        moved, attention, wanted = self._upload([ids, seen, kept.astype(np.int64)])
        vectors = self._module(moved, attention)
        # A text of nothing but skipped tokens has no vector, and a value all the same: that of all its tokens.
        counted = torch.where(wanted.sum(dim=1, keepdim=True) > 0, wanted, attention).unsqueeze(-1)
        values = (vectors * counted).sum(dim=1) / counted.sum(dim=1)
        return values, vectors, wanted.bool()
