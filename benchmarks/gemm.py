"""The ceiling: how fast this machine multiplies matrices in bfloat16, and how much of that a model's pass uses.

Owns the count of operations. The rate is measured with `torch.matmul` in a process on the measured cores; loaded by
`benchmarks.host`.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Gemm", "encoder_flops"]

_SIZES = (512, 1024, 2048, 4096)
_LEAST_S = 0.4


class Gemm:
    """Square products; `run` returns FLOP/s for each size of `_SIZES`, whatever it is given."""

    def __init__(self, dtype: str = "bfloat16", threads: int = 2) -> None:
        import torch  # noqa: PLC0415 - only this process needs it

        torch.set_num_threads(threads)
        self._torch, self._dtype = torch, getattr(torch, dtype)

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Return FLOP/s, shape (len(_SIZES),)."""
        del items
        return np.array([self._rate(size) for size in _SIZES], dtype=np.float32)

    def _rate(self, size: int) -> float:
        with self._torch.inference_mode():
            left, right = (self._torch.randn(size, size, dtype=self._dtype) for _ in range(2))
            left @ right
            started_s, done = time.perf_counter(), 0
            while (spent_s := time.perf_counter() - started_s) < _LEAST_S:
                left @ right
                done += 1
        return 2 * size**3 * done / spent_s


def encoder_flops(folder: Path, tokens: NDArray[np.int64]) -> float:
    """Return the operations that an encoder needs for texts of these lengths, without padding.

    Two for each weight of the linear layers and token (Q, K, V, output, two of the feed-forward), and for attention
    four for each dimension and pair of tokens (QK^T and the weighted sum). Embedding rows, norms and pooling are
    left out, as in "Scaling Laws for Neural Language Models" (Kaplan et al. 2020), table 1.
    """
    config = json.loads((folder / "config.json").read_text())
    layers, hidden, inner = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    linear = layers * (4 * hidden**2 + 2 * hidden * inner)
    return float(2 * linear * tokens.sum() + 4 * layers * hidden * (tokens.astype(float) ** 2).sum())
