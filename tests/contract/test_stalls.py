"""A body that stands still, on real connections of this process, without a web server in between."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from app.stalls import Body, StallWatch
from tasks.errors import BodyTooSlow


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@contextlib.contextmanager
def connected(listener: socket.socket) -> Iterator[socket.socket]:
    """A connection as the server holds it; its client sends nothing."""
    with socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            yield connection


class Received:
    """What a connection brings, as `wsgi.input` gives it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def read(self, size: int, /) -> bytes:
        return self._connection.recv(size)


def test_the_reader_of_a_body_that_is_given_up_always_learns_why_it_ended(listener: socket.socket) -> None:
    environ: dict[str, Any] = {
        "SERVER_SOFTWARE": "Granian",
        "SERVER_PORT": str(listener.getsockname()[1]),
        "REMOTE_ADDR": "127.0.0.1",
    }
    watch = StallWatch(timeout_s=0.02, bytes_per_s=0)
    # Many times: the end of the data may reach the reader before the watch says a word more.
    for _ in range(60):
        with connected(listener) as connection, pytest.raises(BodyTooSlow):
            Body(watch, environ).read(Received(connection), 1000)
