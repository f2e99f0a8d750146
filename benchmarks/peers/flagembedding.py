"""FlagEmbedding as it is called by its users: `encode` and `compute_score` on all items at once.

Loaded by `benchmarks.stacks.host`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DecoderEmbedder", "Embedder", "M3Embedder", "Reranker"]


class Embedder:
    """`FlagModel.encode`, with the pooling that the model was trained with.

    Args:
        folder: the checkpoint.
        pooling: cls or mean; FlagEmbedding does not read it from the checkpoint.
        batch_size: texts per forward pass; its own default is 256.
        max_tokens: where texts are cut.
        device: `cpu`, `cuda`, or `cpu:0`, which is run in real bfloat16 where `cpu` only rounds the weights.
    """

    def __init__(
        self, folder: str, pooling: str = "cls", batch_size: int = 256, max_tokens: int = 256, device: str = "cpu"
    ) -> None:
        from FlagEmbedding import FlagModel  # noqa: PLC0415 - the peers' imports are part of their load time

        self._model = FlagModel(
            folder,
            pooling_method=pooling,
            batch_size=batch_size,
            passage_max_length=max_tokens,
            query_max_length=max_tokens,
            use_fp16=device == "cuda",
            use_bf16=device == "cpu:0",
            devices=_place(device),
        )
        self._max_tokens = max_tokens

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Return (n, d) normalized embeddings."""
        return np.asarray(self._model.encode(items, max_length=self._max_tokens), dtype=np.float32)


class M3Embedder:
    """`BGEM3FlagModel.encode`, dense vectors alone."""

    def __init__(self, folder: str, batch_size: int = 256, max_tokens: int = 512, device: str = "cpu") -> None:
        from FlagEmbedding import BGEM3FlagModel  # noqa: PLC0415 - the peers' imports are part of their load time

        self._model = BGEM3FlagModel(folder, use_fp16=device == "cuda", devices=_place(device), batch_size=batch_size)
        self._max_tokens = max_tokens

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Return (n, d) normalized embeddings."""
        return np.asarray(self._model.encode(items, max_length=self._max_tokens)["dense_vecs"], dtype=np.float32)


class DecoderEmbedder:
    """`FlagLLMModel.encode`, in bfloat16 on a GPU."""

    def __init__(self, folder: str, batch_size: int = 256, max_tokens: int = 512, device: str = "cpu") -> None:
        from FlagEmbedding import FlagLLMModel  # noqa: PLC0415 - the peers' imports are part of their load time

        lengths = {"passage_max_length": max_tokens, "query_max_length": max_tokens}
        precision = {"use_fp16": False, "use_bf16": device == "cuda"}
        self._model = FlagLLMModel(folder, batch_size=batch_size, devices=_place(device), **lengths, **precision)

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Return (n, d) normalized embeddings."""
        return np.asarray(self._model.encode(items), dtype=np.float32)


class Reranker:
    """`FlagReranker.compute_score` with its sigmoid."""

    def __init__(self, folder: str, batch_size: int = 128, max_tokens: int = 512, device: str = "cpu") -> None:
        from FlagEmbedding import FlagReranker  # noqa: PLC0415 - the peers' imports are part of their load time

        self._model = FlagReranker(
            folder, use_fp16=device == "cuda", devices=_place(device), batch_size=batch_size, max_length=max_tokens
        )

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Return (n,) scores in [0, 1] of [query, document] pairs."""
        pairs = [(query, document) for query, document in items]
        return np.asarray(self._model.compute_score(pairs, normalize=True), dtype=np.float32)


def _place(device: str) -> str:
    """Name one GPU: without a number FlagEmbedding takes all that it sees."""
    return "cuda:0" if device == "cuda" else device
