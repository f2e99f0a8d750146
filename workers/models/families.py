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
from tasks.errors import ConfigError

__all__ = ["AllOutputs", "MultiVectorEmbedder", "load", "transformer", "wrap"]

# FlagEmbedding loads both heads or, where one of them is missing, makes both up.
_HEADS = ("sparse_linear.pt", "colbert_linear.pt")


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
        if card.extras and not all((folder / name).is_file() for name in _HEADS):
            raise ConfigError(
                f"model {card.name}: {folder} lacks {' or '.join(_HEADS)}, without which it is dense only"
            )
        return BGEM3FlagModel(str(folder), pooling_method=pooling, **common)
    return FlagModel(str(folder), pooling_method=pooling, **common)


def transformer(flag: Any) -> Any:
    """Return the transformers model inside FlagEmbedding's object."""
    return flag.model.model if isinstance(flag, BGEM3FlagModel) else flag.model


def wrap(flag: Any, card: ModelCard, pooling: str) -> torch.nn.Module:
    """Return one module from ids to vectors or scores, in evaluation mode."""
    # A decoder would keep keys and values for a next token that never comes.
    transformer(flag).config.use_cache = False
    return _choose_module(flag, card, pooling).eval().requires_grad_(requires_grad=False)


def _choose_module(flag: Any, card: ModelCard, pooling: str) -> torch.nn.Module:
    if card.family == "cross-encoder":
        return Scorer(flag)
    kind = MultiVectorEmbedder if card.extras else Embedder
    return kind(flag, pooling, normalize=card.normalize)


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
        return self.pool(states.last_hidden_state.float(), attention_mask)

    def pool(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Make one vector of the states of a row."""
        return self.finish(_pool(states, attention_mask, self._pooling))

    def finish(self, vectors: torch.Tensor) -> torch.Tensor:
        """Give vectors length 1, if the card says so."""
        return torch.nn.functional.normalize(vectors, dim=-1) if self._normalize else vectors


class MultiVectorEmbedder(Embedder):
    """bge-m3 with its two heads. As a module it is the dense embedder; `forward_all` gives the rest of the same pass.

    Attributes:
        silent: ids of special tokens, which have no weight.
    """

    def __init__(self, flag: Any, pooling: str, *, normalize: bool) -> None:
        super().__init__(flag, pooling, normalize=normalize)
        self.sparse_linear = flag.model.sparse_linear
        self.colbert_linear = flag.model.colbert_linear
        known = flag.tokenizer
        special = (known.cls_token_id, known.eos_token_id, known.pad_token_id, known.unk_token_id)
        self.silent = sorted({token for token in special if token is not None})

    def forward_all(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, sparse: torch.Tensor, colbert: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute what FlagEmbedding's M3 model computes, for real tokens of the rows that want it.

        Args:
            input_ids: int64, shape (n, length), padded on the right.
            attention_mask: the same shape.
            sparse: bool, shape (n,): rows whose token weights are wanted.
            colbert: bool, shape (n,): rows whose token vectors are wanted.

        Returns:
            float32: vectors (n, d); weights, one for each token of the first rows; vectors (_, d), one for each token
            but the first of the second rows.
        """
        output = self.transformer(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        states, real = output.last_hidden_state, attention_mask.bool()
        dense = self.pool(states.float(), attention_mask)
        weights = torch.relu(self.sparse_linear(states[real & sparse[:, None]])).float().view(-1)
        vectors = self.colbert_linear(states[:, 1:][real[:, 1:] & colbert[:, None]]).float()
        return dense, weights, self.finish(vectors)


class AllOutputs(torch.nn.Module):
    """All kinds of every token, padding included: the form in which a graph with fixed outputs can be exported."""

    def __init__(self, embedder: MultiVectorEmbedder) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return float32 vectors (n, d), weights (n, length), and vectors of tokens (n, length, d)."""
        embedder = self.embedder
        states = embedder.transformer(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=True
        ).last_hidden_state.float()
        weights = torch.relu(embedder.sparse_linear(states)).squeeze(-1)
        return embedder.pool(states, attention_mask), weights, embedder.finish(embedder.colbert_linear(states))


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
