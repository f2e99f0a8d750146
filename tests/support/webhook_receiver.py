"""A receiver of webhooks for tests: a real HTTP server that keeps what it got and answers what it is told."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

from app.webhooks.signing import sign

__all__ = ["Receiver", "receiving"]


@dataclass
class Receiver:
    """What came in, and the answers to the next calls; after these 204."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    calls: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def wait_for(self, calls: int, within_s: float = 20.0) -> list[tuple[dict[str, str], bytes]]:
        until_s = time.monotonic() + within_s
        while len(self.calls) < calls:
            assert time.monotonic() < until_s, f"{len(self.calls)} of {calls} calls came"
            time.sleep(0.02)
        return self.calls

    def read(self, secret: str, call: int = 0) -> dict[str, Any]:
        """The body of a call whose signature is right."""
        headers, body = self.calls[call]
        timestamp_s = int(headers["webhook-timestamp"])
        assert abs(timestamp_s - time.time()) < 300
        assert headers["webhook-signature"] == sign(secret, headers["webhook-id"], timestamp_s, body)
        message: dict[str, Any] = orjson.loads(body)
        return message


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port of this machine. `hold` cleared lets callers wait for their answer."""
    receiver = Receiver()
    receiver.hold.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.calls.append(({name.lower(): value for name, value in self.headers.items()}, body))
            receiver.hold.wait(30)
            status = receiver.answers.pop(0) if receiver.answers else 204
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        receiver.url = f"http://127.0.0.1:{server.server_port}/hook?a=b"
        try:
            yield receiver
        finally:
            receiver.hold.set()
            server.shutdown()
            thread.join()
