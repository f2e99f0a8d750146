"""NDJSON uploads: a stream of blocks to a stream of items, one line at a time.

Owns the splitting of lines and what a line may hold. A block and a line are all that is in memory.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Self

import orjson
from pydantic import BaseModel

from tasks.chunking import Item
from tasks.errors import InvalidRequest
from tasks.jobs import Idempotency

__all__ = ["PayloadHash", "read_items", "split_lines"]


class PayloadHash:
    """Tells whether two requests with one idempotency key are the same; fed while the body is read."""

    def __init__(self, key: str | None, *parts: bytes, complete: bool = False) -> None:
        self.key = key
        # Whether nothing more is to come: else the hash is only known when the body was read.
        self.complete = complete
        self._hash = hashlib.blake2b(digest_size=16)
        for part in parts:
            self._hash.update(len(part).to_bytes(8, "little") + part)

    @classmethod
    def of_json(cls, key: str | None, body: BaseModel) -> Self:
        """Return the hash of a JSON body as it was understood: spaces and the order of fields do not count."""
        if key is None:
            return cls(None, complete=True)
        described = orjson.dumps(body.model_dump(warnings=False), option=orjson.OPT_SORT_KEYS)
        return cls(key, described, complete=True)

    def tap(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the blocks, counted in."""
        for block in blocks:
            self._hash.update(block)
            yield block

    def settle(self) -> Idempotency | None:
        """Return the key with the hash of all that was read so far; None without a key."""
        return Idempotency(self.key, self._hash.hexdigest()) if self.key is not None else None


def split_lines(blocks: Iterator[bytes], limit_bytes: int) -> Iterator[bytes]:
    """Yield lines without their ends.

    Raises:
        InvalidRequest: a line is longer than the limit; its number is told.
    """
    rest, number = b"", 0
    for block in blocks:
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        for line in lines:
            number += 1
            yield _check_length(line, number, limit_bytes)
        # Checked before the next block joins it, so that an endless line is never whole in memory.
        _check_length(rest, number + 1, limit_bytes)
    if rest:
        yield _check_length(rest, number + 1, limit_bytes)


def _check_length(line: bytes, number: int, limit_bytes: int) -> bytes:
    if len(line) > limit_bytes:
        raise InvalidRequest(f"line {number} is longer than {limit_bytes} bytes", param=f"line {number}")
    return line


def read_items(lines: Iterator[bytes], query: str | None, *, rerank: bool) -> Iterator[Item]:
    """Yield one item per line; blank lines are skipped but counted.

    Args:
        lines: the body.
        query: for rerank, what a line without a query of its own is compared with.
        rerank: whether items are pairs.

    Raises:
        InvalidRequest: a line is not a string or `{"id", "text"}`; its number is told.
    """
    parse: Callable[[Any], Item | None] = (lambda value: _pair(value, query)) if rerank else _text
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = parse(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            message = f"line {number} is not valid JSON in UTF-8: {error.msg}"
            raise InvalidRequest(message, param=f"line {number}") from None
        if item is None:
            wanted = 'a string, or {"id", "text"}' + (', with a "query" there or in the address' if rerank else "")
            raise InvalidRequest(f"line {number} must be {wanted}", param=f"line {number}")
        yield item


def _text(value: Any) -> Item | None:
    if isinstance(value, str):
        return Item(value)
    if not isinstance(value, dict):
        return None
    text, name = value.get("text"), value.get("id")
    return Item(text, id=name) if isinstance(text, str) and isinstance(name, str | None) else None


def _pair(value: Any, query: str | None) -> Item | None:
    item = _text(value)
    own = value.get("query") if isinstance(value, dict) else None
    asked = query if own is None else own
    if item is None or not isinstance(asked, str):
        return None
    return Item(item.text, query=asked, id=item.id)
