"""The model families, each wrapped into one torch module from ids to vectors or scores.

Owns what follows the transformer: pooling and steps, heads, sigmoid. `workers.models.weights` loads them.
Imports torch at the top, so only modules that are imported late may import it.
"""

from typing import Any

import torch

from workers.models.folders.pooling import pool_states

__all__ = ["AllOutputs", "Embedder", "MultiVectorEmbedder", "Scorer", "SpladeEmbedder", "TokenEmbedder"]

# Logits of all words of so many tokens are held at once.
_LOGIT_TOKENS = 4096


class Embedder(torch.nn.Module):
    """A transformer with its pooling: ids of shape (n, length) to float32 vectors of shape (n, d).

    Attributes:
        transformer: the model of transformers.
        pooling: see `workers.models.folders.pooling.pool_states`.
        steps: modules from vectors to vectors, in their order; length 1, where it is wanted, is the last of them.
    """

    def __init__(self, transformer: Any, pooling: str, steps: torch.nn.ModuleList) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = pooling
        self.steps = steps

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Pool and finish in float32, whatever the transformer computes in."""
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.transformer(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **more)
        return self.pool(states.last_hidden_state.float(), attention_mask)

    def pool(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Make one vector of the states of a row."""
        return self.finish(pool_states(states, attention_mask, self.pooling))

    def finish(self, vectors: torch.Tensor) -> torch.Tensor:
        """Take vectors through all steps."""
        for step in self.steps:
            vectors = step(vectors)
        return vectors


class MultiVectorEmbedder(Embedder):
    """bge-m3 with its two heads. As a module it is the dense embedder; `forward_all` gives the rest of the same pass.

    Attributes:
        silent: ids of special tokens, which have no weight.
    """

    def __init__(self, flag: Any, pooling: str, steps: torch.nn.ModuleList) -> None:
        """Wrap the model of FlagEmbedding's object."""
        super().__init__(flag.model.model, pooling, steps)
        self.sparse_linear = flag.model.sparse_linear
        self.colbert_linear = flag.model.colbert_linear
        known = flag.tokenizer
        special = (known.cls_token_id, known.eos_token_id, known.pad_token_id, known.unk_token_id)
        self.silent = sorted({token for token in special if token is not None})
        # FlagEmbedding's object moves the model to the CPU when it is collected, so it has to live as long.
        self._flag = [flag]

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


class TokenEmbedder(torch.nn.Module):
    """A transformer whose steps are taken for each token: ids of shape (n, length) to float32 (n, length, d).

    Attributes:
        transformer: the model of transformers.
        steps: see `Embedder`.
    """

    def __init__(self, transformer: Any, steps: torch.nn.ModuleList) -> None:
        super().__init__()
        self.transformer = transformer
        self.steps = steps

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Give a vector for every position, padding included."""
        output = self.transformer(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        vectors: torch.Tensor = output.last_hidden_state.float()
        for step in self.steps:
            vectors = step(vectors)
        return vectors


class SpladeEmbedder(torch.nn.Module):
    """A masked language model whose logits are pooled over a text: ids, shape (n, length), to weights (n, words).

    Attributes:
        transformer: the model of transformers with its head.
        pooling: `splade-max-relu`, `splade-sum-relu`, or those with `log1p_relu`.
    """

    def __init__(self, transformer: Any, pooling: str) -> None:
        super().__init__()
        self.transformer = transformer
        _, self.pooling, self.activation = pooling.split("-")

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute what sentence-transformers' SpladePooling does, some rows at a time: log(1 + relu(logit)), pooled."""
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        rows = max(1, _LOGIT_TOKENS // input_ids.shape[1])
        parts = [
            self._pool(input_ids[at : at + rows], attention_mask[at : at + rows], more)
            for at in range(0, len(input_ids), rows)
        ]
        return torch.cat(parts)

    def _pool(self, ids: torch.Tensor, mask: torch.Tensor, more: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = self.transformer(input_ids=ids, attention_mask=mask, return_dict=True, **more).logits.float()
        weights = torch.log1p(torch.relu(logits)).masked_fill(mask.unsqueeze(-1) == 0, 0)
        if self.activation == "log1p_relu":
            weights = torch.log1p(weights)
        return weights.max(dim=1).values if self.pooling == "max" else weights.sum(dim=1)


class Scorer(torch.nn.Module):
    """A cross-encoder: ids of pairs, shape (n, length), to float32 scores in [0, 1] of shape (n,)."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map the logit to [0, 1] by a sigmoid, as FlagEmbedding does with `normalize=True`."""
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self.transformer(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **more)
        return torch.sigmoid(output.logits.float().view(-1))
