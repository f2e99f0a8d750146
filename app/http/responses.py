"""Answers as bytes: JSON by orjson, straight from numpy rows, handed to the web server in one piece."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import orjson
from flask import Response

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["WholeResponse", "encode_json", "json_response"]


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
