"""Bodies of which nothing comes any more: whoever sends them must not hold a thread for ever.

A read of `wsgi.input` cannot be interrupted, and granian has no time limit for bodies. So one thread looks at the reads
in progress, finds the connection of a stalled one among the process's sockets and shuts it down; the read then ends
like that of any lost connection. Owns that thread and the list of reads. Linux and granian only, see `app.connections`.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.connections import shut_down_idle

__all__ = ["StallWatch"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """One read that has not come back."""

    environ: Mapping[str, Any]
    read_bytes: int
    since_s: float


class StallWatch:
    """Ends bodies that stall. Thread-safe; its thread starts with the first body, so that a fork before it is harmless.

    Args:
        timeout_s: how long nothing may come.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._reads: set[_Read] = set()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watch(self, environ: Mapping[str, Any], read_bytes: int) -> Iterator[None]:
        """Watch one read of a request's body, of which so many bytes came before."""
        read = _Read(environ, read_bytes, time.monotonic())
        with self._lock:
            self._reads.add(read)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look_forever, name="stall-watch", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                self._reads.discard(read)

    def _look_forever(self) -> None:
        while True:
            time.sleep(self._timeout_s / 4)
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - the edge of this thread: it has to look again
                _log.warning("stalled bodies could not be looked for: %s", type(error).__name__)

    def _look(self) -> None:
        now_s = time.monotonic()
        with self._lock:
            stalled = [read for read in self._reads if now_s - read.since_s > self._timeout_s]
        for read in stalled:
            if shut_down_idle(read.environ, read.read_bytes, now_s - read.since_s):
                _log.warning("a body was given up after %.0f s without a byte", now_s - read.since_s)
