"""How many tokens of a text a model reads. Owns that number, from the card, sentence-transformers and the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.catalog import ModelCard
from tasks.errors import ConfigError
from workers.models.folders.folder import read_json

__all__ = ["read_max_tokens"]

# Positions that RoBERTa-like models lose at the front: they count from the padding id + 1.
_OFFSET_POSITIONS = frozenset(
    ["camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl", "xmod"]
)
# Tokenizers without a limit say 1e30.
_NO_LIMIT = 10**9


def read_max_tokens(card: ModelCard, folder: Path, config: Mapping[str, Any], module: object) -> int:
    """Return the most tokens of a row, special tokens included.

    Args:
        card: its own number goes first.
        folder: of the transformer.
        config: its config.json.
        module: what sentence-transformers' file of the transformer says.

    Raises:
        ConfigError: the card asks for more positions than the weights have, or nobody says a number.
    """
    positions = _count_positions(config)
    if card.max_tokens:
        if positions is not None and card.max_tokens > positions:
            message = f"its card says max_tokens {card.max_tokens}, but it has {positions} positions"
            raise ConfigError(f"model {card.name}: {message}")
        return card.max_tokens
    tokenizer = read_json(card.name, folder / "tokenizer_config.json").get("model_max_length")
    stated = [module] if isinstance(module, int) and module > 0 else [tokenizer]
    limits = [int(one) for one in (*stated, positions) if isinstance(one, int | float) and 0 < one < _NO_LIMIT]
    if not limits:
        raise ConfigError(f"model {card.name}: {folder} says no length; say max_tokens in a card")
    return min(limits)


def _count_positions(config: Mapping[str, Any]) -> int | None:
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if not isinstance(positions, int) or positions <= 0:
        return None
    if config["model_type"] in _OFFSET_POSITIONS:
        positions -= int(config.get("pad_token_id") or 1) + 1
    return positions
