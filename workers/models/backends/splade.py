"""The torch backend of models that give sparse weights and no dense vector.

Owns what stands for the value of a row there: a number that grows with its weights and is none where they are none,
so that the guard of values sees it. The forward pass is `families.SpladeEmbedder`.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.vectors import ExtraParts, Parts
from workers.models.backends.base import Values
from workers.models.backends.device_memory import copy_back
from workers.models.backends.padding import pad
from workers.models.backends.torch import TorchBackend
from workers.models.tokenizing.tokenizer import Tokens
from workers.models.weights import Weights

__all__ = ["SpladeBackend"]


class SpladeBackend(TorchBackend):
    """See `workers.models.backends.base.Backend`; values are of shape (n, 1).

    Attributes:
        words: that may have a weight.
    """

    def __init__(self, weights: Weights, device: str, dtype: str) -> None:
        super().__init__(weights, device, dtype)
        self.heads = self
        self.words = int(cast("Any", self._module).transformer.config.vocab_size)

    def _launch(self, rows: Sequence[Tokens]) -> Values:
        with torch.inference_mode():
            return copy_back(_summarize(self._weigh(rows)))

    def _forward_all(self, rows: Sequence[Tokens]) -> tuple[NDArray[np.float32], list[ExtraParts]]:
        with torch.inference_mode():
            weights = self._weigh(rows)
            values = _summarize(weights).cpu().numpy()
        found = weights.cpu().numpy()
        wanted = ["sparse" in row.extras for row in rows]
        return values, [{"sparse": _keep(one)} if wish else {} for wish, one in zip(wanted, found, strict=True)]

    def _weigh(self, rows: Sequence[Tokens]) -> torch.Tensor:
        ids, mask, _ = self._upload(pad(rows, self._pad_id))
        weights: torch.Tensor = self._module(ids, mask)
        return weights


def _summarize(weights: torch.Tensor) -> torch.Tensor:
    """Return shape (n, 1). Of a text without any weight it is 1: that is a result as good as others."""
    values: torch.Tensor = weights.norm(dim=1, keepdim=True) + 1.0
    return values


def _keep(weights: NDArray[np.float32]) -> Parts:
    # Not `weights > 0`: what is no number has to stay, so that it is noticed.
    ids = np.flatnonzero(~(weights <= 0)).astype(np.int32)
    return ids, np.array(weights[ids], np.float32)
