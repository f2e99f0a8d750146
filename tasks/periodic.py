"""A thread that looks after something in rounds, for as long as its process lives.

Owns the rhythm, the stop, and the edge at which an error of a round ends: the first of several in a row is logged, and
the next round tries again.
"""

import logging
import threading
import traceback
from collections.abc import Callable

from redis import RedisError

__all__ = ["Rounds"]

_log = logging.getLogger(__name__)


class Rounds:
    """Calls `look` from `start()` to `stop()`, in a thread of its own.

    Args:
        look: one round; whatever it raises ends this round only.
        every_s: pause between two rounds.
        name: of the thread, and in the log.
        bell: whoever sets it makes the next round come at once.
    """

    def __init__(
        self, look: Callable[[], object], every_s: float, name: str, *, bell: threading.Event | None = None
    ) -> None:
        self._look = look
        self._every_s = every_s
        self._name = name
        self._bell = bell or threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stopping(self) -> bool:
        """Whether `stop()` was called: a long round should end."""
        return self._stop.is_set()

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread, waiting for its round at most so long. Safe to call twice, and without a start."""
        self._stop.set()
        self._bell.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        failing = False
        while not self._stop.is_set():
            try:
                self._look()
                failing = False
            except RedisError as error:
                if not failing:
                    _log.warning("%s: the store does not answer: %s", self._name, error)
                failing = True
            except Exception as error:  # noqa: BLE001 - the edge of a thread that must outlive what it looks after
                if not failing:
                    # The message of an unforeseen error may hold somebody's text.
                    frames = "".join(traceback.format_tb(error.__traceback__))
                    _log.error("%s failed: %s\n%s", self._name, type(error).__name__, frames)
                failing = True
            self._bell.wait(self._every_s)
            self._bell.clear()
