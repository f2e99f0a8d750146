"""Whether a chunked body ended because its client disconnected.

A chunked body has no announced length, and granian reports a lost connection as a plain end of the body: a corpus that
was cut off would look complete. WSGI does not say which connection a request came on, so this module looks at the
sockets of the process. Where that is not possible (no Linux, another web server), the end of a body is believed.
"""

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["was_cut_off"]

# struct tcp_info of linux/tcp.h, which only ever grows at its end: u8 tcpi_state, later u64 tcpi_bytes_received.
_CLOSED = 7
_BYTES_RECEIVED = struct.Struct("<Q")
_BYTES_RECEIVED_AT = 128
_MAPPED_PREFIX = "::ffff:"


def was_cut_off(environ: Mapping[str, Any], read_bytes: int) -> bool:
    """Return whether a body that ended after `read_bytes` ended because its connection was lost.

    A body counts as cut off when any connection from the same address has seen its end and had brought at least as many
    bytes: two uploads from one machine, or through one proxy, may be mistaken for each other, and then a complete one
    is refused, never a cut one believed.
    """
    for connection in _accepted(environ):
        state, received_bytes = _read_info(connection)
        # A connection that was reset has forgotten its peer.
        if received_bytes >= read_bytes and (
            state == _CLOSED or (_is_from(connection, environ) and _is_at_end(connection))
        ):
            return True
    return False


def _accepted(environ: Mapping[str, Any]) -> Iterator[socket.socket]:
    """Yield the connections that clients opened to this server; our copy of each is closed again when left."""
    if sys.platform != "linux" or environ.get("SERVER_SOFTWARE") != "Granian":
        return
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                if _is_on_port(connection, int(environ.get("SERVER_PORT", 0))) and not _is_listening(connection):
                    yield connection


def _is_on_port(connection: socket.socket, port: int) -> bool:
    return connection.family in {socket.AF_INET, socket.AF_INET6} and bool(connection.getsockname()[1] == port)


def _is_listening(connection: socket.socket) -> bool:
    return bool(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _read_info(connection: socket.socket) -> tuple[int, int]:
    """Return the state of a connection and the payload that came on it, in bytes."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < _BYTES_RECEIVED_AT + _BYTES_RECEIVED.size:
        return 0, 0
    return info[0], _BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_AT)[0]


def _is_from(connection: socket.socket, environ: Mapping[str, Any]) -> bool:
    with contextlib.suppress(OSError):
        return _plain_address(connection.getpeername()[0]) == _plain_address(environ.get("REMOTE_ADDR", ""))
    return False


def _plain_address(address: Any) -> str:
    """Return an address without the IPv4 mapping and the zone, which only one of the two sources has."""
    return str(address).removeprefix(_MAPPED_PREFIX).partition("%")[0]


def _is_at_end(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:  # reset by the other side
        return True
