"""NDJSON uploads: a stream of blocks to a stream of items, one line at a time.

Owns the splitting of lines, what a line may hold, and the place that was reached, from which an upload can go on. A
block and the marks of one chunk are all that is in memory.
"""

import codecs
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Self

import orjson
from pydantic import BaseModel

from app.http.bodies import load_json, load_json_with_surrogates
from app.jobs.items import ITEM_FORMS, BadItemError, read_item, refuse_surrogates
from tasks.errors import IdempotencyMismatch, InvalidRequest
from tasks.jobs.chunking import Item
from tasks.jobs.model import Idempotency
from tasks.jobs.uploads import Position

__all__ = ["PayloadHash", "Trail", "is_blank", "read_items", "split_lines"]

# Takes lines and the number of lines before them.
Parse = Callable[[Iterator[bytes], int], Iterator[Item]]


class Trail:
    """Follows the lines of an upload: how far it was read, where each of the last items began, and a digest of it all.

    The digest chains line to line, so that it depends neither on blocks nor on chunks and can go on in another process.
    """

    def __init__(self) -> None:
        self.position = Position()
        self._before = self.position
        # Where each item began that was read and not asked for by `before`; the first of them has this number.
        self._marks: deque[Position] = deque()
        self._first = 0
        self._marking = False
        self._known: Position | None = None
        self._limit_bytes: int | None = None

    def mark(self) -> None:
        """Remember where items begin, for `before`; to be called before the first is read."""
        self._marking = True

    def resume(self, position: Position, items: int, *, resent: bool) -> None:
        """Begin behind a part that is stored already.

        Args:
            position: its end.
            items: how many items it has.
            resent: whether the body brings it once more: then it is compared and passed over.
        """
        self._first = items
        if resent:
            self._known = position
        else:
            self.position = position

    def read(self, blocks: Iterator[bytes], limit_bytes: int, parse: Parse) -> Iterator[Item]:
        """Yield the items of a body, with `parse` as `read_items` behind its first argument.

        Raises:
            InvalidRequest: a line is bad.
            IdempotencyMismatch: the part that is stored already reads otherwise now.
        """
        lines = self._follow(split_lines(self._count(blocks), limit_bytes, self.position.lines))
        if self._known is not None:
            for _ in range(self._known.lines):
                next(lines, None)
            if self.position.digest != self._known.digest:
                raise IdempotencyMismatch("this idempotency key was used before with another payload")
        for item in parse(lines, self.position.lines):
            if self._marking:
                self._marks.append(self._before)
            yield item

    def before(self, item: int) -> Position:
        """Return where the item of this number begins, or the end of what was read; numbers must not fall."""
        while self._marks and self._first < item:
            self._marks.popleft()
            self._first += 1
        return self._marks[0] if self._marks else self._end()

    def _end(self) -> Position:
        """The last line may lack its end."""
        offset_bytes = self.position.offset_bytes
        return self.position._replace(offset_bytes=min(offset_bytes, self._limit_bytes or offset_bytes))

    def _count(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        self._limit_bytes = self.position.offset_bytes
        for block in blocks:
            self._limit_bytes += len(block)
            yield block

    def _follow(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        for line in lines:
            self._before = offset_bytes, number, digest = self.position
            digest = hashlib.blake2b(digest + line, digest_size=16).digest()
            self.position = Position(offset_bytes + len(line) + 1, number + 1, digest)
            yield line


class PayloadHash:
    """Tells whether two requests with one idempotency key are the same.

    Args:
        key: the key, if there is one.
        parts: what the request says besides its lines.
        trail: of its lines; None: there are none.
    """

    def __init__(self, key: str | None, *parts: bytes, trail: Trail | None = None) -> None:
        self.key = key
        # Whether nothing more is to come: else the hash is only known when the body was read.
        self.complete = trail is None
        self.trail = trail or Trail()
        self._hash = hashlib.blake2b(digest_size=16)
        for part in parts:
            self._hash.update(len(part).to_bytes(8, "little") + part)

    @classmethod
    def of_json(cls, key: str | None, body: BaseModel) -> Self:
        """Return the hash of a JSON body as it was understood: spaces and the order of fields do not count."""
        if key is None:
            return cls(None)
        described = orjson.dumps(body.model_dump(warnings=False), option=orjson.OPT_SORT_KEYS)
        return cls(key, described)

    @property
    def parameters(self) -> str:
        """The hash of all but the lines."""
        return self._hash.hexdigest()

    def settle(self) -> Idempotency | None:
        """Return the key with the hash of all that was read so far; None without a key."""
        if self.key is None:
            return None
        whole = self._hash.copy()
        whole.update(self.trail.position.digest)
        return Idempotency(self.key, whole.hexdigest())


def split_lines(blocks: Iterator[bytes], limit_bytes: int, before: int = 0) -> Iterator[bytes]:
    """Yield lines without their ends; `before` says how many lines came earlier.

    Raises:
        InvalidRequest: a line is longer than the limit; its number is told.
    """
    rest, number = b"", before
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


def read_items(lines: Iterator[bytes], query: str | None, *, rerank: bool, before: int = 0) -> Iterator[Item]:
    """Yield one item per line; blank lines are skipped but counted.

    An item whose text is not Unicode fails alone, see `app.jobs.items`.

    Args:
        lines: the body.
        query: for rerank, what a line without a query of its own is compared with.
        rerank: whether items are pairs.
        before: how many lines came earlier.

    Raises:
        InvalidRequest: a line is no item; its number is told.
    """
    for number, line in enumerate(lines, start=before + 1):
        if is_blank(line):
            continue
        place = f"line {number}"
        value, whole = _load_line(line, place)
        try:
            item = _pair(value, query) if rerank else read_item(value)
        except BadItemError as error:
            raise InvalidRequest(f"{place} {error}", param=place) from None
        yield item if whole else refuse_surrogates(item, place)


def _load_line(line: bytes, place: str) -> tuple[Any, bool]:
    """Return the value of a line, and whether it is Unicode throughout."""
    try:
        return load_json(line), True
    except orjson.JSONDecodeError as error:
        try:
            return load_json_with_surrogates(line), False
        except ValueError:
            message = f"{place} is not valid JSON in UTF-8: {error.msg}"
            raise InvalidRequest(message, param=place) from None


def is_blank(line: bytes) -> bool:
    """Tell whether a line holds nothing; a byte order mark is nothing."""
    return not line.removeprefix(codecs.BOM_UTF8).strip()


def _pair(value: Any, query: str | None) -> Item:
    item = read_item(value)
    own = value.get("query") if isinstance(value, dict) else None
    asked = query if own is None else own
    if not isinstance(asked, str):
        raise BadItemError(f"must be {ITEM_FORMS}, with a `query` there or in the address")
    return replace(item, query=asked)
