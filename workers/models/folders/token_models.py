"""Models that give a vector for each token (ColBERT): markers, lengths, expansion of queries and tokens left out.

Owns the reading of such a folder, of sentence-transformers' MultiVectorEncoder or of PyLate, whose settings stand
elsewhere. Imports no device library; texts become ids in `token_tokenizer`.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.catalog import ModelCard
from tasks.errors import ConfigError
from workers.models.folders.folder import read_json
from workers.models.folders.modules import ModuleList

__all__ = ["TokenReading", "read_tokens"]

# ColBERT's length of a query, which PyLate leaves out where it is that.
_QUERY_TOKENS = 32
_PYLATE = ("query_prefix", "document_prefix", "query_length", "document_length", "skiplist_words", "do_query_expansion")


@dataclass(frozen=True, slots=True)
class TokenReading:
    """How queries and documents are read.

    Attributes:
        query: what stands before a query.
        document: likewise, a document.
        markers: of those, what is one token where the tokenizer has it as one.
        query_tokens: most tokens of a query, special ones included; 0: as many as the model reads.
        document_tokens: likewise, of a document.
        expand_to: queries are filled up to so many tokens; 0: they are not.
        expand_with: the token that fills; empty: the mask, else the end.
        attends: whether other tokens see those that fill.
        skipped: tokens that have no vector in documents.
        skips_in_queries: whether they have none in queries either.
    """

    query: str = ""
    document: str = ""
    markers: tuple[str, ...] = ()
    query_tokens: int = 0
    document_tokens: int = 0
    expand_to: int = 0
    expand_with: str = ""
    attends: bool = False
    skipped: tuple[str, ...] = ()
    skips_in_queries: bool = False


def read_tokens(
    card: ModelCard, folder: Path, stated: Mapping[str, Any], modules: ModuleList, text: Mapping[str, Any]
) -> TokenReading:
    """Return how the folder's model reads texts.

    Args:
        card: for its name.
        folder: the whole model.
        stated: config_sentence_transformers.json.
        modules: those of the folder.
        text: sentence-transformers' file of the transformer.

    Raises:
        ConfigError: something is set that is not supported.
    """
    mask = read_json(card.name, folder / modules.token_mask / "config.json") if modules.token_mask else {}
    if mask.get("keep_only_token_ids"):
        raise ConfigError(f"model {card.name}: it keeps the vectors of some tokens only, which is not supported")
    prefixes = {role: str(stated.get(f"{role}_prefix") or "") for role in ("query", "document")}
    prompts = {role: prefixes[role] + _prompt(stated, role).removeprefix(prefixes[role]) for role in prefixes}
    expansion = _read_expansion(card.name, stated, text)
    # PyLate's list, where it states none; sentence-transformers leaves out nothing by itself.
    default = string.punctuation if modules.token_mask is None else ""
    skipped = stated.get("skiplist_words") if modules.token_mask is None else mask.get("skiplist_words")
    tasks = mask.get("skiplist_tasks") or ["document"]
    fixed = expansion.get("strategy") == "fixed"
    query_tokens = expansion["length"] if fixed else _first(text, stated, "query_length")
    return TokenReading(
        query=prompts["query"],
        document=prompts["document"],
        markers=tuple(prefix for prefix in prefixes.values() if prefix),
        query_tokens=query_tokens,
        document_tokens=_first(text, stated, "document_length"),
        expand_to=expansion.get("length", 0),
        expand_with=expansion.get("token") or "",
        attends=bool(expansion.get("attend")),
        skipped=tuple(default if skipped is None else skipped),
        skips_in_queries="query" in tasks,
    )


def _prompt(stated: Mapping[str, Any], role: str) -> str:
    return str((stated.get("prompts") or {}).get(role) or "")


def _first(text: Mapping[str, Any], stated: Mapping[str, Any], key: str) -> int:
    return int(text.get(key) or stated.get(key) or 0)


def _read_expansion(name: str, stated: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """Return strategy, length, token and attend, in sentence-transformers' words; empty: queries are not expanded."""
    for place in (text, stated):
        if "query_expansion" in place:
            found = dict(place["query_expansion"] or {})
            if found and (found.get("strategy") not in {"fixed", "min"} or not isinstance(found.get("length"), int)):
                raise ConfigError(f"model {name}: it expands queries by {found}, which is not known")
            return found
    if not any(key in stated for key in _PYLATE) or stated.get("do_query_expansion") is False:
        return {}
    attends = stated.get("attend_to_expansion_tokens", stated.get("attend_to_mask_tokens"))
    return {"strategy": "fixed", "length": stated.get("query_length") or _QUERY_TOKENS, "attend": bool(attends)}
