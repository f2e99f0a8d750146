"""A fingerprint says what made a vector: weights, modules, tokenizer, pooling, prompts, precision, length, our code.

Owns the hashing of a model folder. Two vectors with the same fingerprint may be compared with each other; where the
weights came from does not matter, only their bytes.
"""

import hashlib
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import orjson

from config.catalog import ModelCard
from workers.models.folders.recognise import Recipe

__all__ = ["fingerprint_recipe", "hash_files", "hash_recipe", "make_fingerprint"]

# Counts up whenever our code makes other numbers from the same folder.
COMPUTING = 2
_TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
_BLOCK_BYTES = 2**20


def fingerprint_recipe(recipe: Recipe, dtype: str) -> str:
    """Return `<model slug>:<20 hex digits>` for a model that is computed in that precision."""
    return make_fingerprint(recipe.card, dtype, hash_recipe(recipe))


def make_fingerprint(card: ModelCard, dtype: str, made_by: str = "") -> str:
    """Return the same for a card; `made_by` is the hash of its recipe, where it has one."""
    parts = [
        str(COMPUTING),
        made_by or card.source,
        dtype,
        str(card.max_tokens),
        card.query_instruction,
        card.query_instruction_format,
        card.document_instruction,
        card.default_instruction,
        # Scores of two ways differ, and the cache knows them by the fingerprint.
        card.rerank_by or "",
    ]
    if card.job_input_type:
        # Jobs then get another prompt than calls that say no more.
        parts.append(f"jobs: {card.job_input_type}")
    return f"{card.slug}:{_digest(parts)[:20]}"


def hash_recipe(recipe: Recipe) -> str:
    """Return the sha256 over the files that make the model's numbers, and how they are put together."""
    parts = [
        _hash_once(recipe.transformer, ("config.json", *_weight_files(recipe.transformer))),
        _hash_once(recipe.transformer, _TOKENIZER),
        *(_hash_once(recipe.folder / step.path, _weight_files(recipe.folder / step.path)) for step in recipe.steps),
        _hash_once(recipe.folder, ("colbert_linear.pt", "sparse_linear.pt")) if recipe.card.extras else "",
        recipe.family,
        recipe.pooling,
        orjson.dumps([asdict(step) for step in recipe.steps]).decode(),
        str(recipe.lower_case),
    ]
    if recipe.pairs is not None:
        parts += [repr(recipe.pairs), _hash_once(recipe.transformer, ("chat_template*",))]
    if recipe.tokens is not None:
        parts.append(repr(recipe.tokens))
    return _digest(parts)


def hash_files(folder: Path, patterns: tuple[str, ...]) -> str:
    """Return the sha256 over the names and bytes of the files that match, in order of their names."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _hash_once(folder: Path, patterns: tuple[str, ...]) -> str:
    """Return `hash_files`, read once for as long as the files stay as they are: a model may be loaded anew."""
    found = [path.stat() for pattern in patterns for path in sorted(folder.glob(pattern))]
    return _hash_files(folder, patterns, tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in found))


@lru_cache(maxsize=64)
def _hash_files(folder: Path, patterns: tuple[str, ...], _: tuple[tuple[int, int, int], ...]) -> str:
    return hash_files(folder, patterns)


def _weight_files(folder: Path) -> tuple[str, ...]:
    """Return the patterns of the files that are loaded: where there are safetensors, nothing else is."""
    return ("*.safetensors",) if any(folder.glob("*.safetensors")) else ("pytorch_model*.bin",)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
