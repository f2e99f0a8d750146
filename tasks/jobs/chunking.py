"""A corpus becomes chunks: cut by number of items, estimated tokens and bytes, while it is read.

Owns the cut and the estimate of tokens without a tokenizer. Pure: no connection, no setting read by itself.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

from config.settings import Settings
from tasks.jobs.job import ChunkInput, ChunkRecord

__all__ = ["ChunkLimits", "Item", "cut_chunks", "estimate_tokens"]

_CHARS_PER_TOKEN = 4
_SPECIAL_TOKENS = 2


def estimate_tokens(text: str, max_tokens: int) -> int:
    """Return about how many tokens a model with room for `max_tokens` reads of the text.

    Four letters of a plain script make a token; a character of three bytes (Chinese, Japanese, Korean) makes one by
    itself, one of two bytes (Cyrillic, Greek, Arabic) a good half.
    """
    chars = len(text)
    wide = 0.0 if text.isascii() else (_size_bytes(text) - chars) / 2
    tokens = math.ceil((chars - wide) / _CHARS_PER_TOKEN + wide) + _SPECIAL_TOKENS
    return max(1, min(tokens, max_tokens))


@dataclass(frozen=True, slots=True)
class Item:
    """One item as it was submitted: a text, for rerank with its query, and the caller's own id for it.

    Attributes:
        refused: why it fails without being computed; None: it is computed.
    """

    text: str
    query: str | None = None
    id: str | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """The most that one chunk holds; an item that is larger by itself makes a chunk of its own.

    Attributes:
        max_tokens: what the model reads of one item.
    """

    items: int
    tokens: int
    bytes: int
    max_tokens: int

    @classmethod
    def of(cls, settings: Settings, max_tokens: int) -> Self:
        """Return the limits of the settings for a model that reads `max_tokens` of an item."""
        return cls(settings.chunk_items, settings.chunk_tokens, settings.chunk_bytes, max_tokens)


def cut_chunks(
    items: Iterable[Item], limits: ChunkLimits, index: int = 0, start: int = 0
) -> Iterator[tuple[ChunkRecord, ChunkInput]]:
    """Cut the items into chunks in their order; holds no more than one chunk at a time.

    Args:
        items: the items.
        limits: of a chunk.
        index: number of the first chunk.
        start: number of the first item.
    """
    chunk = _Chunk()
    for item in items:
        tokens, size_bytes = _weigh(item, limits)
        if chunk.items and not chunk.fits(tokens, size_bytes, limits):
            yield chunk.finish(index, start)
            index, start, chunk = index + 1, start + len(chunk.items), _Chunk()
        chunk.add(item, tokens, size_bytes)
    if chunk.items:
        yield chunk.finish(index, start)


@dataclass(slots=True)
class _Chunk:
    items: list[Item] = field(default_factory=list)
    tokens: int = 0
    bytes: int = 0

    def fits(self, tokens: int, size_bytes: int, limits: ChunkLimits) -> bool:
        return (
            len(self.items) < limits.items
            and self.tokens + tokens <= limits.tokens
            and self.bytes + size_bytes <= limits.bytes
        )

    def add(self, item: Item, tokens: int, size_bytes: int) -> None:
        self.items.append(item)
        self.tokens += tokens
        self.bytes += size_bytes

    def finish(self, index: int, start: int) -> tuple[ChunkRecord, ChunkInput]:
        texts = [item.text for item in self.items]
        paired = any(item.query is not None for item in self.items)
        queries = [item.query or "" for item in self.items] if paired else None
        record = ChunkRecord(index, start, len(self.items), self.tokens)
        ids, refused = _column([item.id for item in self.items]), _column([item.refused for item in self.items])
        return record, ChunkInput(texts, queries, ids, refused)


def _column(values: list[str | None]) -> list[str | None] | None:
    return values if any(value is not None for value in values) else None


def _weigh(item: Item, limits: ChunkLimits) -> tuple[int, int]:
    tokens, size_bytes = estimate_tokens(item.text, limits.max_tokens), _size_bytes(item.text)
    size_bytes += _size_bytes(item.id or "")
    if item.query is not None:
        tokens = min(limits.max_tokens, tokens + estimate_tokens(item.query, limits.max_tokens))
        size_bytes += _size_bytes(item.query)
    return tokens, size_bytes


def _size_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
