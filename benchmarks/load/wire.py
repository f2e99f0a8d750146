"""Non-blocking HTTP/1.1 connections, as few instructions per answer as Python allows.

Owns sockets and the recognition of where an answer ends; the answer's body is counted, not read.
"""

import contextlib
import selectors
import socket
import time
from dataclasses import dataclass, field

__all__ = ["Answer", "Incoming", "Pool"]

_READ_BYTES = 2**18
_LOST = 0
_HEAD_MISSING, _CHUNKED = -1, -2


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: when it was complete (`time.perf_counter()`), after how long, its status (0: lost), its size."""

    at_s: float
    latency_ms: float
    status: int
    body_bytes: int


class Incoming:
    """The bytes of one answer as they come in (RFC 9112, section 6: a length is given, or the body is chunked)."""

    __slots__ = ("_end", "_head_bytes", "_received")

    def __init__(self) -> None:
        self._received = bytearray()
        self._head_bytes = 0
        self._end = _HEAD_MISSING

    @property
    def status(self) -> int:
        """Status of an answer whose head is complete."""
        return int(self._received[9:12])

    @property
    def body_bytes(self) -> int:
        """Bytes behind the head so far."""
        return len(self._received) - self._head_bytes if self._head_bytes else 0

    def feed(self, received: bytes) -> bool:
        """Take bytes and return whether the answer is complete."""
        self._received += received
        if self._end == _HEAD_MISSING:
            self._read_head()
        if self._end == _CHUNKED:
            return self._received.endswith(b"0\r\n\r\n")
        return self._end != _HEAD_MISSING and len(self._received) >= self._end

    def _read_head(self) -> None:
        head_end = self._received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        self._head_bytes = head_end + 4
        head = bytes(self._received[:head_end]).lower()
        start = head.find(b"\r\ncontent-length:")
        if start < 0:
            self._end = _CHUNKED
        else:
            self._end = self._head_bytes + int(head[start + 17 :].split(b"\r\n", 1)[0])


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    since_s: float = 0.0
    incoming: Incoming = field(default_factory=Incoming)


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
        connection.incoming = Incoming()
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
        if not connection.incoming.feed(received):
            return None
        self.waiting -= 1
        self._free.append(connection)
        return _answer(connection, connection.incoming.status)

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
    return Answer(now_s, (now_s - connection.since_s) * 1000, status, connection.incoming.body_bytes)
