"""Celery's consumer, for which one more kind of error means a lost connection.

Owns nothing but that. When the server goes away at a bad moment, redis-py 8.1 and kombu 5.7 trip over an object that
another part has just closed: an AttributeError ("'NoneType' object has no attribute ...") comes up the event loop, and
Celery ends the worker over it, with all models to load again. Seen in one of three soaks of two minutes.
"""

from typing import Any

from celery.worker.consumer import Consumer

__all__ = ["SteadyConsumer"]


class SteadyConsumer(Consumer):  # type: ignore[misc] # celery has no types
    """Connects anew instead; what tasks raise never comes this way."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connection_errors = (*self.connection_errors, AttributeError)  # type: ignore[has-type] # celery has no types
