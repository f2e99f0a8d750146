"""The worker's ear for synchronous calls: runs `tasks.interactive.server.serve` in a thread of its own.

Owns that thread and its connection. What a request is and how it is answered: `tasks.interactive.server`.
"""

import logging
import threading
from collections.abc import Sequence

from config.catalog import ModelCard
from config.settings import Settings
from tasks.connections import connect
from tasks.engine import Engine
from tasks.interactive.server import serve

__all__ = ["Listener"]

_log = logging.getLogger(__name__)

_BLOCK_S = 1.0
# Replies may be megabytes, and a worker waits for its server rather than losing what was computed.
_TIMEOUT_S = 3.0
_STOP_S = 8.0


class Listener:
    """Takes requests for these models and gives them to the engine, from `start()` to `stop()`."""

    def __init__(self, settings: Settings, cards: Sequence[ModelCard], engine: Engine) -> None:
        self._redis = connect(settings.redis_url, name="listener", block_s=_BLOCK_S, timeout_s=_TIMEOUT_S)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=serve, args=(self._redis, cards, engine, self._stop), name="listener", daemon=True
        )

    def start(self) -> None:
        """Listen from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests, answer those that were taken, and end. Safe to call twice."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        self._redis.close()
