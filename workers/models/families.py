"""The model families as FlagEmbedding loads them, each wrapped into one torch module.

Owns the choice of FlagEmbedding's class and what follows the transformer: pooling, normalization, sigmoid. Imports
torch and FlagEmbedding at the top, so only `weights` imports it, late.
"""

from pathlib import Path
from typing import Any

import torch
import transformers
from FlagEmbedding import BGEM3FlagModel, FlagLLMModel, FlagModel, FlagReranker

from config.catalog import ModelCard

__all__ = ["load", "transformer", "wrap"]


def load(card: ModelCard, folder: Path, dtype: str, pooling: str) -> Any:
    """Return FlagEmbedding's object for the card's family, its model on the CPU in `dtype`."""
    transformers.utils.logging.disable_progress_bar()
    common: dict[str, Any] = {
        "use_fp16": dtype == "float16",
        # One device, named: without it FlagEmbedding takes every GPU that it sees.
        "devices": "cpu",
        "trust_remote_code": False,
    }
    if card.family == "cross-encoder":
        flag = FlagReranker(str(folder), **common)
        flag.model.to(getattr(torch, dtype))
        return flag
    common |= {"use_bf16": dtype == "bfloat16", "normalize_embeddings": card.normalize}
    if card.family == "decoder":
        return FlagLLMModel(str(folder), **common)
    if card.family == "bge-m3":
        return BGEM3FlagModel(str(folder), pooling_method=pooling, **common)
    return FlagModel(str(folder), pooling_method=pooling, **common)


def transformer(flag: Any) -> Any:
    """Return the transformers model inside FlagEmbedding's object."""
    return flag.model.model if isinstance(flag, BGEM3FlagModel) else flag.model


def wrap(flag: Any, card: ModelCard, pooling: str) -> torch.nn.Module:
    """Return one module from ids to vectors or scores, in evaluation mode."""
    # A decoder would keep keys and values for a next token that never comes.
    transformer(flag).config.use_cache = False
    module = Scorer(flag) if card.family == "cross-encoder" else Embedder(flag, pooling, normalize=card.normalize)
    return module.eval().requires_grad_(requires_grad=False)


class Embedder(torch.nn.Module):
    """A transformer with its pooling: ids of shape (n, length) to float32 vectors of shape (n, d)."""

    def __init__(self, flag: Any, pooling: str, *, normalize: bool) -> None:
        super().__init__()
        self.transformer = transformer(flag)
        self._pooling = pooling
        self._normalize = normalize
        # FlagEmbedding's object moves the model to the CPU when it is collected, so it has to live as long.
        self._flag = [flag]

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Pool and normalize in float32, whatever the transformer computes in."""
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **more)
        vectors = _pool(states.last_hidden_state.float(), attention_mask, self._pooling)
        return torch.nn.functional.normalize(vectors, dim=-1) if self._normalize else vectors


class Scorer(torch.nn.Module):
    """A cross-encoder: ids of pairs, shape (n, length), to float32 scores in [0, 1] of shape (n,)."""

    def __init__(self, flag: Any) -> None:
        super().__init__()
        self.transformer = transformer(flag)
        self._flag = [flag]

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map the logit to [0, 1] by a sigmoid, as FlagEmbedding does with `normalize=True`."""
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self.transformer(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **more)
        return torch.sigmoid(output.logits.float().view(-1))


def _pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Do as FlagEmbedding's pooling does, for rows that are padded on the right."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)
    last = mask.sum(dim=1) - 1
    return states[torch.arange(states.shape[0], device=states.device), last]
