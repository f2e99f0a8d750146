"""The packed forward pass of Qwen2 and Qwen3 decoders.

Owns their layers: grouped keys, rotary positions, gated feed-forward. Reads its weights from the transformers model,
which stays usable.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from workers.models.backends.packed.attention import CAUSAL, FULL, attend
from workers.models.backends.packed.flat import Flat
from workers.models.backends.packed.layers import (
    AttentionHeads,
    Linear,
    Reader,
    RmsNorm,
    UnknownModelError,
    project,
    rotate,
)

__all__ = ["QWEN_TYPES", "QwenBody"]

QWEN_TYPES = frozenset({"qwen2", "qwen3"})

# Cosines and sines of each token's position, shape (T, 1, size).
Turn = tuple[torch.Tensor, torch.Tensor]


class QwenBody:
    """See `model.Body`."""

    def __init__(self, config: Any, read: Reader, prefix: str) -> None:
        """Take the weights below `prefix`.

        Raises:
            UnknownModelError: it has other parts than Qwen, or layers that see only a part of a row.
        """
        if set(config.layer_types) != {"full_attention"}:
            raise UnknownModelError("some of its layers have a sliding window")
        if getattr(config, "is_causal", True) is False or getattr(config, "use_bidirectional_attention", False):
            raise UnknownModelError("its attention looks both ways")
        self._words = read.table(f"{prefix}embed_tokens")
        self._rotary = read.rotary(f"{prefix}rotary_emb")
        self._layers = [_Layer.read(config, read, f"{prefix}layers.{at}.") for at in range(config.num_hidden_layers)]
        self._norm = read.rms_norm(f"{prefix}norm")

    def can_pick(self, pooling: str) -> bool:
        """See `model.Body.can_pick`. A row's last token sees the whole row, so that it needs no mask."""
        return pooling == "last_token"

    def states(self, flat: Flat, dtype: torch.dtype, picks: torch.Tensor | None = None) -> torch.Tensor:
        """See `model.Body.states`."""
        x = functional.embedding(flat.ids, self._words).to(dtype)
        cos, sin = self._rotary(x, flat.positions[None])
        turn = cos[0][:, None], sin[0][:, None]
        for layer in self._layers[:-1]:
            x = layer(x, flat, turn)
        return self._norm(self._layers[-1](x, flat, turn, picks))


@dataclass(frozen=True, slots=True)
class _Layer:
    heads: AttentionHeads
    norm: RmsNorm
    qkv: Linear
    # Only Qwen3 has them.
    query_norm: RmsNorm | None
    key_norm: RmsNorm | None
    out: Linear
    inner_norm: RmsNorm
    gate_up: Linear
    activation: Callable[[torch.Tensor], torch.Tensor]
    down: Linear

    @classmethod
    def read(cls, config: Any, read: Reader, at: str) -> "_Layer":
        count = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // count
        normed = config.model_type == "qwen3"
        return cls(
            heads=AttentionHeads(count, config.num_key_value_heads, size),
            norm=read.rms_norm(f"{at}input_layernorm"),
            qkv=read.fused(*(f"{at}self_attn.{name}_proj" for name in "qkv")),
            query_norm=read.rms_norm(f"{at}self_attn.q_norm") if normed else None,
            key_norm=read.rms_norm(f"{at}self_attn.k_norm") if normed else None,
            out=read.linear(f"{at}self_attn.o_proj"),
            inner_norm=read.rms_norm(f"{at}post_attention_layernorm"),
            gate_up=read.fused(f"{at}mlp.gate_proj", f"{at}mlp.up_proj"),
            activation=read.activation(config.hidden_act),
            down=read.linear(f"{at}mlp.down_proj"),
        )

    def __call__(self, x: torch.Tensor, flat: Flat, turn: Turn, picks: torch.Tensor | None = None) -> torch.Tensor:
        """Return the next states (T, d), or (n, d) of the last token of each row."""
        query, key, value = project(self.qkv, self.norm(x), self.heads, picks)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        cos, sin = turn
        of_query = turn if picks is None else (cos[picks], sin[picks])
        query, key = rotate(query, *of_query), rotate(key, cos, sin)
        queries, window = (flat.spans, CAUSAL) if picks is None else (flat.one_each(), FULL)
        gathered = attend(query, key, value, (queries, flat.spans), window)
        own = (x if picks is None else x[picks]) + self.out(gathered.flatten(1))
        gate, up = self.gate_up(self.inner_norm(own)).chunk(2, dim=1)
        return own + self.down(self.activation(gate) * up)
