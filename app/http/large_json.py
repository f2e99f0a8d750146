"""Large JSON bodies: what they would become in memory is bounded before they are parsed, one at a time.

Owns the count of values and the parsing that makes no objects of what a schema ignores (msgspec skips it: 6 MB of `[]`
take 28 ms and no memory, where other parsers took seconds and a gigabyte). Small bodies need none of this.
"""

import codecs
import functools
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import msgspec
import numpy as np
import orjson
from pydantic import BaseModel

__all__ = ["VALUE_BYTES", "count_values", "parse_fields"]

# About what a number, a string or a container takes beside its own bytes.
VALUE_BYTES = 48
_BLOCK_BYTES = 2**20
_QUOTE, _STRUCTURAL = ord('"'), tuple(map(ord, ",[{"))
_one_at_a_time = threading.Lock()


def count_values(body: bytes, enough: int) -> int:
    """Return how many values a JSON text has: members, items and containers, none of them inside of strings.

    Args:
        body: the text.
        enough: up to this the count may be too high, by what stands in strings; that is far cheaper to find out.
    """
    highest = sum(_count_structural(block) for block in _blocks(body))
    if highest <= enough:
        return highest
    with _one_at_a_time:
        # Without escapes every quote opens or closes a string.
        plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
        count, in_string = 0, np.uint8(0)
        for block in _blocks(plain):
            quotes = np.cumsum(block == _QUOTE, dtype=np.uint8) + in_string
            in_string = quotes[-1]
            count += _count_structural(block[(quotes & 1) == 0])
        return count


def parse_fields(body: bytes, model: type[BaseModel] | None) -> Any:
    """Parse a JSON object; only the fields that the model reads become objects.

    Args:
        body: the text.
        model: a schema that lists the fields of other names that it reads, too, as `spelled`; None or another one: all.

    Raises:
        orjson.JSONDecodeError: it is not JSON in UTF-8.
    """
    text, decoder = body.removeprefix(codecs.BOM_UTF8), _decoder(model) if model is not None else None
    with _one_at_a_time, _no_collection():
        try:
            if decoder is not None:
                return decoder.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # The other parser says what is wrong, as it does for small bodies.
            return orjson.loads(text)
        return orjson.loads(text)


@functools.cache
def _decoder(model: type[BaseModel]) -> "msgspec.json.Decoder[Any] | None":
    spelled: frozenset[str] | None = getattr(model, "spelled", None)
    if spelled is None:
        return None
    names = {field.alias or name for name, field in model.model_fields.items()} | spelled
    return msgspec.json.Decoder(TypedDict("Fields", dict.fromkeys(sorted(names), Any), total=False))  # type: ignore[operator] # its names are known only now


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from walking through millions of new objects again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _blocks(body: bytes) -> Iterator[Any]:
    whole = np.frombuffer(body, np.uint8)
    return (whole[start : start + _BLOCK_BYTES] for start in range(0, len(whole), _BLOCK_BYTES))


def _count_structural(block: Any) -> int:
    return sum(int(np.count_nonzero(block == character)) for character in _STRUCTURAL)
