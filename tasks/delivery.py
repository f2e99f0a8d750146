"""A ticket as Celery's worker holds it, for the one case that Celery leaves open: its acknowledgement fails.

Owns nothing but that. kombu 5.7 (`kombu/transport/redis.py`, `QoS.ack`) then either logs "Couldn't ack" and goes on,
with the message still counted as being worked on: when that has happened as often as the worker may prefetch, it never
takes a message again, although it is connected, answers pings and counts as ready. Or, when the connection was being
replaced just then, it ends the worker with an AttributeError. Both were seen in fault tests.
"""

import logging
from typing import Any

from celery.worker.request import Request
from kombu.exceptions import KombuError
from kombu.message import Message
from kombu.transport.virtual import QoS
from redis import RedisError

__all__ = ["Delivery"]

_log = logging.getLogger(__name__)


class Delivery(Request):  # type: ignore[misc] # celery has no types
    """The request class of `tasks.bulk.chunk_task.run_chunk`."""

    def __init__(self, message: Message, *args: Any, **kwargs: Any) -> None:
        # On the message and not in `acknowledge`: Celery calls the message later, from its event loop.
        message.ack = lambda multiple=False: _acknowledge(message, multiple=multiple)
        super().__init__(message, *args, **kwargs)


def _acknowledge(message: Message, *, multiple: bool) -> None:
    """Acknowledge; if the broker does not hear it, count the message as done here nevertheless.

    The broker delivers it again later, and then the job record says that it is done. That the connection is broken is
    noticed by whoever reads from it.
    """
    try:
        Message.ack(message, multiple)
    except (KombuError, RedisError, OSError, AttributeError) as error:
        _log.warning("a ticket could not be acknowledged: %s", error)
        # The base class's method touches the books of this process only.
        QoS.ack(message.channel.qos, message.delivery_tag)
