"""What a client gets that speaks HTTP badly, or slowly: by raw sockets, against the real web process.

What granian's parser refuses never reaches the app: those answers are its own, without a body. docs/errors.md says so.
"""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from stack.embedded_redis import EmbeddedServer
from tests.support.web_process import Web, fresh_web

HOST = b"Host: localhost\r\n"
POST = b"POST /v1/embeddings HTTP/1.1\r\n" + HOST
UPLOAD = b"POST /v1/jobs?model=fake HTTP/1.1\r\n" + HOST + b"Content-Type: application/x-ndjson\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
LINES = b'"a line"\n' * 1000


@pytest.fixture(scope="module")
def web(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with fresh_web(server.url, tmp_path_factory.mktemp("web")) as running:
        yield running
    assert b"Traceback" not in running.log
    assert b"panicked" not in running.log


def exchange(web: Web, sent: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    with web.connect() as connection:
        # The server may have refused it before it has read all.
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        answer = bytearray()
        with contextlib.suppress(ConnectionError):
            while block := connection.recv(65_536):
                answer += block
    return bytes(answer)


def answer_of(connection: socket.socket) -> tuple[http.client.HTTPResponse, Any]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response, json.loads(response.read())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x00\x01\x02 garbage\r\n\r\n", b"400"),
        (b"GET /livez\r\n\r\n", b"400"),
        (b"G@T /livez HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
        (b"GET /livez HTTP/3.7\r\n" + HOST + b"\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nno colon here\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nHost : test\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nX: folded\r\n line\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\nX: a\x00b\r\n\r\n", b"400"),
        (b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", b"400"),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b"400"),
        (POST + b"Content-Length: -2\r\n\r\n{}", b"400"),
        (POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}", b"400"),
        (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", b"414"),
        (b"GET /livez HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % at for at in range(101)) + b"\r\n", b"431"),
    ],
)
def test_what_the_parser_refuses_has_a_bare_answer_and_the_next_request_is_served(
    web: Web, sent: bytes, status: bytes
) -> None:
    head, _, body = exchange(web, sent).partition(b"\r\n\r\n")
    assert head.split(b" ")[:2] == [b"HTTP/1.1", status]
    assert b"connection: close" in head
    assert body == b""
    assert web.get("/livez") == {"status": "ok"}


def test_a_head_that_is_too_long_is_refused(web: Web) -> None:
    head, _, body = exchange(web, b"GET /livez HTTP/1.1\r\nX: " + b"a" * 300_000 + b"\r\n\r\n").partition(b"\r\n\r\n")
    # The answer may be lost with the connection, since not all was read that was sent.
    assert head[:12] in {b"HTTP/1.1 431", b""}
    assert body == b""
    assert web.get("/livez") == {"status": "ok"}


def test_too_many_inputs_are_refused_before_they_are_looked_at(web: Web) -> None:
    sent = json.dumps({"model": "fake", "input": [[999_999_999]] * 2049}).encode()
    with web.connect() as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(sent) + sent)
        response, body = answer_of(connection)
    assert response.status == 400
    assert "at most 2048" in body["error"]["message"]


def test_another_protocol_is_hung_up_on(web: Web) -> None:
    assert exchange(web, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") == b""
    assert web.get("/livez") == {"status": "ok"}


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}XX\r\n",
        b"ffffffffffffffffff\r\n{}\r\n",
        b"1;" + b"x" * 100_000 + b"\r\n{\r\n",
    ],
)
def test_a_body_whose_chunks_are_broken_is_refused_in_the_envelope_and_ends_the_connection(
    web: Web, body: bytes
) -> None:
    head, _, answer = exchange(web, POST + CHUNKED + body).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"x-request-id: req_" in head
    assert json.loads(answer)["error"]["type"] == "invalid_request_error"


def test_length_and_chunks_together_do_not_smuggle_a_second_request(web: Web) -> None:
    inner = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
    answer = exchange(web, POST + b"Content-Length: 5\r\n" + CHUNKED + b"0\r\n\r\n" + inner)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b'{"status":"ok"}' not in answer


@pytest.mark.parametrize(
    "path", [b"/static/../../etc/passwd", b"/..%2f..%2fetc%2fpasswd", b"/docs/%2e%2e/%2e%2e/etc/passwd"]
)
def test_a_path_leads_to_no_file(web: Web, path: bytes) -> None:
    with web.connect() as connection:
        connection.sendall(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        response, body = answer_of(connection)
    assert (response.status, body["error"]["code"]) == (404, "route_not_found")
