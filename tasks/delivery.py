"""A ticket as Celery's worker holds it, for the one case that Celery leaves open: its acknowledgement fails.

Owns nothing but that. kombu then logs "Couldn't ack" and goes on, with the message still counted as being worked on.
When that has happened as often as the worker may prefetch, it never takes a message again, although it is connected,
answers pings and counts as ready. (Found with lost replies; kombu 5.7, `kombu/transport/redis.py`, `QoS.ack`.)
"""

from celery.worker.request import Request
from kombu.transport.virtual import QoS

__all__ = ["Delivery"]


class Delivery(Request):  # type: ignore[misc] # celery has no types
    """The request class of `tasks.bulk.run_chunk`."""

    def acknowledge(self) -> None:
        """Acknowledge the message; if the broker did not hear it, count it as done here nevertheless.

        The broker delivers it again later, and then the job record says that it is done.
        """
        super().acknowledge()
        channel = self.message.channel
        if self.message.delivery_tag in getattr(channel.qos, "_delivered", ()):
            # The base class's method touches this process's books only; twice does no harm.
            QoS.ack(channel.qos, self.message.delivery_tag)
