"""From a model folder to a torch module that gives vectors or scores, through FlagEmbedding.

Owns what FlagEmbedding is trusted with: weights, tokenizer and pooling. Its `encode` and `compute_score` are never
called, since they run the longest batch twice. Owns neither device nor batching (the backends and the engine).
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.catalog import ModelCard
from tasks.errors import ConfigError
from workers.models.tokenizer import FastTokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["Weights", "load_weights", "read_pooling"]

# Positions that RoBERTa-like models lose at the front: they count from the padding id + 1.
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl"})

# The names of sentence-transformers, from which model folders come, and ours.
_POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last_token",
}


@dataclass(frozen=True, slots=True)
class Weights:
    """A model in memory, not yet bound to a device.

    Attributes:
        module: maps (input_ids, attention_mask, token_type_ids | None) of int64 (n, length) to float32 (n, d)
            vectors or (n,) scores in [0, 1].
        tokenizer: its tokenizer.
        pad_id: the id that fills rows up.
        reads_types: whether the model tells the texts of a pair apart by token types.
        dimension: length of a vector; None for scores.
        pooling: how a vector is made of the hidden states; empty for scores.
    """

    module: "torch.nn.Module"
    tokenizer: FastTokenizer
    pad_id: int
    reads_types: bool
    dimension: int | None
    pooling: str


def load_weights(card: ModelCard, folder: Path, dtype: str) -> Weights:
    """Load the model of `folder` on the CPU in the given precision (float32, bfloat16 or float16).

    Raises:
        ConfigError: card and folder contradict each other, or the folder cannot be loaded.
    """
    _stay_offline()
    from workers.models import families  # noqa: PLC0415 - this is where torch and FlagEmbedding come in

    pooling = "" if card.family == "cross-encoder" else read_pooling(card, folder)
    try:
        flag = families.load(card, folder, dtype, pooling)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"model {card.name}: cannot load {folder}: {error}") from error
    config = families.transformer(flag).config
    _check(card, config)
    pad_id = _pad_id(flag.tokenizer)
    return Weights(
        module=families.wrap(flag, card, pooling),
        tokenizer=FastTokenizer(_fast(card, flag.tokenizer), card.max_tokens, _fallback_id(flag.tokenizer, pad_id)),
        pad_id=pad_id,
        reads_types=card.family == "cross-encoder" and getattr(config, "type_vocab_size", 0) > 1,
        dimension=None if card.family == "cross-encoder" else config.hidden_size,
        pooling=pooling,
    )


def read_pooling(card: ModelCard, folder: Path) -> str:
    """Return cls, mean or last_token, from the card and the folder's `1_Pooling/config.json`.

    FlagEmbedding takes CLS for every encoder unless told otherwise, which gives wrong vectors for a model that
    means its tokens, without any error. So a pooling has to be stated, and two statements have to agree.

    Raises:
        ConfigError: nobody says how, or card and folder disagree.
    """
    stated = _folder_pooling(folder)
    if card.pooling and stated and card.pooling != stated:
        raise ConfigError(f"model {card.name}: its card says pooling {card.pooling}, {folder} says {stated}")
    pooling = card.pooling or stated
    if not pooling:
        raise ConfigError(f"model {card.name}: neither its card nor {folder}/1_Pooling/config.json says a pooling")
    if card.family == "decoder" and pooling != "last_token":
        raise ConfigError(f"model {card.name}: decoder models pool by last_token, not by {pooling}")
    return pooling


def _folder_pooling(folder: Path) -> str:
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return ""
    modes = json.loads(path.read_text("utf-8"))
    return next((name for key, name in _POOLING_MODES.items() if modes.get(key)), "")


def _check(card: ModelCard, config: Any) -> None:
    """Refuse a card that asks for more than the weights have, where the model would fail in the middle of a job."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        if config.model_type in _OFFSET_POSITIONS:
            positions -= config.pad_token_id + 1
        if card.max_tokens > positions:
            raise ConfigError(f"model {card.name}: max_tokens {card.max_tokens}, but it has {positions} positions")
    if card.family != "cross-encoder" and card.dimension not in {None, config.hidden_size}:
        raise ConfigError(f"model {card.name}: dimension {card.dimension}, but its vectors have {config.hidden_size}")


def _fast(card: ModelCard, tokenizer: Any) -> Any:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise ConfigError(f"model {card.name}: it has no fast tokenizer (tokenizer.json)")
    return fast


def _pad_id(tokenizer: Any) -> int:
    """Some decoders have no padding id of their own; any id will do there, since nothing attends to padding."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _fallback_id(tokenizer: Any, pad_id: int) -> int:
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else pad_id


def _stay_offline() -> None:
    """Keep the libraries from calling home: the folder is complete, and a worker's start must not hang on a hub."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "1")
    # Texts are tokenized in the threads that bring them; a pool of more threads would fight the device thread.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
