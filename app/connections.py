"""The kernel's side of the connections of this process: which has ended, which is idle.

A chunked body has no announced length, and granian reports a lost connection as a plain end of the body: a corpus
that was cut off would look complete. And a sender that stalls would hold a thread for ever. WSGI tells neither, nor the
connection of a request: this module owns the look at the sockets. Where that is not possible (no Linux, another web
server), a body is believed and waited for.
"""

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["shut_down_idle", "was_cut_off"]

# struct tcp_info of linux/tcp.h, which only ever grows at its end: u8 tcpi_state, later u64 tcpi_bytes_received.
_CLOSED = 7
_LAST_RECEIVED_MS = struct.Struct("=I")
_LAST_RECEIVED_MS_AT = 52
_BYTES_RECEIVED = struct.Struct("<Q")
_BYTES_RECEIVED_AT = 128
_CLOCK_SLACK_S, _BUFFER_SLACK_S = 0.5, 5.0
_MAPPED_PREFIX = "::ffff:"


def was_cut_off(environ: Mapping[str, Any], read_bytes: int) -> bool:
    """Tell whether a body that ended after `read_bytes` ended because its connection was lost.

    WSGI does not say which connection a request came on. So a body counts as cut off when any connection from the same
    address has seen its end and had brought at least as many bytes: two uploads from one machine may be mistaken for
    each other, and then a complete one is refused, never a cut one believed.
    """
    for connection in _accepted(environ):
        info = _read_info(connection)
        # A connection that was reset has forgotten its peer.
        if info.received_bytes >= read_bytes and (
            info.state == _CLOSED or (_is_from(connection, environ) and _is_at_end(connection))
        ):
            return True
    return False


def shut_down_idle(environ: Mapping[str, Any], read_bytes: int, idle_s: float) -> bool:
    """Shut down the connection whose body stands still, if it can be told; return whether it was.

    It is the one from the request's address that brought at least as many bytes and whose last byte came when the body
    last moved, or somewhat earlier, since bytes wait in buffers on their way.
    """
    for connection in _accepted(environ):
        info = _read_info(connection)
        fits = idle_s - _CLOCK_SLACK_S <= info.idle_s <= idle_s + _BUFFER_SLACK_S
        if info.received_bytes >= read_bytes and fits and _is_from(connection, environ):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            return True
    return False


class _Info(NamedTuple):
    """What the kernel knows of a connection."""

    state: int
    idle_s: float
    received_bytes: int


def _accepted(environ: Mapping[str, Any]) -> Iterator[socket.socket]:
    """Yield the connections that clients opened to this server; each is closed again (our copy of it) when left."""
    if sys.platform != "linux" or environ.get("SERVER_SOFTWARE") != "Granian":
        return
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                if _is_accepted(connection, int(environ.get("SERVER_PORT", 0))):
                    yield connection


def _is_accepted(connection: socket.socket, port: int) -> bool:
    if connection.family not in {socket.AF_INET, socket.AF_INET6} or connection.getsockname()[1] != port:
        return False
    return not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def _read_info(connection: socket.socket) -> _Info:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < _BYTES_RECEIVED_AT + _BYTES_RECEIVED.size:
        return _Info(0, 0.0, 0)
    (idle_ms,) = _LAST_RECEIVED_MS.unpack_from(info, _LAST_RECEIVED_MS_AT)
    return _Info(info[0], idle_ms / 1000, _BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_AT)[0])


def _is_from(connection: socket.socket, environ: Mapping[str, Any]) -> bool:
    asked = str(environ.get("REMOTE_ADDR", "")).removeprefix(_MAPPED_PREFIX)
    with contextlib.suppress(OSError):
        return str(connection.getpeername()[0]).removeprefix(_MAPPED_PREFIX) == asked
    return False


def _is_at_end(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:  # reset by the other side
        return True
