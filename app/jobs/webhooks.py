"""The webhook dispatcher: takes deliveries from the outbox, sends them, and records the outcome.

Owns a periodic thread of each web process and a small pool that sends. Not the batch scheduler's thread and not a
worker's: a receiver that hangs must delay neither batches nor devices, and devices often have no way out. The outbox
is in Redis, so any web process may send, and a process that dies delays its deliveries by their lease. Owns besides
what is checked of a webhook before its job is accepted.
"""

import logging
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import orjson
from redis import RedisError

from app.jobs.views import view_job
from app.services import Services
from app.webhooks.sending import post
from app.webhooks.signing import check_secret, make_secret, sign
from app.webhooks.targets import ForbiddenTarget, parse_target
from tasks.errors import InvalidRequest
from tasks.jobs.job import JobProgress, Webhook
from tasks.jobs.outbox import Attempt, Delivery, Outbox
from tasks.periodic import PeriodicThread

__all__ = ["WebhookDispatcher", "choose_webhook", "compose"]

_log = logging.getLogger(__name__)
_TICK_S = 0.5
_STOP_S = 5.0
_SENDERS = 16


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


class WebhookDispatcher:
    """Sends the webhooks of all tenants.

    Args:
        live: the services of this process.
    """

    def __init__(self, live: Services) -> None:
        self._settings = live.settings
        self._outbox = Outbox(live.redis, live.settings)
        self._lock = threading.Lock()
        self._sending: Counter[str] = Counter()
        self._senders = ThreadPoolExecutor(_SENDERS, thread_name_prefix="twolane-webhook")
        self._thread = PeriodicThread(self._send_due, _TICK_S, "webhook dispatcher")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; what was not sent is sent by another process, or after the next start."""
        self._thread.stop(_STOP_S)
        self._senders.shutdown(wait=False, cancel_futures=True)

    def run_once(self) -> int:
        """Take one delivery that is due, if a sender is free for it, and have it sent; return how many were taken.

        A tenant may hold as many senders as it leaves free, so that its receivers that hang leave some for everybody
        else (dynamic thresholds, Choudhury and Hahne 1998): half of them if it is alone, else less.
        """
        with self._lock:
            free = _SENDERS - self._sending.total()
            full = {tenant for tenant, held in self._sending.items() if held >= free}
        # One at a time and only with a free sender: what is taken is leased, and a lease must not expire in a queue.
        taken = self._outbox.take(1, full) if free > 0 else []
        for delivery in taken:
            with self._lock:
                self._sending[delivery.job.tenant] += 1
            self._senders.submit(self._send, delivery)
        return len(taken)

    def _send_due(self) -> None:
        while self.run_once() and not self._thread.stopping:
            pass

    def _send(self, delivery: Delivery) -> None:
        try:
            status = self._outbox.settle(delivery, self._attempt(delivery))
            if status == "failed":
                _log.warning("the webhook of %s could not be delivered and is given up", delivery.job.id)
        except RedisError:
            _log.warning("the outcome of the webhook of %s cannot be recorded; it is sent again", delivery.job.id)
        except Exception as error:  # noqa: BLE001 - the edge of a sender: the lease expires and another attempt follows
            _log.error("the webhook of %s failed: %s", delivery.job.id, type(error).__name__)
        finally:
            with self._lock:
                self._sending -= Counter((delivery.job.tenant,))

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


def choose_webhook(url: str, secret: str | None, *, allow_private: bool) -> Webhook:
    """Return the webhook, with a new secret where none was given.

    Raises:
        InvalidRequest: we do not send to such a URL, or the secret has not the form of one.
    """
    try:
        parse_target(url, allow_private=allow_private)
    except ForbiddenTarget as error:
        raise InvalidRequest(f"the webhook's url {error}", param="webhook.url") from error
    try:
        return Webhook(url, check_secret(secret) if secret else make_secret())
    except ValueError as error:
        raise InvalidRequest(f"the webhook's secret {error}", param="webhook.secret") from error
