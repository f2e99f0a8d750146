"""Clients that close their connection while they wait: their place is free long before the deadline, nothing runs for
them, and nobody else is taken for one of them."""

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.support.own_stack import OwnStack, opened_stack
from tests.support.polling import wait_until

# Linux answers on all of these; each is another client.
STAYING, LEAVING = "127.0.0.1", "127.0.0.2"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnStack]:
    # A worker that computes the poison ends, and nobody starts another.
    knobs = 'latency_ms = 3000, exit_on = "poison"'
    with opened_stack(tmp_path_factory.mktemp("hangups"), knobs=knobs, interactive_max_tokens="200") as running:
        running.start_web()
        running.start_worker()
        running.wait_until_ready()
        yield running


def send(stack: OwnStack, source: str, texts: list[str]) -> socket.socket:
    port = int(stack.url.rsplit(":", 1)[-1])
    connection = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0))
    body = json.dumps({"model": "fake", "input": texts}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def status_of(connection: socket.socket) -> bytes:
    with connection:
        return connection.recv(65_536)[9:12]


# Five texts are no small call here, so they travel in the list of large ones.
@pytest.mark.parametrize("texts", [1, 5])
def test_who_hangs_up_is_not_computed_and_others_are(stack: OwnStack, texts: int) -> None:
    before = stack.log().count(" 499 ")
    busy = send(stack, STAYING, ["busy"])
    time.sleep(1)  # else they would share its pass
    leaving = [send(stack, LEAVING, [f"poison {at}"] * texts) for at in range(6)]
    staying = send(stack, STAYING, ["patient"])
    time.sleep(0.5)  # else some would be gone before they are read
    for connection in leaving:
        connection.close()
    wait_until(lambda: stack.log().count(" 499 ") == before + len(leaving), 25)
    assert status_of(busy) == b"200"
    assert status_of(staying) == b"200"
    assert stack.workers[0].poll() is None
    with stack.redis() as redis:
        assert list(redis.scan_iter("twolane:lane:*:requests")) == []


def test_who_keeps_a_connection_open_and_waits_is_not_taken_for_gone(stack: OwnStack) -> None:
    """Idle connections, answered ones and ones that were just opened lie beside one that waits."""
    with httpx.Client(base_url=stack.url, timeout=30) as client:
        client.get("/livez").raise_for_status()
        waiting = [send(stack, STAYING, ["waiting"]) for _ in range(4)]
        client.get("/livez").raise_for_status()
        again = client.post("/v1/embeddings", json={"model": "fake", "input": "on a connection that was used before"})
        assert again.status_code == 200
        assert {status_of(connection) for connection in waiting} == {b"200"}
