"""A thread that calls a function periodically, for as long as its process lives.

Owns the period, the stop, and the edge at which errors end: the first of several in a row is logged, and the next call
tries again.
"""

import logging
import threading
import traceback
from collections.abc import Callable

from redis import RedisError

from tasks.redis_failures import explain_failure, words_of

__all__ = ["PeriodicThread"]

_log = logging.getLogger(__name__)


class PeriodicThread:
    """Calls `run_once` from `start()` to `stop()`, in a thread of its own.

    Args:
        run_once: one call; whatever it raises ends this call only.
        every_s: pause between two calls.
        name: of the thread, and in the log.
        wake: setting it ends the pause.
    """

    def __init__(
        self, run_once: Callable[[], object], every_s: float, name: str, *, wake: threading.Event | None = None
    ) -> None:
        self._run_once = run_once
        self._every_s = every_s
        self._name = name
        self._wake = wake or threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stopping(self) -> bool:
        """Whether `stop()` was called: a long call should end."""
        return self._stop.is_set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread, waiting at most so long for a call in progress. Safe to call twice, and without a start."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        failing = False
        while not self._stop.is_set():
            try:
                self._run_once()
                failing = False
            except RedisError as error:
                if not failing:
                    _log.warning("%s: %s: %s", self._name, explain_failure(error).message, words_of(error))
                failing = True
            except Exception as error:  # noqa: BLE001 - the edge of a thread that must outlive single failures
                if not failing:
                    # The message of an unforeseen error may hold a user's text.
                    frames = "".join(traceback.format_tb(error.__traceback__))
                    _log.error("%s failed: %s\n%s", self._name, type(error).__name__, frames)
                failing = True
            self._wake.wait(self._every_s)
            self._wake.clear()
