"""Log lines that come by the hundred a second: kept for a moment, and written together by a thread of their own.

A write gives the interpreter's lock away, and among many busy threads it comes back late: a line for each request, each
written by itself, cost a web process more than all its other hooks. Owns the queue of such lines, its bound and its
thread. How a line looks is `config.logging`.
"""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import TextIO

__all__ = ["LineHandler"]

_REST_S = 0.05
# The kernel writes so much to a pipe in one piece (PIPE_BUF): lines of other processes come before it or behind it.
_WHOLE_BYTES = 4096
_MOST_LINES = 20_000


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes a record at once, unless its logger is one of those whose lines can wait.

    Lines come in the order in which they were logged: one that cannot wait takes those that wait with it. A process
    that is killed loses the lines of its last moment; `flush()` at its end, as `logging.shutdown()` calls it, leaves
    none behind. When more wait than there is room for, new ones are dropped, and a line tells how many.

    Args:
        stream: where to, a text file over bytes.
        waiting: loggers whose lines of the level `info` and below can wait.
    """

    def __init__(self, stream: TextIO, waiting: Collection[str] = ()) -> None:
        super().__init__(stream)
        self._can_wait = frozenset(waiting)
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # After a fork the lines are still written, by the parent; its thread stayed there.
        self._guard = threading.Lock()
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._bell = threading.Event()
        self._thread: threading.Thread | None = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Write the record, or keep its line; return whether the filters let it through."""
        if record.name not in self._can_wait or record.levelno > logging.INFO:
            return bool(super().handle(record))
        if not self.filter(record):
            return False
        try:
            self._keep((self.format(record) + self.terminator).encode("utf-8", "backslashreplace"))
        except Exception:  # noqa: BLE001 - as in the library: whoever logs must not fail
            self.handleError(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, behind what was logged before it."""
        self._write_kept()
        super().emit(record)

    def flush(self) -> None:
        """Write what waits."""
        self._write_kept()
        super().flush()

    def _keep(self, line: bytes) -> None:
        with self._guard:
            if len(self._lines) >= _MOST_LINES:
                self._dropped += 1
                return
            self._lines.append(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_forever, name="log-lines", daemon=True)
                self._thread.start()
        if not self._bell.is_set():
            self._bell.set()

    def _write_forever(self) -> None:
        while True:
            self._bell.wait()
            self._bell.clear()
            self._write_kept()
            time.sleep(_REST_S)

    def _write_kept(self) -> None:
        self.acquire()  # or what is logged meanwhile would overtake
        try:
            with self._guard:
                lines, self._lines = self._lines, deque()
                dropped, self._dropped = self._dropped, 0
            if dropped:
                lines.append(self._tell(dropped))
            # There is nowhere to tell that nobody takes lines any more.
            with contextlib.suppress(OSError, ValueError):
                for piece in _join(lines):
                    self.stream.buffer.write(piece)
                    self.stream.buffer.flush()
        finally:
            self.release()

    def _tell(self, dropped: int) -> bytes:
        message = "%d lines were dropped: nobody took them"
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, (dropped,), None)
        return (self.format(record) + self.terminator).encode()


def _join(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines, as many in one as are written whole."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > _WHOLE_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield b"".join(piece)
