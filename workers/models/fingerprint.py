"""A fingerprint says what made a vector: weights, revision, tokenizer, pooling, precision and prompt.

Owns the hashing of a model folder. Two vectors with the same fingerprint may be compared with each other.
"""

import hashlib
from functools import lru_cache
from pathlib import Path

from config.catalog import ModelCard

__all__ = ["hash_files", "hash_weights", "make_fingerprint"]

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.pt")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "*.model")
_BLOCK_BYTES = 2**20


def make_fingerprint(card: ModelCard, folder: Path | None, pooling: str, dtype: str) -> str:
    """Return `<model slug>:<20 hex digits>`."""
    parts = [
        card.source,
        card.revision,
        hash_weights(folder) if folder else "",
        hash_files(folder, _TOKENIZER) if folder else "",
        pooling,
        str(card.normalize),
        dtype,
        str(card.max_tokens),
        card.query_instruction,
        card.query_instruction_format,
        # Scores of the two ways differ, and the cache knows them by the fingerprint.
        *([card.rerank_by] if card.rerank_by == "multi-vector" else []),
    ]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{card.slug}:{digest[:20]}"


@lru_cache(maxsize=64)
def hash_weights(folder: Path) -> str:
    """Return the sha256 over the names and bytes of the folder's weights and its config."""
    return hash_files(folder, (*_WEIGHTS, "config.json"))


def hash_files(folder: Path, patterns: tuple[str, ...]) -> str:
    """Return the sha256 over the names and bytes of the files that match, in order of their names."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
