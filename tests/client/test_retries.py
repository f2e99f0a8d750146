"""What is tried again, and when: a real HTTP server that answers by a script."""

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from twolane import ApiError, Twolane, UnexpectedAnswer

MODELS = b'{"object":"list","data":[{"id":"m"}]}'
BUSY = b'{"error":{"message":"full","type":"capacity","param":null,"code":"over_capacity"}}'
Answer = tuple[int, dict[str, str], bytes]


class Scripted(ThreadingHTTPServer):
    """Answers one line of the script per request, the last one for ever."""

    def __init__(self, *script: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = list(script)
        self.asked: list[tuple[float, dict[str, str]]] = []
        self.connections: set[int] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def do_GET(self) -> None:
        self.server.asked.append((time.monotonic(), dict(self.headers)))
        self.server.connections.add(self.client_address[1])
        script = self.server.script
        status, headers, body = script.pop(0) if len(script) > 1 else script[0]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@contextlib.contextmanager
def scripted(*script: Answer) -> Iterator[Scripted]:
    with Scripted(*script) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    with scripted((503, {"Retry-After": "1"}, BUSY), (200, {}, MODELS)) as server, Twolane(server.url) as client:
        assert client.models()[0].id == "m"
        (first_s, _), (second_s, _) = server.asked
    assert second_s - first_s >= 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 504])
def test_passing_failures_are_tried_again(status: int) -> None:
    with scripted((status, {}, b"<html>"), (200, {}, MODELS)) as server, Twolane(server.url) as client:
        assert client.models()[0].id == "m"
        assert len(server.asked) == 2


@pytest.mark.parametrize(("status", "headers"), [(400, {}), (404, {}), (422, {}), (409, {"x-should-retry": "false"})])
def test_lasting_failures_are_not(status: int, headers: dict[str, str]) -> None:
    with scripted((status, headers, BUSY)) as server, Twolane(server.url) as client:
        with pytest.raises(ApiError, match="full") as refused:
            client.models()
        assert len(server.asked) == 1
    assert (refused.value.status, refused.value.code) == (status, "over_capacity")


def test_the_last_failure_is_told_when_the_time_is_over() -> None:
    with scripted((503, {"Retry-After": "60"}, BUSY)) as server, Twolane(server.url, retry_for_s=5) as client:
        with pytest.raises(ApiError) as refused:
            client.models()
        assert len(server.asked) == 1
    assert refused.value.retry_after_s == 60


def test_the_key_is_sent_and_connections_are_kept() -> None:
    with scripted((200, {}, MODELS)) as server, Twolane(server.url, "tl-secret") as client:
        for _ in range(5):
            client.models()
        assert {headers["Authorization"] for _, headers in server.asked} == {"Bearer tl-secret"}
        assert len(server.connections) == 1


def test_what_is_no_twolane_server_is_recognised() -> None:
    with (
        scripted((200, {}, b"<html>hello</html>")) as server,
        Twolane(server.url) as client,
        pytest.raises(UnexpectedAnswer),
    ):
        client.models()
