"""The packed forward pass of BERT, RoBERTa and XLM-R.

Owns their embeddings and layers. Reads its weights from the transformers model, which stays usable.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from workers.models.backends.packed.attention import FULL, attend
from workers.models.backends.packed.flat import Flat
from workers.models.backends.packed.layers import AttentionHeads, LayerNorm, Linear, Reader, UnknownModelError, project

__all__ = ["BERT_TYPES", "BertBody"]

# Those that count positions from behind the id of padding.
_ROBERTA_TYPES = frozenset({"roberta", "xlm-roberta", "camembert"})
BERT_TYPES = _ROBERTA_TYPES | {"bert"}


class BertBody:
    """See `model.Body`."""

    def __init__(self, config: Any, read: Reader, prefix: str) -> None:
        """Take the weights below `prefix`.

        Raises:
            UnknownModelError: it is a decoder, or has other positions or parts than BERT.
        """
        positions = getattr(config, "position_embedding_type", "absolute")
        if getattr(config, "is_decoder", False) or positions != "absolute":
            raise UnknownModelError("it is a decoder, or its positions are relative")
        self._pad_id = config.pad_token_id if config.model_type in _ROBERTA_TYPES else None
        at = f"{prefix}embeddings."
        self._words = read.table(f"{at}word_embeddings")
        self._places = read.table(f"{at}position_embeddings")
        self._types = read.table(f"{at}token_type_embeddings")
        self._norm = read.layer_norm(f"{at}LayerNorm")
        self._layers = [
            _Layer.read(config, read, f"{prefix}encoder.layer.{number}.") for number in range(config.num_hidden_layers)
        ]

    def can_pick(self, _pooling: str) -> bool:
        """See `model.Body.can_pick`."""
        return True

    def states(self, flat: Flat, dtype: torch.dtype, picks: torch.Tensor | None = None) -> torch.Tensor:
        """See `model.Body.states`."""
        x = self._embed(flat, dtype)
        for layer in self._layers[:-1]:
            x = layer(x, flat)
        return self._layers[-1](x, flat, picks)

    def _embed(self, flat: Flat, dtype: torch.dtype) -> torch.Tensor:
        words = functional.embedding(flat.ids, self._words)
        types = functional.embedding(flat.types, self._types) if len(self._types) > 1 else self._types[0]
        places = functional.embedding(self._place_ids(flat), self._places)
        return self._norm(words.to(dtype) + types.to(dtype) + places.to(dtype))

    def _place_ids(self, flat: Flat) -> torch.Tensor:
        if self._pad_id is None:
            places = flat.positions
        else:
            # As RoBERTa counts: a padding token inside a text has no number of its own.
            real = (flat.ids != self._pad_id).long()
            upto = real.cumsum(0)
            before = (upto - real)[flat.first_tokens()][flat.row_of]
            places = (upto - before) * real + self._pad_id
        # Only the tokens left over in a recorded pass, see `flat.write_rows`, can be more than there are positions.
        return places.clamp(max=len(self._places) - 1)


@dataclass(frozen=True, slots=True)
class _Layer:
    heads: AttentionHeads
    qkv: Linear
    out: Linear
    norm: LayerNorm
    up: Linear
    activation: Callable[[torch.Tensor], torch.Tensor]
    down: Linear
    last_norm: LayerNorm

    @classmethod
    def read(cls, config: Any, read: Reader, at: str) -> "_Layer":
        count = config.num_attention_heads
        return cls(
            heads=AttentionHeads(count, count, config.hidden_size // count),
            qkv=read.fused(*(f"{at}attention.self.{name}" for name in ("query", "key", "value"))),
            out=read.linear(f"{at}attention.output.dense"),
            norm=read.layer_norm(f"{at}attention.output.LayerNorm"),
            up=read.linear(f"{at}intermediate.dense"),
            activation=read.activation(config.hidden_act),
            down=read.linear(f"{at}output.dense"),
            last_norm=read.layer_norm(f"{at}output.LayerNorm"),
        )

    def __call__(self, x: torch.Tensor, flat: Flat, picks: torch.Tensor | None = None) -> torch.Tensor:
        """Return the next states (T, d), or (n, d) of one picked token per row."""
        query, key, value = project(self.qkv, x, self.heads, picks)
        queries = flat.spans if picks is None else flat.one_each()
        gathered = attend(query, key, value, (queries, flat.spans), FULL)
        own = x if picks is None else x[picks]
        own = self.norm(self.out(gathered.flatten(1)) + own)
        return self.last_norm(self.down(self.activation(self.up(own))) + own)
