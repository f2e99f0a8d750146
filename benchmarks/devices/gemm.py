"""The ceiling: how fast this machine multiplies matrices in bfloat16, and how much of that a model's pass uses.

Owns the count of operations. The rate is measured with `torch.matmul` in a process on the measured cores; loaded by
`benchmarks.stacks.host`.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Gemm", "decoder_flops", "encoder_flops"]

_SIZES = (512, 1024, 2048, 4096)
_GPU_SIZES = (2048, 4096, 8192)
_AT_A_TIME = 4
_LEAST_S = 0.4


class Gemm:
    """Square products, with as many threads as the process is given; `run` returns FLOP/s for each of some sizes."""

    def __init__(self, device: str = "cpu") -> None:
        import torch  # noqa: PLC0415 - only this process needs it

        self._torch, self._device = torch, device
        self._sizes = _SIZES if device == "cpu" else _GPU_SIZES

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Return FLOP/s, shape (sizes,), whatever it is given."""
        del items
        return np.array([self._rate(size) for size in self._sizes], dtype=np.float32)

    def _rate(self, size: int) -> float:
        like: dict[str, Any] = {"dtype": self._torch.bfloat16, "device": self._device}
        with self._torch.inference_mode():
            left, right = (self._torch.randn(size, size, **like) for _ in range(2))
            self._multiply(left, right, 1)
            started_s, done = time.perf_counter(), 0
            while (spent_s := time.perf_counter() - started_s) < _LEAST_S:
                self._multiply(left, right, _AT_A_TIME)
                done += _AT_A_TIME
        return 2 * size**3 * done / spent_s

    def _multiply(self, left: Any, right: Any, times: int) -> None:
        for _ in range(times):
            left @ right
        if self._device != "cpu":  # a GPU only queues the product
            self._torch.cuda.synchronize()


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


def decoder_flops(folder: Path, tokens: NDArray[np.int64]) -> float:
    """Return the operations of a decoder with grouped keys and a gated feed-forward, counted likewise.

    A token attends to those before it: half of the pairs.
    """
    config = json.loads((folder / "config.json").read_text())
    layers, hidden, inner = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    queries, keys = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    linear = layers * (hidden * (2 * queries + 2 * keys) + 3 * hidden * inner)
    return float(2 * linear * tokens.sum() + 2 * layers * queries * (tokens.astype(float) ** 2).sum())
