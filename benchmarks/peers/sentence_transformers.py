"""sentence-transformers as it is called by its users: `encode` and `predict` on all items at once.

Loaded by `benchmarks.stacks.host`; its fp32 vectors are the reference for correctness.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Embedder", "Reranker"]


class Embedder:
    """`SentenceTransformer.encode`, in float32 or bfloat16."""

    def __init__(
        self,
        folder: str,
        dtype: str = "float32",
        batch_size: int = 32,
        max_tokens: int = 256,
        device: str = "cpu",
    ) -> None:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - part of the load time

        self._model = SentenceTransformer(folder, device=device, model_kwargs={"dtype": dtype})
        self._model.max_seq_length = max_tokens
        self._batch_size = batch_size

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Return (n, d) normalized embeddings."""
        vectors = self._model.encode(
            items, batch_size=self._batch_size, normalize_embeddings=True, convert_to_tensor=True
        )
        return np.asarray(vectors.float().cpu().numpy())


class Reranker:
    """`CrossEncoder.predict`, which applies the sigmoid for single-logit models."""

    def __init__(
        self,
        folder: str,
        dtype: str = "float32",
        batch_size: int = 32,
        max_tokens: int = 512,
        device: str = "cpu",
    ) -> None:
        from sentence_transformers import CrossEncoder  # noqa: PLC0415 - part of the load time

        self._model = CrossEncoder(folder, device=device, max_length=max_tokens, model_kwargs={"dtype": dtype})
        self._batch_size = batch_size

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Return (n,) scores of [query, document] pairs."""
        pairs = [(query, document) for query, document in items]
        return np.asarray(self._model.predict(pairs, batch_size=self._batch_size), dtype=np.float32)
