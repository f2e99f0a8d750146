"""Callers that hang up while they wait: what they asked for is given up, so that others get its place.

WSGI does not tell which connection a request came on. So when a call waits for long, all connections that may be its
own are noted; one that ends, or on which something is sent, was not (or is no more). When none is left, the caller went
away. A caller who is still there is not taken for gone, unless it pipelines requests; one who went away is missed as
long as older calls from the same address wait too. Owns the thread that looks. The look itself: `app.http.sockets`.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flask import has_request_context, request

from app.http.sockets import Sight, Sights, look, plain_address
from tasks.interactive.client import Watch

__all__ = ["HangupWatch"]

_log = logging.getLogger(__name__)
_LOOK_S = 0.25
# A look takes some microseconds a connection; with thousands of them it must not take the process's time.
_REST_FACTOR = 20
# The kernel's times are as fine as its ticks, which are ten milliseconds at most.
_SLACK_S = 0.02
_PIPELINED_S = 0.25


@dataclass(slots=True, eq=False)
class _Wait:
    """One call that waits.

    Attributes:
        address: of the caller.
        since_s: when it began to wait; the whole request had come by then.
        hang_up: to be called when the caller went away.
        suspects: connections that may be the caller's, with the bytes that had been sent on them.
    """

    environ: Mapping[str, Any]
    address: str
    since_s: float
    hang_up: Callable[[], None]
    suspects: dict[str, int] | None = field(default=None)

    def narrow(self, sights: Sights) -> bool:
        """Take in what is seen now; return whether the caller may still be there."""
        if self.suspects is None:
            self.suspects = {name: sight.sent_bytes for name, sight in sights.items() if self._may_be_mine(sight)}
        # Nothing was sent to a caller who waits.
        self.suspects = {
            name: sent_bytes
            for name, sent_bytes in self.suspects.items()
            if name in sights and sights[name].sent_bytes == sent_bytes
        }
        return bool(self.suspects)

    def _may_be_mine(self, sight: Sight) -> bool:
        # What came later is another request: this one was complete by then.
        if sight.address != self.address or not sight.received_bytes or sight.received_s > self.since_s + _SLACK_S:
            return False
        # An idle connection has got its last answer after its last request. Just before this call began, that may have
        # been the answer to the request before this one, both sent in one go.
        idle = sight.sent_s > sight.received_s and abs(sight.sent_s - self.since_s) > _PIPELINED_S
        return not idle


class HangupWatch:
    """Looks after callers that wait. Thread-safe; its thread starts with the first one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits: set[_Wait] = set()
        self._somebody = threading.Event()
        self._thread: threading.Thread | None = None

    def of_request(self) -> Watch | None:
        """Return what looks after the caller of the request in progress; None outside of one."""
        if not has_request_context():
            return None
        return partial(self.watch, request.environ, time.monotonic())

    @contextlib.contextmanager
    def watch(self, environ: Mapping[str, Any], since_s: float, hang_up: Callable[[], None]) -> Iterator[None]:
        """Look after one caller as long as the block runs.

        Args:
            environ: the request.
            since_s: `time.monotonic()` when all of it had come.
            hang_up: called once, by another thread, when the caller went away.
        """
        wait = _Wait(environ, plain_address(environ.get("REMOTE_ADDR", "")), since_s, hang_up)
        with self._lock:
            self._waits.add(wait)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look_forever, name="hangup-watch", daemon=True)
                self._thread.start()
        self._somebody.set()
        try:
            yield
        finally:
            with self._lock:
                self._waits.discard(wait)

    def _look_forever(self) -> None:
        rest_s = 0.0
        while True:
            self._somebody.wait()
            try:
                rest_s = self._look() * _REST_FACTOR
            except Exception as error:  # noqa: BLE001 - the edge of this thread: it has to look again
                _log.warning("callers could not be looked after: %s", type(error).__name__)
            time.sleep(max(_LOOK_S, rest_s))

    def _look(self) -> float:
        """Look once; return how long it took."""
        began_s = time.monotonic()
        with self._lock:
            waits = list(self._waits)
            if not waits:
                self._somebody.clear()
                return 0.0
        sights = look(waits[0].environ)
        gone = [wait for wait in waits if not wait.narrow(sights)] if sights is not None else []
        with self._lock:
            self._waits.difference_update(gone)
        for wait in gone:
            wait.hang_up()
        return time.monotonic() - began_s
