"""Slow clients: a floor under the rate at which bodies are sent and results are read, and an end of every stream.

Owns the pace of both ways, measured only while the client is waited for. A client that takes nothing at all cannot be
seen from here, since the web server holds the thread then: the kernel ends its connection (`limit_stalled_readers`).
"""

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

from tasks.errors import BodyTooSlow

__all__ = ["Pace", "ReaderTooSlow", "limit_stalled_readers", "paced"]

_log = logging.getLogger(__name__)
_GRACE_S = 20.0
_PIECE_BYTES = 128 * 1024
_STALLED_MS = 60_000


class ReaderTooSlow(Exception):
    """A stream ends here because its reader is too slow."""


class Pace:
    """The time that a client was waited for, and the bytes that moved meanwhile.

    Args:
        floor_bytes_s: least rate, on average.
    """

    def __init__(self, floor_bytes_s: int) -> None:
        self._floor_bytes_s = floor_bytes_s
        self._waited_s = 0.0
        self._moved_bytes = 0

    def add(self, waited_s: float, moved_bytes: int) -> bool:
        """Count; return whether the client is too slow: behind the floor, by more than a grace of 20 s."""
        self._waited_s += waited_s
        self._moved_bytes += moved_bytes
        return self._waited_s - self._moved_bytes / self._floor_bytes_s > _GRACE_S

    def check_sender(self, waited_s: float, moved_bytes: int) -> None:
        """Count what came of a body.

        Raises:
            BodyTooSlow: it comes too slowly.
        """
        if self.add(waited_s, moved_bytes):
            raise BodyTooSlow(f"the body comes at less than {self._floor_bytes_s} bytes a second")


def paced(pieces: Iterator[bytes], floor_bytes_s: int, longest_s: float) -> Iterator[bytes]:
    """Yield a stream in small pieces, and end it when its reader is too slow or takes too long in all.

    A stream that knows no length has to show that it is not complete: the generator gets a `ReaderTooSlow` and may
    yield one last piece.

    Args:
        pieces: the stream; closed at the end.
        floor_bytes_s: least rate at which it has to be read.
        longest_s: how long it may be read.
    """
    pace, until_s = Pace(floor_bytes_s), time.monotonic() + longest_s
    with contextlib.ExitStack() as stack:
        if isinstance(pieces, Generator):
            stack.callback(pieces.close)
        for piece in pieces:
            for start in range(0, len(piece), _PIECE_BYTES):
                part, handed_s = piece[start : start + _PIECE_BYTES], time.monotonic()
                yield part
                now_s = time.monotonic()
                if pace.add(now_s - handed_s, len(part)) or now_s > until_s:
                    _log.warning("a stream was ended: its reader is too slow")
                    yield from _last_piece(pieces)
                    return


def _last_piece(pieces: Iterator[bytes]) -> Iterator[bytes]:
    if isinstance(pieces, Generator):
        with contextlib.suppress(StopIteration, ReaderTooSlow):
            yield pieces.throw(ReaderTooSlow("the results were read too slowly"))


def limit_stalled_readers(port: int) -> bool:
    """Have the kernel end connections of this process's port whose client takes no byte for a minute.

    The option goes to the listening socket, from which each connection has it (tcp(7), TCP_USER_TIMEOUT).

    Returns:
        Whether the listening socket was there.
    """
    if sys.platform != "linux":
        return True
    found = False
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as listener:
                inet = listener.family in {socket.AF_INET, socket.AF_INET6}
                # The web server also holds a socket that is bound and never listens.
                if (
                    inet
                    and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    and listener.getsockname()[1] == port
                ):
                    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STALLED_MS)
                    found = True
        except OSError:
            continue
    return found
