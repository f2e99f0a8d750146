"""A corpus of any size as a row of jobs.

Owns the cut into parts, the keys that follow from their content, and the shapes of what comes back. Nothing is sent
here: `twolane.flow` keeps the jobs going.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from twolane.answers import Embedding, Embeddings, Job, ResultItem, Usage, errors_of, stack_vectors
from twolane.errors import ItemsFailed
from twolane.requests import Item, JobOptions, encode_items

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Block", "Corpus", "EmbeddedCorpus", "Part", "gather_embeddings"]

# Large enough that a device is not kept waiting for the next job, small enough for four of them with vectors in memory.
_PART_ITEMS = 8192
_PART_BYTES = 8 * 2**20
_WINDOW = 4


@dataclass(frozen=True, slots=True)
class Corpus:
    """How a corpus is cut and computed. The cut decides the keys: another one computes everything anew."""

    options: JobOptions
    part_items: int = _PART_ITEMS
    part_bytes: int = _PART_BYTES
    window: int = _WINDOW

    def cut(self, items: Iterable[Item]) -> Iterator["Part"]:
        """Yield the parts of a corpus."""
        number = start = size_bytes = 0
        lines: list[bytes] = []
        for item in items:
            line = encode_items([item])
            if lines and (len(lines) == self.part_items or size_bytes + len(line) > self.part_bytes):
                yield self.part(number, start, lines)
                number, start, size_bytes, lines = number + 1, start + len(lines), 0, []
            lines.append(line)
            size_bytes += len(line)
        if lines:
            yield self.part(number, start, lines)

    def part(self, number: int, start: int, lines: list[bytes]) -> "Part":
        """Return a part with its key."""
        body = b"".join(lines)
        described = msgspec.json.encode(self.options.as_query(), order="deterministic")
        key = hashlib.blake2b(described + b"\n" + body, digest_size=16).hexdigest()
        return Part(number, start, len(lines), body, key)


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring items of a corpus: `number` of the part, index of its first item, how many, their lines, the key."""

    number: int
    start: int
    items: int
    lines: bytes = field(repr=False)
    key: str

    def key_of_try(self, number: int) -> str:
        """Return the idempotency key of the first, second.. job of this part."""
        return self.key if number == 0 else f"{self.key}-{number}"


@dataclass(frozen=True, slots=True)
class EmbeddedCorpus:
    """How far a corpus has come: items by outcome, tokens, speed and the ID of the job that is waited for."""

    completed: int = 0
    failed: int = 0
    truncated: int = 0
    tokens: int = 0
    tokens_per_s: float | None = None
    job_id: str = ""

    def plus(self, job: Job) -> "EmbeddedCorpus":
        """Return the state with one more job in it."""
        return EmbeddedCorpus(
            completed=self.completed + job.counts.completed,
            failed=self.failed + job.counts.failed,
            truncated=self.truncated + job.counts.truncated,
            tokens=self.tokens + job.tokens,
            tokens_per_s=job.tokens_per_s,
            job_id=job.id,
        )


@dataclass(frozen=True, slots=True)
class Block:
    """The results of one part: the index of its first item in the corpus, its job, and its items."""

    start: int
    job: Job
    items: list[ResultItem] = field(repr=False)

    @property
    def errors(self) -> dict[int, tuple[str, str]]:
        """Code and message of failed items, by their index in the corpus."""
        return {self.start + index: error for index, error in errors_of(self.items).items()}

    def numpy(self) -> "NDArray[np.float32]":
        """Return the dense vectors, float32 of shape (n, d), NaN where an item failed."""
        return stack_vectors([item.embedding for item in self.items])

    def dicts(self) -> Iterator[dict[str, Any]]:
        """Yield the items as dictionaries with their index in the corpus."""
        for item in self.items:
            row: dict[str, Any] = {"index": self.start + item.index, "tokens": item.tokens, "truncated": item.truncated}
            if item.error is not None:
                yield {**row, "error": {"code": item.error.code, "message": item.error.message}}
            elif item.relevance_score is not None:
                yield {**row, "relevance_score": item.relevance_score}
            else:
                yield {**row, "embedding": item.vector}


def gather_embeddings(blocks: list[Block], model: str) -> Embeddings:
    """Return the blocks of a corpus as one answer.

    Raises:
        ItemsFailed: an item has no vector.
    """
    errors = {index: error for block in blocks for index, error in block.errors.items()}
    if errors:
        raise ItemsFailed(errors)
    data = [
        Embedding(block.start + item.index, item.embedding, item.sparse, item.colbert)
        for block in blocks
        for item in block.items
    ]
    tokens = sum(block.job.tokens for block in blocks)
    return Embeddings(data, model, Usage(tokens, tokens))
