"""Answers as bytes: JSON by orjson, straight from numpy rows, in one piece, compressed where it pays.

Owns which answers are compressed, as zstd or gzip by Flask-Compress, when the caller asks for it. Text only: vectors as
bytes gain under 8%, and a compressed npy file has no ranges. Small answers stay plain: most HTTP libraries accept gzip
by default, and compressing one vector takes longer than it saves on the way.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import orjson
from flask import Flask, Response, current_app, request
from flask_compress import Compress

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["WholeResponse", "compress_whole", "encode_json", "install_compression", "json_response", "live_stream"]

_COMPRESS = "twolane-compress"
_ALGORITHMS = ("zstd", "gzip")
_LEAST_BYTES = 32 * 1024
_TEXTS = frozenset({"application/json", "application/x-ndjson", "text/html", "text/css", "text/javascript"})


def encode_json(value: Any) -> bytes:
    """Return JSON; numpy arrays are written without a detour over Python numbers."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


class WholeResponse(Response):
    """An answer that goes to the web server in one piece, unless it is a stream."""

    def get_app_iter(self, environ: "WSGIEnvironment") -> Iterable[bytes]:
        """Return a list where the body is there: granian sends it with the head; what it iterates, piece by piece."""
        if not self.is_sequence or self.direct_passthrough or environ["REQUEST_METHOD"] == "HEAD":
            return super().get_app_iter(environ)
        pieces = list(self.iter_encoded())
        self.close()
        return pieces


def json_response(value: Any, status: int = 200) -> Response:
    """Return a JSON answer."""
    return WholeResponse(encode_json(value), status, mimetype="application/json")


def install_compression(app: Flask) -> None:
    """Compress the answers of this app for callers that take it."""
    app.config.update(
        COMPRESS_REGISTER=False,
        COMPRESS_MIMETYPES=list(_TEXTS),
        COMPRESS_MIN_SIZE=_LEAST_BYTES,
        COMPRESS_LEVEL=1,
        COMPRESS_ZSTD_LEVEL=1,
        COMPRESS_ALGORITHM=list(_ALGORITHMS),
        COMPRESS_ALGORITHM_STREAMING=list(_ALGORITHMS),
        # Routes that have an ETag answer conditional requests themselves.
        COMPRESS_EVALUATE_CONDITIONAL_REQUEST=False,
    )
    app.extensions[_COMPRESS] = Compress(app)
    app.after_request(_compress)


def compress_whole(app: Flask, environ: "WSGIEnvironment", response: Response) -> Response:
    """Compress an answer in JSON that was made outside of Flask, which is needed for a large one only."""
    if "HTTP_ACCEPT_ENCODING" in environ and (response.content_length or 0) >= _LEAST_BYTES:
        with app.request_context(environ):
            return _compress(response)
    response.headers["Vary"] = "Accept-Encoding"
    return response


def _compress(response: Response) -> Response:
    if response.mimetype not in _TEXTS:
        return response
    # `*` alone is no wish: the library would take the first algorithm for it.
    wishes = request.accept_encodings
    named = any(name in wishes.values() and wishes[name] > 0 for name in _ALGORITHMS)
    if named and request.method != "HEAD" and response.status_code != 206:
        compressed: Response = current_app.extensions[_COMPRESS].after_request(response)
        return compressed
    response.vary.add("Accept-Encoding")
    return response


def live_stream(pieces: Iterable[bytes], mimetype: str) -> Response:
    """Return an answer that is sent as it is made: nothing on the way keeps it or gathers it."""
    response = Response(pieces, mimetype=mimetype)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    return response
