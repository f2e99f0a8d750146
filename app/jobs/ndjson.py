"""NDJSON uploads: a stream of blocks to a stream of items, one line at a time.

Owns the splitting of lines and what a line may hold. No more than a block and a line is in memory.
"""

import codecs
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson

from app.http.bodies import load_json, load_json_with_surrogates
from app.http.places import SMALL_BODY_BYTES, current_place
from app.jobs.items import ITEM_FORMS, BadItemError, read_item, refuse_surrogates
from tasks.errors import InvalidRequest
from tasks.jobs.chunking import Item

__all__ = ["is_blank", "read_items", "split_lines"]


_MOST_BLANK_LINES = 100_000


def split_lines(blocks: Iterator[bytes], limit_bytes: int) -> Iterator[bytes]:
    """Yield lines without their ends.

    Raises:
        InvalidRequest: a line is longer than the limit; its number is in the message.
    """
    begun, begun_bytes, number, place = [], 0, 0, current_place()
    for block in blocks:
        first, *lines = block.split(b"\n")
        begun.append(first)
        begun_bytes += len(first)
        for line in lines:
            number += 1
            _check_length(begun_bytes, number, limit_bytes)
            yield b"".join(begun)
            begun, begun_bytes = [line], len(line)
        # Checked before the next block joins it, so that an endless line is never whole in memory.
        _check_length(begun_bytes, number + 1, limit_bytes)
        # A long line takes memory as a body does.
        place.hold(begun_bytes if begun_bytes > SMALL_BODY_BYTES else 0)
    if begun_bytes:
        yield b"".join(begun)


def _check_length(line_bytes: int, number: int, limit_bytes: int) -> None:
    if line_bytes > limit_bytes:
        message = f"line {number} is longer than {limit_bytes} bytes: cut its text, or send it in a JSON body"
        raise InvalidRequest(message, param=f"line {number}")


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
    blank = 0
    for number, line in enumerate(lines, start=1):
        if is_blank(line):
            blank += 1
            if blank > _MOST_BLANK_LINES:
                raise InvalidRequest(f"more than {_MOST_BLANK_LINES} lines are blank", param=f"line {number}")
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
