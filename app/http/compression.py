"""Answers packed as zstd or gzip, when the caller asks for it and it pays.

Owns the choice of the packing and the packing of streams. Text only: vectors as bytes gain under 8%, and a packed npy
file has no ranges. Small answers stay plain: most HTTP libraries ask for gzip without being told to, and one vector
would wait for it longer than it saves on the way.
"""

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import zstandard
from flask import Flask, Response, request

__all__ = ["install_compression"]

_LEAST_BYTES = 32 * 1024
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_TEXTS = frozenset({"application/json", "application/x-ndjson", "text/html", "text/css", "text/javascript"})


class _Packer(Protocol):
    """What both libraries offer."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def install_compression(app: Flask) -> None:
    """Pack the answers of this app for callers that take it."""
    app.after_request(_pack)


def _pack(response: Response) -> Response:
    if (response.mimetype or "") not in _TEXTS or response.content_encoding:
        return response
    # Small calls come by the hundred a second: what they need not be asked, they are not.
    if "Vary" in response.headers:
        response.vary.add("Accept-Encoding")
    else:
        response.headers["Vary"] = "Accept-Encoding"
    streams = response.is_streamed and "Content-Length" not in response.headers
    if not streams and (response.content_length or 0) < _LEAST_BYTES:
        return response
    packing = _choose()
    if packing is None or request.method == "HEAD" or response.status_code == 206:
        return response
    if streams:
        response.response = _pack_stream(response.response, _open_packer(packing))
    elif not response.direct_passthrough:
        packer = _open_packer(packing)
        response.set_data(packer.compress(response.get_data()) + packer.flush())
    else:
        return response
    response.headers["Content-Encoding"] = packing
    return response


def _choose() -> str | None:
    """Return the best packing that the caller takes; `*` alone is not taken for a wish."""
    wishes = request.accept_encodings
    return next((name for name in ("zstd", "gzip") if name in wishes.values() and wishes[name] > 0), None)


def _open_packer(packing: str) -> _Packer:
    if packing == "zstd":
        return zstandard.ZstdCompressor(level=1).compressobj()
    return zlib.compressobj(1, zlib.DEFLATED, _GZIP_WINDOW)


def _pack_stream(pieces: Iterable[Any], packer: _Packer) -> Iterator[bytes]:
    for piece in pieces:
        if packed := packer.compress(piece):
            yield packed
    yield packer.flush()
