"""Whether the sender of a chunked body is still there.

A chunked body has no announced length, and granian reports a lost connection as a plain end of the body: a corpus
that was cut off would look complete. This module owns the look at the kernel's side of the connections. Where that is
not possible (no Linux, another web server), the body is believed.
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
    """Tell whether a body that ended after `read_bytes` ended because its connection was lost.

    WSGI does not say which connection a request came on. So a body counts as cut off when any connection from the same
    address has seen its end and had brought at least as many bytes: two uploads from one machine may be mistaken for
    each other, and then a complete one is refused, never a cut one believed.
    """
    if sys.platform != "linux" or environ.get("SERVER_SOFTWARE") != "Granian":
        return False
    host, port = str(environ.get("REMOTE_ADDR", "")), int(environ.get("SERVER_PORT", 0))
    return any(_has_ended(descriptor, host, port, read_bytes) for descriptor in _socket_descriptors())


def _socket_descriptors() -> Iterator[int]:
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(entry.readlink()).startswith("socket:"):
                yield int(entry.name)


def _has_ended(descriptor: int, host: str, port: int, read_bytes: int) -> bool:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family not in {socket.AF_INET, socket.AF_INET6} or connection.getsockname()[1] != port:
            return False
        state, received_bytes = _read_info(connection)
        if received_bytes < read_bytes:
            return False
        # A connection that was reset has forgotten its peer.
        return state == _CLOSED or (_is_from(connection, host) and _is_at_end(connection))
    return False


def _read_info(connection: socket.socket) -> tuple[int, int]:
    """Return the state and the received bytes of a TCP connection."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < _BYTES_RECEIVED_AT + _BYTES_RECEIVED.size:
        return 0, 0
    return info[0], _BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_AT)[0]


def _is_from(connection: socket.socket, host: str) -> bool:
    peer: str = connection.getpeername()[0]
    return peer.removeprefix(_MAPPED_PREFIX) == host.removeprefix(_MAPPED_PREFIX)


def _is_at_end(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:  # reset by the other side
        return True
