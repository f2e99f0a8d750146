"""Weights of decoders in 8 or 4 bits, by torchao: half or a quarter of the memory, for models that would not fit.

Owns which models may have it and which layers get it: the linear ones of the transformer. Embeddings, norms and heads
stay as they are, and so does what is computed between the layers.
"""

import importlib
import importlib.util
from typing import Any

from config.catalog import ModelCard
from tasks.errors import ConfigError
from workers.models.weights import Weights

__all__ = ["check_quantized", "quantize"]

_FAMILIES = frozenset({"decoder", "llm-reranker"})
_INT4_GROUP = 128


def check_quantized(card: ModelCard, device: str) -> None:
    """Check that a model's weights can be kept as its card says; nothing to check where it says nothing.

    Raises:
        ConfigError: they cannot, and why.
    """
    if not card.quantize:
        return
    if card.family not in _FAMILIES:
        raise ConfigError(f"model {card.name}: only the weights of decoders are kept in {card.quantize}")
    if card.backend not in {"auto", "torch"}:
        raise ConfigError(f"model {card.name}: weights in {card.quantize} are computed by torch only")
    if card.quantize == "int4" and device == "cpu":
        raise ConfigError(f"model {card.name}: weights in int4 need a GPU; on a CPU there is int8")
    if importlib.util.find_spec("torchao") is None:
        message = f"model {card.name}: weights in {card.quantize} need torchao"
        raise ConfigError(f"{message}: pip install 'twolane-server[quantized]'")


def quantize(card: ModelCard, weights: Weights, device: str) -> None:
    """Keep the weights as the card says, from now on; they are moved to the device one layer after the other."""
    ao: Any = importlib.import_module("torchao.quantization")
    if card.quantize == "int8":
        config = ao.Int8WeightOnlyConfig()
    else:
        # The one packing whose kernels are torch's own.
        config = ao.Int4WeightOnlyConfig(group_size=_INT4_GROUP, int4_packing_format="tile_packed_to_4d")
    module: Any = weights.module
    ao.quantize_(module.transformer, config, device=device)
