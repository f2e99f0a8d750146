"""Log lines of a busy process: queued, and written together by a thread of their own.

A write gives the interpreter's lock away, and among many busy threads it comes back late: a line for each request, each
written by itself, cost a web process more than all its other hooks. Owns the queue of lines, its bound and its thread.
How a line looks is `config.logging`.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from logging.handlers import QueueHandler
from typing import Any, TextIO

__all__ = ["BatchingHandler"]

_PAUSE_S = 0.05
# The kernel writes so much to a pipe in one piece (PIPE_BUF): lines of other processes come before it or behind it.
_WHOLE_BYTES = 4096
_MOST_LINES = 20_000


class BatchingHandler(QueueHandler):
    """Writes lines a moment later, those of a moment together; a warning or an error takes all that wait with it.

    A process that is killed loses the lines of its last moment; `flush()`, as `logging.shutdown()` calls it, leaves
    none behind. No thread waits for a slow reader of the log: a line that finds the queue full is dropped and counted.

    Args:
        stream: a text file over bytes.
    """

    queue: "queue.Queue[bytes]"

    def __init__(self, stream: TextIO) -> None:
        super().__init__(queue.Queue(_MOST_LINES))
        self.stream = stream
        self._reset()
        # Lines of before a fork are written by the parent, whose thread is not in the child.
        os.register_at_fork(after_in_child=self._reset)

    def createLock(self) -> None:  # noqa: N802 - the library's name
        """Go without the handler's lock: the queue has its own, and formatting needs none."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line."""
        super().emit(record)
        if record.levelno > logging.INFO:
            self.flush()
        elif not self._started.is_set():
            self._start()

    def prepare(self, record: logging.LogRecord) -> bytes:
        """Return the line, formatted by the thread that logs."""
        return (self.format(record) + "\n").encode("utf-8", "backslashreplace")

    def enqueue(self, record: Any) -> None:
        """Queue a line, or count it as dropped."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def flush(self) -> None:
        """Write what waits."""
        with self._writing, contextlib.suppress(OSError, ValueError):  # nobody reads the log any more
            for piece in _join(self._take()):
                self.stream.buffer.write(piece)
                self.stream.buffer.flush()

    def _reset(self) -> None:
        self.queue = queue.Queue(_MOST_LINES)
        self._dropped = 0
        self._writing = threading.Lock()
        self._started = threading.Event()

    def _start(self) -> None:
        with self._writing:
            if not self._started.is_set():
                threading.Thread(target=self._write_forever, name="log-lines", daemon=True).start()
                self._started.set()

    def _write_forever(self) -> None:
        while True:
            time.sleep(_PAUSE_S)
            if not self.queue.empty():
                self.flush()

    def _take(self) -> Iterator[bytes]:
        with contextlib.suppress(queue.Empty):
            while True:
                yield self.queue.get_nowait()
        dropped, self._dropped = self._dropped, 0
        if dropped:
            message = f"{dropped} log lines were dropped: nobody read them"
            yield self.prepare(logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None))


def _join(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the lines, as many in one piece as are written whole."""
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > _WHOLE_BYTES:
            yield piece
            piece = b""
        piece += line
    if piece:
        yield piece
