"""Non-blocking HTTP/1.1 connections, as few instructions per answer as Python allows.

Owns sockets and the recognition of where an answer ends; the answer's body is counted, not read.
"""

import contextlib
import selectors
import socket
import time
from dataclasses import dataclass, field

__all__ = ["Answer", "Pool"]

_READ_BYTES = 2**18
_LOST = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: when it was complete (`time.perf_counter()`), after how long, its status (0: lost), its size."""

    at_s: float
    latency_ms: float
    status: int
    body_bytes: int


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    since_s: float = 0.0
    received: bytearray = field(default_factory=bytearray)
    # Where the answer ends in `received`; -1 until the head is complete, -2 for a chunked body.
    end: int = -1
    head: int = 0


class Pool:
    """Connections to one port; a request takes a free one or opens another."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[_Connection] = []
        self._selector = selectors.DefaultSelector()
        self.waiting = 0

    def send(self, request: bytes, since_s: float | None = None) -> None:
        """Send one request; its latency counts from `since_s`, or else from now."""
        connection = self._free.pop() if self._free else self._connect()
        connection.received.clear()
        connection.end, connection.head = -1, 0
        connection.since_s = time.perf_counter() if since_s is None else since_s
        self.waiting += 1
        connection.socket.settimeout(None)  # a large body may not fit into the send buffer at once
        with contextlib.suppress(OSError):  # the reading side sees the end of the connection and counts it
            connection.socket.sendall(request)
        connection.socket.settimeout(0)

    def receive(self, timeout_s: float) -> list[Answer]:
        """Wait for bytes at most that long and return the answers that they complete."""
        answers = []
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            answer = self._read(key.data)
            if answer is not None:
                answers.append(answer)
        return answers

    def close(self) -> None:
        """Close all connections, waiting ones too."""
        for key in list(self._selector.get_map().values()):
            key.data.socket.close()
        self._selector.close()

    def _connect(self) -> _Connection:
        connection = _Connection(socket.create_connection(("127.0.0.1", self._port)))
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        return connection

    def _read(self, connection: _Connection) -> Answer | None:
        try:
            received = connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            received = b""
        if not received:
            return self._drop(connection)
        connection.received += received
        return self._finish(connection) if _complete(connection) else None

    def _finish(self, connection: _Connection) -> Answer:
        self.waiting -= 1
        self._free.append(connection)
        return _answer(connection, int(connection.received[9:12]))

    def _drop(self, connection: _Connection) -> Answer | None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection in self._free:  # closed while idle: nobody waits for it
            self._free.remove(connection)
            return None
        self.waiting -= 1
        return _answer(connection, _LOST)


def _answer(connection: _Connection, status: int) -> Answer:
    now_s = time.perf_counter()
    body_bytes = max(0, len(connection.received) - connection.head)
    return Answer(now_s, (now_s - connection.since_s) * 1000, status, body_bytes)


def _complete(connection: _Connection) -> bool:
    """Return whether the whole answer is there (RFC 9112, section 6: length given, or chunked)."""
    received = connection.received
    if connection.end == -1:
        head_end = received.find(b"\r\n\r\n")
        if head_end < 0:
            return False
        connection.head = head_end + 4
        length = _content_length(bytes(received[:head_end]).lower())
        connection.end = -2 if length is None else connection.head + length
    if connection.end == -2:
        return received.endswith(b"0\r\n\r\n")
    return len(received) >= connection.end


def _content_length(head: bytes) -> int | None:
    start = head.find(b"\r\ncontent-length:")
    if start < 0:
        return None
    return int(head[start + 17 :].split(b"\r\n", 1)[0])
