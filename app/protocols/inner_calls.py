"""Calls of the app from inside its process: what another protocol asks is answered as the same request over HTTP is.

Owns the WSGI environment of such a call. Keys, limits, places of threads, validation and errors are those of the app,
and small calls take its short way without Flask; no socket and no HTTP is between.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from flask import Flask

__all__ = ["InnerAnswer", "InnerCalls"]

_STREAMS = ("text/event-stream", "application/x-ndjson")


class InnerAnswer:
    """The answer to one call.

    Attributes:
        status: of HTTP.
        headers: by their names in lower case.
    """

    def __init__(self, status: int, headers: Mapping[str, str], pieces: Iterable[bytes]) -> None:
        self.status, self.headers = status, headers
        self._pieces = pieces

    @property
    def is_stream(self) -> bool:
        """Whether it comes line by line."""
        return self.headers.get("content-type", "").startswith(_STREAMS)

    def read(self) -> bytes:
        """Return the whole body."""
        try:
            return b"".join(self._pieces)
        finally:
            self.close()

    def values(self, wanted: Callable[[], bool]) -> Iterator[bytes]:
        """Yield the JSON values of a stream, lines of NDJSON or the data of events, as long as they are wanted.

        That is asked at each line, also at those that are sent while nothing comes.
        """
        as_events = self.headers.get("content-type", "").startswith("text/event-stream")
        try:
            for line in _split(self._pieces):
                if not wanted():
                    return
                if as_events:
                    name, _, line = line.partition(b": ")  # noqa: PLW2901 - what the line holds
                    if name != b"data":
                        continue
                if line:
                    yield line
        finally:
            self.close()

    def close(self) -> None:
        """Give the request's place back. Safe to call twice."""
        if close := getattr(self._pieces, "close", None):
            close()


class InnerCalls:
    """Calls an app.

    Args:
        app: the app.
        scheme: names the protocol in the log, as `SERVER_SOFTWARE` does for web servers.
    """

    def __init__(self, app: Flask, scheme: str) -> None:
        self._app = app
        self._common = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "0",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_SOFTWARE": scheme,
            "HTTP_HOST": "localhost",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
        }

    def call(
        self, method: str, address: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> InnerAnswer:
        """Return the answer to a request.

        Args:
            method: of HTTP.
            address: path and query, percent-encoded.
            body: JSON, or nothing.
            headers: by name.
        """
        path, _, query = address.partition("?")
        environ: dict[str, Any] = {
            **self._common,
            "REQUEST_METHOD": method,
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": "application/json" if body else "",
            "wsgi.input": io.BytesIO(body),
        }
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in (headers or {}).items()}
        begun: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(status: str, fields: list[tuple[str, str]], _: Any = None) -> Any:
            begun[:] = [(status, fields)]
            return lambda _: None

        pieces = self._app.wsgi_app(environ, start_response)
        status, fields = begun[0]
        return InnerAnswer(int(status.split(" ", 1)[0]), {name.lower(): value for name, value in fields}, pieces)


def _split(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest:
        yield rest
