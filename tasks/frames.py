"""Arrays to bytes and back, on the wire and at rest: a JSON header and raw little-endian columns, nothing else.

Layout: 4 bytes little-endian length of the header, the header, then the columns one after another without padding. The
header's `columns` lists name, dtype and shape of each. No pickle: an untrusted frame can at worst be refused.
"""

import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

__all__ = ["FrameError", "pack", "peek", "unpack"]

_LENGTH = struct.Struct("<I")
_DTYPES: dict[str, np.dtype[Any]] = {
    "<f4": np.dtype("<f4"),
    "<f2": np.dtype("<f2"),
    "<i4": np.dtype("<i4"),
    "<i8": np.dtype("<i8"),
    "|b1": np.dtype("|b1"),
}


class FrameError(ValueError):
    """The bytes are not a frame."""


def pack(header: Mapping[str, Any], columns: Mapping[str, NDArray[Any]] | None = None) -> bytes:
    """Return one frame.

    Args:
        header: JSON values; the name `columns` is taken.
        columns: arrays of float32, float16, int32, int64 or bool, any shape.
    """
    arrays = {name: _little_endian(array) for name, array in (columns or {}).items()}
    table = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    head = orjson.dumps({**header, "columns": table})
    return b"".join([_LENGTH.pack(len(head)), head, *(array.tobytes() for array in arrays.values())])


def peek(frame: bytes | memoryview) -> dict[str, Any]:
    """Return the header alone, without touching the columns.

    Raises:
        FrameError: the bytes are not a frame.
    """
    return _split(frame)[0]


def unpack(frame: bytes | memoryview) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the header and the columns; the arrays are read-only views of the frame.

    Raises:
        FrameError: the bytes are not a frame.
    """
    header, body = _split(frame)
    columns: dict[str, NDArray[Any]] = {}
    offset = 0
    try:
        for name, code, shape in header.pop("columns"):
            dtype = _DTYPES[code]
            count = math.prod(shape)
            columns[name] = np.frombuffer(body, dtype, count, offset).reshape(shape)
            offset += count * dtype.itemsize
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError("the columns do not fit the header") from error
    if offset != len(body):
        raise FrameError("bytes are left over behind the last column")
    return header, columns


def _little_endian(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.str in _DTYPES and array.flags.c_contiguous:
        return array
    contiguous = np.ascontiguousarray(array)
    if contiguous.dtype.newbyteorder("<").str not in _DTYPES:
        raise FrameError(f"a frame holds no {contiguous.dtype}")
    return contiguous.astype(contiguous.dtype.newbyteorder("<"), copy=False).reshape(array.shape)


def _split(frame: bytes | memoryview) -> tuple[dict[str, Any], memoryview]:
    view = memoryview(frame)
    try:
        (length,) = _LENGTH.unpack_from(view)
        header = orjson.loads(view[_LENGTH.size : _LENGTH.size + length])
    except (struct.error, orjson.JSONDecodeError) as error:
        raise FrameError("the header is not readable") from error
    if not isinstance(header, dict) or "columns" not in header:
        raise FrameError("the header is not that of a frame")
    return header, view[_LENGTH.size + length :]
