"""A stream of checked rows as parts: what is sent, together with what is kept of the same rows.

Owns the cut, which is that of `twolane.corpus` and depends on the rows alone, and the digest of a part's IDs and texts.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from twolane.corpus import Corpus, Part
from twolane.requests import Item, encode_items
from twolane.transfer.arrow import load

__all__ = ["Portion", "cut_rows"]


@dataclass(frozen=True, slots=True)
class Portion:
    """One part and its rows, an Arrow table with as many rows as the part has items."""

    part: Part
    rows: Any = field(repr=False)

    @property
    def digest(self) -> bytes:
        """A digest of the texts, the options and the IDs."""
        ids = encode_items(map(str, self.rows.column("id").to_pylist()))
        return hashlib.blake2b(self.part.key.encode() + ids, digest_size=16).digest()


def cut_rows(batches: Iterable[Any], corpus: Corpus) -> Iterator[Portion]:
    """Yield the portions of a corpus; at most one of them and a batch are in memory."""
    number = start = size_bytes = 0
    lines: list[bytes] = []
    slices: list[Any] = []
    for batch in batches:
        taken = 0
        for position, item in enumerate(_items(batch)):
            line = encode_items([item])
            if lines and (len(lines) == corpus.part_items or size_bytes + len(line) > corpus.part_bytes):
                slices.append(batch.slice(taken, position - taken))
                yield _close(corpus, number, start, lines, slices)
                number, start, size_bytes, taken = number + 1, start + len(lines), 0, position
                lines, slices = [], []
            lines.append(line)
            size_bytes += len(line)
        slices.append(batch.slice(taken))
    if lines:
        yield _close(corpus, number, start, lines, slices)


def _items(batch: Any) -> Iterator[Item]:
    texts = batch.column("text").to_pylist()
    if "query" not in batch.schema.names:
        return iter(texts)
    queries = batch.column("query").to_pylist()
    return ({"text": text, "query": query} for text, query in zip(texts, queries, strict=True))


def _close(corpus: Corpus, number: int, start: int, lines: list[bytes], slices: list[Any]) -> Portion:
    rows = load("pyarrow").Table.from_batches(slices).combine_chunks()
    return Portion(corpus.part(number, start, lines), rows)
