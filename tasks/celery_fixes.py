"""Two places where Celery 5.7 and kombu 5.7 do not survive a Redis that goes away, and what Flower hears of a message.

Owns the consumer and the request class that a worker runs with, and nothing else: Celery finds both by their names.
"""

import logging
from typing import Any

from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu.exceptions import KombuError
from kombu.message import Message
from kombu.transport.virtual import QoS
from redis import RedisError

__all__ = ["ForgivingRequest", "SteadyConsumer"]

_log = logging.getLogger(__name__)


class SteadyConsumer(Consumer):  # type: ignore[misc] # celery has no types
    """A consumer for which an AttributeError, too, means a lost connection. What tasks raise never comes this way.

    When Redis goes away at a bad moment, redis-py 8.1 and kombu 5.7 trip over an object that another part has just
    closed: an AttributeError ("'NoneType' object has no attribute ...") comes up the event loop, or out of the attempt
    to close the lost connection, and Celery ends the worker over it, with all models to load again. Seen in one of four
    runs in which Redis was killed three times.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connection_errors = (*self.connection_errors, AttributeError)  # type: ignore[has-type] # celery has no types

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Drop the lost connection; failing to close it is no reason to end the worker."""
        try:
            super().on_connection_error_after_connected(exc)
        except AttributeError as error:
            # Celery has dropped the connection before it closes it, so it is not used again.
            _log.warning("a lost connection could not be closed: %s", error)


class ForgivingRequest(Request):  # type: ignore[misc] # celery has no types
    """The request class of `tasks.bulk.chunk_task.run_chunk`, for a message whose acknowledgement fails.

    kombu 5.7 (`kombu/transport/redis.py`, `QoS.ack`) then either logs "Couldn't ack" and goes on, with the message
    still counted as being worked on: when that has happened as often as the worker may prefetch, it never takes a
    message again, although it is connected, answers pings and counts as ready. Or, when the connection was being
    replaced just then, it ends the worker with an AttributeError. Both were seen in fault tests.
    """

    def __init__(self, message: Message, *args: Any, **kwargs: Any) -> None:
        # On the message and not in `acknowledge`: Celery calls the message later, from its event loop.
        message.ack = lambda multiple=False: _acknowledge(message, multiple=multiple)
        super().__init__(message, *args, **kwargs)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send an event of this message, for Flower: one that found no chunk is no success, a failed chunk neither.

        The task says so by what it returns (`run_chunk`). It ends well in both cases: it has settled everything, and
        nothing is to be tried again. Readers rank `task-rejected` below `task-started` and keep that.
        """
        result = fields.get("result", "")
        if type == "task-succeeded" and result == repr(None):
            type, fields = "task-revoked", {"terminated": False, "signum": None, "expired": True}  # noqa: A001 - Celery's name
        elif type == "task-succeeded" and result.startswith("'failed: "):
            type, fields = "task-failed", {"exception": result, "traceback": ""}  # noqa: A001 - Celery's name
        super().send_event(type, **fields)


def _acknowledge(message: Message, *, multiple: bool) -> None:
    """Acknowledge the message; if Redis does not answer, count it as done in this process nevertheless.

    Redis delivers it again later, and then the job record says that the chunk is done. The thread that reads from the
    broken connection reconnects.
    """
    try:
        Message.ack(message, multiple)
    except (KombuError, RedisError, OSError, AttributeError) as error:
        _log.warning("a ticket could not be acknowledged: %s", error)
        # The base class's method changes only the counts of this process.
        QoS.ack(message.channel.qos, message.delivery_tag)
