"""Tells the ends of jobs: looks for what is due, sends it, notes what became of it.

Owns the thread of each web process that does this, and the few that send. Not the steward's thread and not a worker's:
a receiver that hangs must hold up neither batches nor devices, and devices often have no way out. All that is known
stands in the store, so any web process may do it, and the death of one costs a hold's time.
"""

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import orjson
from redis import RedisError

from app.jobs.views import view_job
from app.services import Services
from app.webhooks.sending import post
from app.webhooks.signing import sign
from app.webhooks.targets import ForbiddenTarget, parse_target
from tasks.jobs.model import JobProgress
from tasks.jobs.outbox import Attempt, Delivery, Outbox
from tasks.periodic import PeriodicThread

__all__ = ["Courier", "compose"]

_log = logging.getLogger(__name__)
_TICK_S = 0.5
_STOP_S = 5.0
_SENDERS = 8


def compose(delivery: Delivery) -> bytes:
    """Return the body: type, time and the job object."""
    job = delivery.job
    return orjson.dumps(
        {
            "type": f"job.{delivery.event}",
            "timestamp": datetime.fromtimestamp(delivery.at, UTC).isoformat(timespec="milliseconds"),
            "data": view_job(job, JobProgress()),
        }
    )


class Courier:
    """Tells the ends of all tenants' jobs.

    Args:
        live: the services of this process.
    """

    def __init__(self, live: Services) -> None:
        self._settings = live.settings
        self._outbox = Outbox(live.redis, live.settings)
        self._free = threading.Semaphore(_SENDERS)
        self._senders = ThreadPoolExecutor(_SENDERS, thread_name_prefix="twolane-webhook")
        self._thread = PeriodicThread(self._look_at_all, _TICK_S, "courier")

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; what is not told yet is told by another process, or after the next start."""
        self._thread.stop(_STOP_S)
        self._senders.shutdown(wait=False, cancel_futures=True)

    def look(self) -> int:
        """Take one end that is due, if a sender is free, and have it sent; return how many were taken."""
        # One at a time and only with a sender at hand: what is taken is held, and a hold must not run out in a queue.
        if not self._free.acquire(blocking=False):
            return 0
        taken: list[Delivery] = []
        try:
            taken = self._outbox.take(1)
        finally:
            if not taken:
                self._free.release()
        for delivery in taken:
            self._senders.submit(self._send, delivery)
        return len(taken)

    def _look_at_all(self) -> None:
        while self.look() and not self._thread.stopping:
            pass

    def _send(self, delivery: Delivery) -> None:
        try:
            status = self._outbox.settle(delivery, self._attempt(delivery))
            if status == "failed":
                _log.warning("the end of %s could not be told, it is given up", delivery.job.id)
        except RedisError:
            _log.warning("what became of the webhook of %s cannot be noted; it is sent again", delivery.job.id)
        except Exception as error:  # noqa: BLE001 - the edge of a sender: the hold runs out and another attempt follows
            _log.error("the webhook of %s failed: %s", delivery.job.id, type(error).__name__)
        finally:
            self._free.release()

    def _attempt(self, delivery: Delivery) -> Attempt:
        allow_private = self._settings.webhook_allow_private
        try:
            target = parse_target(delivery.webhook.url, allow_private=allow_private)
        except ForbiddenTarget as error:
            return Attempt(error=f"the webhook's URL {error}", final=True)
        body, now_s = compose(delivery), int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "twolane-webhooks",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(now_s),
            "webhook-signature": sign(delivery.webhook.secret, delivery.id, now_s, body),
        }
        return post(target, headers, body, self._settings.webhook_timeout_s, allow_private=allow_private)
