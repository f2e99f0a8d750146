"""Celery's consumer, for which one more kind of error means a lost connection.

Owns nothing but that. When the server goes away at a bad moment, redis-py 8.1 and kombu 5.7 trip over an object that
another part has just closed: an AttributeError ("'NoneType' object has no attribute ...") comes up the event loop, or
out of the attempt to close what is lost, and Celery ends the worker over it, with all models to load again. Seen in one
of four runs in which the server was killed three times.
"""

import logging
from typing import Any

from celery.worker.consumer import Consumer

__all__ = ["SteadyConsumer"]

_log = logging.getLogger(__name__)


class SteadyConsumer(Consumer):  # type: ignore[misc] # celery has no types
    """Connects anew instead; what tasks raise never comes this way."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connection_errors = (*self.connection_errors, AttributeError)  # type: ignore[has-type] # celery has no types

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Give the lost connection up; that it cannot even be closed is no reason to end."""
        try:
            super().on_connection_error_after_connected(exc)
        except AttributeError as error:
            # Celery has let go of the connection before it closes it, so nobody uses it again.
            _log.warning("a lost connection could not be closed: %s", error)
