"""WebSocket: requests and answers of the HTTP API, many at once over one connection, told apart by their IDs.

Owns the messages. Clients send JSON objects `{"id", "path", "method", "body", "headers"}`; `method` is POST where there
is a `body`, else GET. The answer is `{"id", "status", "headers", "body"}`. What streams over HTTP (`"stream": true`, a
job's `/events`, `results?follow=true`) comes as `{"id", "status", "event"}` for each value, and ends with `{"id",
"status", "done": true}`. `{"id", "cancel": true}` ends a stream early. The key is in the handshake's headers. The app
decides what an answer is (`inner_calls`).
"""

import logging
import socket
import struct
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import orjson
from flask import Flask
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from app.access.browser_guard import BrowserGuard
from app.http.bodies import parse_json
from app.protocols.inner_calls import InnerAnswer, InnerCalls
from config.settings import Settings
from tasks.errors import InvalidRequest, PermissionDenied, TwolaneError

__all__ = ["PATH", "WebSocketServer"]

_log = logging.getLogger(__name__)

PATH = "/v1/stream"
# Requests of one connection that are answered at once; the next is read when one of them is done.
_AT_ONCE = 64
# Of a request's headers, those that mean something to the API; the key is that of the connection.
_HEADERS = frozenset({"prefer", "idempotency-key", "accept", "last-event-id", "x-request-id"})
_KEYS = ("authorization", "api-key")
# Of an answer's headers, those that its body does not say.
_SHOWN = ("x-request-id", "retry-after", "x-should-retry", "x-model-fingerprint", "x-truncated-items", "location")
# A client that reads nothing for so long is cut off.
_SEND_TIMEOUT = struct.pack("ll", 30, 0)


class WebSocketServer:
    """Serves an app over WebSocket, from `start()` to `stop()`.

    Args:
        app: the app.
        settings: address and limits.
    """

    def __init__(self, app: Flask, settings: Settings) -> None:
        self._calls = InnerCalls(app, "websocket")
        self._guard = BrowserGuard(settings) if settings.keys_file is None else None
        self._pool = ThreadPoolExecutor(settings.web_threads, thread_name_prefix="websocket")
        self._server: Server = serve(
            self._serve,
            settings.host,
            settings.websocket_port,
            process_request=self._admit,
            max_size=settings.max_body_bytes,
            compression=None,
            server_header=None,
        )
        self._thread = threading.Thread(target=self._server.serve_forever, name="websockets", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.socket.getsockname()[1])

    def start(self) -> None:
        """Accept connections from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Accept none any more; what is being answered ends with the process."""
        self._server.shutdown()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse a handshake for another path, and without keys that of a stranger's web page, which could read all."""
        if request.path.partition("?")[0] != PATH:
            return connection.respond(404, f"WebSocket connections are opened at {PATH}.\n")
        given = {
            f"HTTP_{name.upper()}": request.headers[name] for name in ("Host", "Origin") if name in request.headers
        }
        try:
            if self._guard is not None:
                self._guard.check({"REQUEST_METHOD": "POST", "PATH_INFO": PATH, **given})
        except PermissionDenied as error:
            return connection.respond(403, f"{error.message}\n")
        return None

    def _serve(self, connection: ServerConnection) -> None:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        _Session(connection, self._calls, self._pool).run()


@dataclass(frozen=True, slots=True)
class _Call:
    id: Any
    method: str
    address: str
    body: bytes
    headers: Mapping[str, str]
    cancelled: threading.Event = field(default_factory=threading.Event)


