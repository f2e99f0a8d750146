"""The kernel's side of the connections of this process: which has ended, which is idle.

A chunked body has no announced length, and granian reports a lost connection as a plain end of the body: a corpus
that was cut off would look complete. A sender that stalls would hold a thread for ever, and so would a caller that went
away while it waited. WSGI tells none of it, nor the connection of a request: this module owns the look at the sockets.
Where that is not possible (no Linux, another web server), a body is believed and everybody is waited for.
"""

import contextlib
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Sight", "Sights", "end_reading", "find_idle", "look", "plain_address", "was_cut_off"]

# struct tcp_info of linux/tcp.h, which only ever grows at its end: u8 tcpi_state, later u64 tcpi_bytes_received.
_CLOSED = 7
_AGO_MS = struct.Struct("=I")
_LAST_RECEIVED_MS_AT = 52
_BYTES_RECEIVED = struct.Struct("<Q")
_BYTES_RECEIVED_AT = 128
# tcpi_last_data_sent, _last_ack_sent, _last_data_recv; then from Linux 4.19 on: tcpi_bytes_sent, _bytes_retrans.
_LAST_SENT_MS_AT = 44
_BYTES_SENT, _BYTES_SENT_AT = struct.Struct("<QQ"), 200
_CLOCK_SLACK_S, _BUFFER_SLACK_S = 0.5, 5.0
_MAPPED_PREFIX = "::ffff:"


class Sight(NamedTuple):
    """What was seen of a connection that a client opened.

    Attributes:
        address: where it comes from, as REMOTE_ADDR has it.
        received_bytes: payload that came.
        sent_bytes: payload that went out, each byte once.
        received_s: when something came last, as `time.monotonic()`; the opening counts.
        sent_s: likewise, when something went out.
    """

    address: str
    received_bytes: int
    sent_bytes: int
    received_s: float
    sent_s: float


# By the socket's number in the kernel, which is not used again while anybody remembers it.
Sights = Mapping[str, Sight]


def look(environ: Mapping[str, Any]) -> Sights | None:
    """Return the open connections of the server that this request came to; None: they cannot be seen here."""
    sights, listening = dict[str, Sight](), False
    for name, connection in _sockets(environ):
        if _is_listening(connection):
            listening = True
            continue
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        if len(info) < _BYTES_SENT_AT + _BYTES_SENT.size:
            return None
        # A connection that was reset has forgotten its peer.
        with contextlib.suppress(OSError):
            if info[0] != _CLOSED:
                sights[name] = _see(plain_address(connection.getpeername()[0]), info)
    # Without its own listening socket in sight, what is not in sight proves nothing.
    return sights if listening else None


def plain_address(address: Any) -> str:
    """Return an address without what only one of the two ways to tell it has: the mapping, and the zone."""
    return str(address).removeprefix(_MAPPED_PREFIX).partition("%")[0]


def end_reading(environ: Mapping[str, Any], name: str) -> None:
    """Let the server read the end of a connection's data now; an answer can still be sent."""
    for other, connection in _sockets(environ):
        if other == name:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)


def was_cut_off(environ: Mapping[str, Any], read_bytes: int) -> bool:
    """Tell whether a body that ended after `read_bytes` ended because its connection was lost.

    WSGI does not say which connection a request came on. So a body counts as cut off when any connection from the same
    address has seen its end and had brought at least as many bytes: two uploads from one machine may be mistaken for
    each other, and then a complete one is refused, never a cut one believed.
    """
    for _, connection in _accepted(environ):
        info = _read_info(connection)
        # A connection that was reset has forgotten its peer.
        if info.received_bytes >= read_bytes and (
            info.state == _CLOSED or (_is_from(connection, environ) and _is_at_end(connection))
        ):
            return True
    return False


def find_idle(environ: Mapping[str, Any], read_bytes: int, idle_s: float) -> list[str]:
    """Return the names of the connections that may be the one whose body stands still.

    They are from the request's address and brought at least as many bytes, the last one when the body last moved, or
    somewhat earlier, since bytes wait in buffers on their way.
    """
    found = []
    for name, connection in _accepted(environ):
        info = _read_info(connection)
        fits = idle_s - _CLOCK_SLACK_S <= info.idle_s <= idle_s + _BUFFER_SLACK_S
        if info.received_bytes >= read_bytes and fits and _is_from(connection, environ):
            found.append(name)
    return found


class _Info(NamedTuple):
    """What the kernel knows of a connection."""

    state: int
    idle_s: float
    received_bytes: int


def _see(address: str, info: bytes) -> Sight:
    now_s = time.monotonic()
    sent_bytes, again_bytes = _BYTES_SENT.unpack_from(info, _BYTES_SENT_AT)
    (received_bytes,) = _BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_AT)
    (received_ms,) = _AGO_MS.unpack_from(info, _LAST_RECEIVED_MS_AT)
    (sent_ms,) = _AGO_MS.unpack_from(info, _LAST_SENT_MS_AT)
    return Sight(address, received_bytes, sent_bytes - again_bytes, now_s - received_ms / 1000, now_s - sent_ms / 1000)


def _accepted(environ: Mapping[str, Any]) -> Iterator[tuple[str, socket.socket]]:
    """Yield the connections that clients opened to this server, with their names, as `_sockets` does."""
    return ((name, connection) for name, connection in _sockets(environ) if not _is_listening(connection))


def _sockets(environ: Mapping[str, Any]) -> Iterator[tuple[str, socket.socket]]:
    """Yield the sockets on the server's port with their names; our copy of each is closed again when left."""
    if sys.platform != "linux" or environ.get("SERVER_SOFTWARE") != "Granian":
        return
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            name = str(entry.readlink())
            if not name.startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                if _is_on_port(connection, int(environ.get("SERVER_PORT", 0))):
                    yield name, connection


def _is_on_port(connection: socket.socket, port: int) -> bool:
    return connection.family in {socket.AF_INET, socket.AF_INET6} and bool(connection.getsockname()[1] == port)


def _is_listening(connection: socket.socket) -> bool:
    return bool(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _read_info(connection: socket.socket) -> _Info:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < _BYTES_RECEIVED_AT + _BYTES_RECEIVED.size:
        return _Info(0, 0.0, 0)
    (idle_ms,) = _AGO_MS.unpack_from(info, _LAST_RECEIVED_MS_AT)
    return _Info(info[0], idle_ms / 1000, _BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_AT)[0])


def _is_from(connection: socket.socket, environ: Mapping[str, Any]) -> bool:
    with contextlib.suppress(OSError):
        return plain_address(connection.getpeername()[0]) == plain_address(environ.get("REMOTE_ADDR", ""))
    return False


def _is_at_end(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:  # reset by the other side
        return True
