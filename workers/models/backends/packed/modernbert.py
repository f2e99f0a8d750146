"""The packed forward pass of ModernBERT: rotary positions, gated feed-forward, most layers with a narrow window.

Owns its embeddings and layers. Reads its weights from the transformers model, which stays usable.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from workers.models.backends.packed.attention import FULL, Window, attend
from workers.models.backends.packed.flat import Flat
from workers.models.backends.packed.layers import AttentionHeads, LayerNorm, Linear, Reader, project, rotate

__all__ = ["MODERNBERT_TYPES", "ModernBertBody"]

MODERNBERT_TYPES = frozenset({"modernbert"})

# Cosines and sines of each token's position, float32, shape (T, 1, size).
Turn = tuple[torch.Tensor, torch.Tensor]


class ModernBertBody:
    """See `model.Body`."""

    def __init__(self, config: Any, read: Reader, prefix: str) -> None:
        """Take the weights below `prefix`.

        Raises:
            UnknownModelError: it has other parts than ModernBERT.
        """
        self._words = read.table(f"{prefix}embeddings.tok_embeddings")
        self._norm = read.layer_norm(f"{prefix}embeddings.norm")
        self._rotary = read.rotary(f"{prefix}rotary_emb")
        self._layers = [_Layer.read(config, read, prefix, number) for number in range(config.num_hidden_layers)]
        self._last_norm = read.layer_norm(f"{prefix}final_norm")

    def can_pick(self, _pooling: str) -> bool:
        """See `model.Body.can_pick`. A narrow window is counted from a token's place, which a picked one has not."""
        return self._layers[-1].window == FULL

    def states(self, flat: Flat, dtype: torch.dtype, picks: torch.Tensor | None = None) -> torch.Tensor:
        """See `model.Body.states`."""
        x = self._norm(functional.embedding(flat.ids, self._words).to(dtype))
        turns = {kind: self._turn(x, flat, kind) for kind in {layer.kind for layer in self._layers}}
        for layer in self._layers[:-1]:
            x = layer(x, flat, turns[layer.kind])
        last = self._layers[-1]
        return self._last_norm(last(x, flat, turns[last.kind], picks))

    def _turn(self, x: torch.Tensor, flat: Flat, kind: str) -> Turn:
        cos, sin = self._rotary(x, flat.positions[None], kind)
        return cos[0][:, None].float(), sin[0][:, None].float()


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    window: Window
    heads: AttentionHeads
    norm: LayerNorm | None
    qkv: Linear
    out: Linear
    inner_norm: LayerNorm
    up: Linear
    activation: Callable[[torch.Tensor], torch.Tensor]
    down: Linear

    @classmethod
    def read(cls, config: Any, read: Reader, prefix: str, number: int) -> "_Layer":
        at, count = f"{prefix}layers.{number}.", config.num_attention_heads
        kind = config.layer_types[number]
        return cls(
            kind=kind,
            window=FULL if kind == "full_attention" else (config.sliding_window, config.sliding_window),
            heads=AttentionHeads(count, count, config.hidden_size // count),
            # The embeddings are normalized already.
            norm=read.layer_norm(f"{at}attn_norm") if number else None,
            qkv=read.linear(f"{at}attn.Wqkv"),
            out=read.linear(f"{at}attn.Wo"),
            inner_norm=read.layer_norm(f"{at}mlp_norm"),
            up=read.linear(f"{at}mlp.Wi"),
            activation=read.activation(config.hidden_activation),
            down=read.linear(f"{at}mlp.Wo"),
        )

    def __call__(self, x: torch.Tensor, flat: Flat, turn: Turn, picks: torch.Tensor | None = None) -> torch.Tensor:
        """Return the next states (T, d), or (n, d) of one picked token per row."""
        query, key, value = project(self.qkv, x if self.norm is None else self.norm(x), self.heads, picks)
        cos, sin = turn
        of_query = turn if picks is None else (cos[picks], sin[picks])
        # In float32, as transformers does.
        query, key = rotate(query.float(), *of_query).to(x.dtype), rotate(key.float(), cos, sin).to(x.dtype)
        queries = flat.spans if picks is None else flat.one_each()
        gathered = attend(query, key, value, (queries, flat.spans), self.window)
        own = (x if picks is None else x[picks]) + self.out(gathered.flatten(1))
        up, gate = self.up(self.inner_norm(own)).chunk(2, dim=1)
        return own + self.down(self.activation(up) * gate)