class _Session:
    """One connection."""

    def __init__(self, connection: ServerConnection, calls: InnerCalls, pool: ThreadPoolExecutor) -> None:
        self._connection, self._calls, self._pool = connection, calls, pool
        request = connection.request
        given = request.headers if request is not None else {}
        self._key = {name: given[name] for name in _KEYS if name in given}
        self._room = threading.Semaphore(_AT_ONCE)
        self._sending = threading.Lock()
        self._running: dict[bytes, _Call] = {}

    def run(self) -> None:
        try:
            for message in self._connection:
                self._take(message.encode("utf-8", "surrogatepass") if isinstance(message, str) else message)
        except ConnectionClosed:
            _log.debug("a WebSocket connection was lost")
        finally:
            for call in list(self._running.values()):
                call.cancelled.set()

    def _take(self, message: bytes) -> None:
        sent: Any = None
        try:
            value = parse_json(message)
            sent = value.get("id")
            if value.get("cancel") is True:
                self._cancel(sent)
                return
            call = self._read(value)
        except TwolaneError as error:
            self._send({"id": sent, "status": 400, "body": _problem(error.message, error.code)})
            return
        self._room.acquire()
        self._running[orjson.dumps(call.id)] = call
        self._pool.submit(self._answer, call)

    def _read(self, value: Mapping[str, Any]) -> _Call:
        sent, address, body = value.get("id"), value.get("path"), value.get("body")
        if not isinstance(sent, str | int) or isinstance(sent, bool):
            raise InvalidRequest("id: must be a string or a whole number, and is repeated in the answer", param="id")
        if orjson.dumps(sent) in self._running:
            raise InvalidRequest("id: a request with this ID is being answered", param="id")
        if not isinstance(address, str) or not address.isascii() or not address.startswith(("/v1/", "/v2/")):
            raise InvalidRequest("path: must be an address of the API, such as /v1/embeddings", param="path")
        method = value.get("method", "GET" if body is None else "POST")
        if method not in {"GET", "POST", "DELETE"}:
            raise InvalidRequest("method: must be GET, POST or DELETE", param="method")
        given = value.get("headers") or {}
        if not isinstance(given, dict) or not all(
            isinstance(part, str) and part.isprintable() for part in given.values()
        ):
            raise InvalidRequest("headers: must be an object of strings", param="headers")
        headers = {name.lower(): part for name, part in given.items() if name.lower() in _HEADERS}
        return _Call(sent, method, address, b"" if body is None else orjson.dumps(body), {**headers, **self._key})

    def _cancel(self, sent: Any) -> None:
        call = self._running.get(orjson.dumps(sent))
        if call is not None:
            call.cancelled.set()

    def _answer(self, call: _Call) -> None:
        try:
            answer = self._calls.call(call.method, call.address, call.body, call.headers)
            if answer.is_stream:
                self._send_stream(call, answer)
            else:
                self._send_whole(call, answer)
        except (ConnectionClosed, OSError):
            _log.debug("nobody reads an answer any more")
        except Exception:  # noqa: BLE001 - the edge of one request: its caller gets an answer
            _log.exception("a request over WebSocket failed")
            self._send({"id": call.id, "status": 500, "body": _problem("internal error", "internal_error")})
        finally:
            self._running.pop(orjson.dumps(call.id), None)
            self._room.release()

    def _send_whole(self, call: _Call, answer: InnerAnswer) -> None:
        body = answer.read()
        head = {"id": call.id, "status": answer.status, "headers": _shown(answer)}
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        # The body is JSON already and is put in as it is.
        self._send({**head, "body": orjson.Fragment(body) if is_json and body else body.decode("utf-8", "replace")})

    def _send_stream(self, call: _Call, answer: InnerAnswer) -> None:
        head = {"id": call.id, "status": answer.status}
        for value in answer.values(lambda: not call.cancelled.is_set()):
            self._send({**head, "event": orjson.Fragment(value)})
        self._send({**head, "done": True})

    def _send(self, value: Mapping[str, Any]) -> None:
        with self._sending:
            self._connection.send(orjson.dumps(value).decode())


def _shown(answer: InnerAnswer) -> dict[str, str]:
    return {name: answer.headers[name] for name in _SHOWN if name in answer.headers}


def _problem(message: str, code: str) -> dict[str, Any]:
    """Return an error in the shape that those of the app have."""
    kind = "server_error" if code == "internal_error" else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
