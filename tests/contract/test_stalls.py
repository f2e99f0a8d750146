"""A body that stands still, on real connections of this process, without a web server in between."""

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.http.stalls import Body, StallWatch
from tasks.errors import BodyTooSlow

ANY_PORT = ("127.0.0.1", 0)


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


def environ_of(listener: socket.socket) -> dict[str, Any]:
    return {
        "SERVER_SOFTWARE": "Granian",
        "SERVER_PORT": str(listener.getsockname()[1]),
        "REMOTE_ADDR": "127.0.0.1",
    }


def read_until_given_up(watch: StallWatch, environ: dict[str, Any], connection: socket.socket) -> None:
    with pytest.raises(BodyTooSlow):
        Body(watch, environ).read(Received(connection), 1000)


def test_the_reader_of_a_body_that_is_given_up_always_learns_why_it_ended() -> None:
    watch = StallWatch(timeout_s=0.02, bytes_per_s=0)
    # Many times: the end of the data may reach the reader before the watch says a word more.
    for _ in range(60):
        with socket.create_server(ANY_PORT) as listener, connected(listener) as connection:
            read_until_given_up(watch, environ_of(listener), connection)


def test_bodies_that_stand_still_at_the_same_time_are_all_given_up() -> None:
    watch = StallWatch(timeout_s=0.1, bytes_per_s=0)
    with socket.create_server(ANY_PORT) as listener, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected(listener)) for _ in range(5)]
        with ThreadPoolExecutor(5) as readers:
            reads = [readers.submit(read_until_given_up, watch, environ_of(listener), each) for each in connections]
            try:
                for read in reads:
                    read.result(10)
            finally:
                for each in connections:
                    each.shutdown(socket.SHUT_RD)
