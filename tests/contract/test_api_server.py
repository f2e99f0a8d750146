"""The real web process: granian and our app, as `python -m app` runs them."""

import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stack.embedded_redis import EmbeddedServer
from tests.support.polling import wait_until
from tests.support.web_process import Web, fresh_web

ROOT = Path(__file__).parents[2]
LINE = json.dumps({"id": "x", "text": "a passage of some length " * 12}).encode() + b"\n"
BLOCK = LINE * 200
HEAD = b"POST /v1/jobs?model=fake HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"


@pytest.fixture(scope="module")
def web(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with fresh_web(
        server.url, tmp_path_factory.mktemp("web"), TWOLANE_MAX_BODY_BYTES="1000000", TWOLANE_MAX_TEXT_CHARS="40000"
    ) as running:
        yield running


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def answer_of(connection: socket.socket) -> tuple[int, Any]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def test_an_upload_without_a_length_is_taken_when_it_is_complete(web: Web) -> None:
    with web.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(BLOCK) + chunk(BLOCK) + b"0\r\n\r\n")
        status, job = answer_of(connection)
    assert (status, job["counts"]["total"]) == (202, 400)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_an_upload_whose_sender_goes_away_leaves_nothing_stored(web: Web, framing: str, *, reset: bool) -> None:
    """The cut is between two lines, where what came looks like a complete corpus."""
    known = web.job_ids()
    announced = b"Transfer-Encoding: chunked" if framing == "chunked" else b"Content-Length: 90000000"
    with web.connect() as connection:
        connection.sendall(HEAD + announced + b"\r\n\r\n")
        for _ in range(10):
            connection.sendall(chunk(BLOCK) if framing == "chunked" else BLOCK)
        _wait_until(lambda: bool(web.job_ids() - known))  # some of it is stored by now
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    _wait_until(lambda: web.job_ids() == known)
    assert web.get("/v1/jobs?limit=1")["data"][0]["id"].encode() in known


def test_a_large_upload_is_never_whole_in_memory(web: Web) -> None:
    """The issue's bound is 64 MB for 200,000 lines; here 60,000 lines of 20 MB, and half of it would be too much."""
    process = web.worker()
    with web.connect() as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        before = peak = process.memory_info().rss
        for _ in range(300):
            connection.sendall(chunk(BLOCK))
            peak = max(peak, process.memory_info().rss)
        connection.sendall(b"0\r\n\r\n")
        status, job = answer_of(connection)
    assert (status, job["counts"]["total"]) == (202, 60_000)
    assert peak - before < 10_000_000


def test_a_body_over_the_limit_is_answered_while_it_is_still_being_sent(web: Web) -> None:
    with web.connect() as connection:
        connection.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000000\r\n\r\n" + b" " * 1000
        )
        status, body = answer_of(connection)
    assert (status, body["error"]["code"]) == (413, "request_too_large")


def test_bodies_that_never_end_leave_threads_to_small_calls(server: EmbeddedServer, tmp_path: Path) -> None:
    """Sixteen threads: two of them read large bodies, one a body of unknown length."""
    web = Web(server.url, tmp_path, TWOLANE_WEB_THREADS="16")
    with contextlib.ExitStack() as stack:
        stack.callback(web.stop)
        slow = [stack.enter_context(web.connect()) for _ in range(3)]
        slow[0].sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(BLOCK))
        for sender in slow[1:]:
            sender.sendall(HEAD + b"Content-Length: 90000000\r\n\r\n" + BLOCK)
        time.sleep(1)  # a probe that comes before them would take the place of one
        wait_until(lambda: refused(web), 10, step_s=1)
        small = stack.enter_context(web.connect())
        small.sendall(HEAD + b"Prefer: respond-async\r\nContent-Length: %d\r\n\r\n" % len(LINE) + LINE)
        assert answer_of(small)[0] == 202
        slow[0].sendall(b"0\r\n\r\n")
        assert answer_of(slow[0])[0] == 202
        slow[1].close()
        wait_until(lambda: not refused(web), 10)


def refused(web: Web) -> bool:
    """Whether a large body is refused, with the time after which it may be sent again."""
    with web.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (2 * len(BLOCK)) + 2 * BLOCK)
        status, body = answer_of(connection)
    assert status in {202, 429}, body
    return status == 429


def test_a_connection_is_kept_between_requests(web: Web) -> None:
    ports = set()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)) as connection:
        for _ in range(3):
            connection.request("GET", "/livez")
            assert connection.getresponse().read() == b'{"status":"ok"}'
            ports.add(connection.sock.getsockname()[1])
    assert len(ports) == 1


def test_waiting_callers_leave_threads_for_everybody_else(server: EmbeddedServer, tmp_path: Path) -> None:
    web = Web(server.url, tmp_path, TWOLANE_WEB_THREADS="16")
    with contextlib.ExitStack() as stack:
        stack.callback(web.stop)
        connection = stack.enter_context(web.connect())
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (2 * len(BLOCK)) + 2 * BLOCK)
        job_id = answer_of(connection)[1]["id"]
        request = f"GET /v1/jobs/{job_id} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=30\r\n\r\n".encode()
        for _ in range(20):
            stack.enter_context(web.connect()).sendall(request)
        assert web.get("/livez") == {"status": "ok"}


def test_the_web_process_holds_no_model_library(web: Web) -> None:
    loaded = {Path(mapped.path).name for mapped in web.worker().memory_maps()}
    assert not {name for name in loaded if "torch" in name or "openvino" in name}
    assert web.worker().memory_info().rss < 120 * 2**20


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_by_itself_and_leaves_no_process(server: EmbeddedServer, tmp_path: Path, how: signal.Signals) -> None:
    web = Web(server.url, tmp_path)
    children = psutil.Process(web.process.pid).children(recursive=True)
    assert web.stop(how) == 0
    assert [child for child in children if child.is_running()] == []


def test_without_keys_it_refuses_an_address_that_others_can_reach(server: EmbeddedServer, tmp_path: Path) -> None:
    environment = {**os.environ, "TWOLANE_HOST": "0.0.0.0", "REDIS_URL": server.url, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "app"], cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert b"TWOLANE_KEYS_FILE" in done.stderr


def test_a_stop_while_the_app_is_being_built_is_obeyed_at_once(server: EmbeddedServer, tmp_path: Path) -> None:
    environment = {**os.environ, "TWOLANE_PORT": "0", "REDIS_URL": server.url, "PYTHONPATH": str(ROOT)}
    # Longer than the test waits: a process that has not heard of the stop would be killed after it.
    environment |= {"TWOLANE_WEB_STOP_S": "300", "TWOLANE_MODELS": "fake"}
    with subprocess.Popen([sys.executable, "-m", "app"], cwd=tmp_path, env=environment) as process:
        _wait_until(lambda: psutil.Process(process.pid).children() != [])
        process.terminate()
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()


def _wait_until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline_s, "it did not come to that"
        time.sleep(0.02)


def test_every_request_has_its_line_in_the_log_when_the_server_has_stopped(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    with fresh_web(server.url, tmp_path) as running:
        for _ in range(100):
            running.get("/v1/models")
    assert running.log.count(b"GET /v1/models 200") == 100
