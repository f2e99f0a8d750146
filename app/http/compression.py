"""Answers compressed as zstd or gzip, when the caller asks for it and it pays, by Flask-Compress.

Owns which answers these are. Text only: vectors as bytes gain under 8%, and a compressed npy file has no ranges. Small
answers stay plain: most HTTP libraries accept gzip by default, and compressing one vector takes longer than it saves on
the way.
"""

from flask import Flask, Response, request
from flask_compress import Compress

__all__ = ["install_compression"]

_ALGORITHMS = ("zstd", "gzip")
_TEXTS = frozenset({"application/json", "application/x-ndjson", "text/html", "text/css", "text/javascript"})


def install_compression(app: Flask) -> None:
    """Compress the answers of this app for callers that take it."""
    app.config.update(
        COMPRESS_REGISTER=False,
        COMPRESS_MIMETYPES=list(_TEXTS),
        COMPRESS_MIN_SIZE=32 * 1024,
        COMPRESS_LEVEL=1,
        COMPRESS_ZSTD_LEVEL=1,
        COMPRESS_ALGORITHM=list(_ALGORITHMS),
        COMPRESS_ALGORITHM_STREAMING=list(_ALGORITHMS),
        # Routes that have an ETag answer conditional requests themselves.
        COMPRESS_EVALUATE_CONDITIONAL_REQUEST=False,
    )
    compress = Compress(app)

    @app.after_request
    def compress_text(response: Response) -> Response:
        if response.mimetype not in _TEXTS:
            return response
        # `*` alone is no wish: the library would take the first algorithm for it.
        wishes = request.accept_encodings
        named = any(name in wishes.values() and wishes[name] > 0 for name in _ALGORITHMS)
        if named and request.method != "HEAD" and response.status_code != 206:
            compressed: Response = compress.after_request(response)
            return compressed
        response.vary.add("Accept-Encoding")
        return response
