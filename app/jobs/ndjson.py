"""NDJSON uploads: a stream of blocks to a stream of items, one line at a time.

Owns the splitting of lines and what a line may hold. No more than a block and a line is in memory.
"""

import codecs
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson

from app.http.bodies import load_json, load_json_with_surrogates
from app.jobs.items import ITEM_FORMS, BadItemError, read_item, refuse_surrogates
from tasks.errors import InvalidRequest
from tasks.jobs.chunking import Item

__all__ = ["is_blank", "read_items", "split_lines"]


def split_lines(blocks: Iterator[bytes], limit_bytes: int) -> Iterator[bytes]:
    """Yield lines without their ends.

    Raises:
        InvalidRequest: a line is longer than the limit; its number is in the message.
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

    An item whose text is not Unicode fails alone, see `app.jobs.items`.

    Args:
        lines: the body.
        query: for rerank, what a line without a query of its own is compared with.
        rerank: whether items are pairs.

    Raises:
        InvalidRequest: a line is no item; its number is in the message.
    """
    for number, line in enumerate(lines, start=1):
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
