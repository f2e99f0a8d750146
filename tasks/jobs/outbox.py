"""The webhook outbox: ends of jobs that are to be sent, claimed by one process at a time, retried with growing delays.

Owns the due lists, the turns between tenants and the delays. The end itself is written by the step that ends the job
(`lua/_job.lua`); what is sent, and how, is `app.webhooks`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

import orjson
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.jobs.job import Job, Webhook
from tasks.jobs.records import read_job
from tasks.keys import Key
from tasks.scripts import Script, Scripts

__all__ = ["Attempt", "Delivery", "Outbox"]

# The delays of the Standard Webhooks text, as multiples of the first: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h.
_STEPS = (1, 60, 360, 1440, 3600, 7200, 10080)
# A process that settles nothing for longer than two attempts may take is dead.
_HOLD_TIMEOUTS = 3
_TENANTS_PER_LOOK = 1000


@dataclass(frozen=True, slots=True)
class Delivery:
    """One end that is to be sent.

    Attributes:
        number: which end of the job it is: a job that is retried ends again.
        event: `succeeded`, `failed`, `cancelled` or `expired`.
        at: when it ended, in seconds since the epoch.
        attempts: attempts before this one.
    """

    job: Job
    webhook: Webhook
    number: int
    event: str
    at: float
    attempts: int

    @property
    def id(self) -> str:
        """The same at every attempt, so that a receiver recognises what it got before."""
        return f"msg_{self.job.id.removeprefix('job_')}_{self.number}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one attempt.

    Attributes:
        answer: HTTP status; None when there was no answer.
        error: a sentence for the job's owner; empty when it was taken.
        final: no further attempt would help.
    """

    answer: int | None = None
    error: str = ""
    final: bool = False


class WebhookTurnsScript(Script):
    """List up to `most` tenants that have ends to be sent now."""

    tenants: Key
    most: int


class WebhookClaimScript(Script):
    """Claim one end of a tenant for `hold_ms`."""

    tenants: Key
    due: Key
    tenant: str
    hold_ms: int


class WebhookSettleScript(Script):
    """Note one attempt.

    Attributes:
        job: the record.
        events: the last change of the job.
        tenants: tenants by the time of their next turn.
        due: the tenant's ends by the time of the next attempt.
        number: of the end.
        status: `delivered`, `retrying` or `failed`.
        answer: HTTP status of the attempt.
        error: a sentence, or empty.
        delay_ms: time until the next attempt.
    """

    job: Key
    events: Key
    tenants: Key
    due: Key
    tenant: str
    job_id: str
    number: int
    status: str
    answer: int | None
    error: str
    delay_ms: int


class Outbox:
    """The ends that are to be sent. Thread-safe; any number of processes may use it at a time.

    All methods raise `redis.RedisError` when Redis does not answer.

    Args:
        redis: client without `decode_responses`.
        settings: timeout and first delay.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)
        self._hold_ms = int(_HOLD_TIMEOUTS * settings.webhook_timeout_s * 1000)
        self._first_delay_ms = settings.webhook_retry_s * 1000

    def take(self, most: int, but: Collection[str] = ()) -> list[Delivery]:
        """Claim ends that are due and return them; no other process gets them until the claim expires.

        Args:
            most: how many at most; tenants take turns.
            but: tenants that get no turn now.
        """
        self._take_up_earlier()
        taken: list[Delivery] = []
        while len(taken) < most and (found := self._claim(but)) is not None:
            if (delivery := self._read(*found)) is not None:
                taken.append(delivery)
        return taken

    def settle(self, delivery: Delivery, attempt: Attempt) -> str:
        """Record the outcome of an attempt and return the new status: `delivered`, `retrying` or `failed`."""
        last = attempt.final or delivery.attempts >= len(_STEPS)
        status = "delivered" if not attempt.error else "failed" if last else "retrying"
        delay_ms = 0 if last else int(self._first_delay_ms * _STEPS[delivery.attempts])
        job_id = delivery.job.id
        call = WebhookSettleScript(
            keys.job(job_id),
            keys.job_events(job_id),
            keys.webhook_tenants(),
            keys.webhooks_due(delivery.job.tenant),
            tenant=delivery.job.tenant,
            job_id=job_id,
            number=delivery.number,
            status=status,
            answer=attempt.answer,
            error=attempt.error,
            delay_ms=delay_ms,
        )
        self._scripts.call(call)
        return status

    def _claim(self, but: Collection[str]) -> tuple[str, str] | None:
        """Return tenant and job of one end that is due."""
        turns: list[bytes] = self._scripts.call(WebhookTurnsScript(keys.webhook_tenants(), _TENANTS_PER_LOOK))
        for tenant in (name.decode() for name in turns):
            if tenant in but:
                continue
            call = WebhookClaimScript(keys.webhook_tenants(), keys.webhooks_due(tenant), tenant, self._hold_ms)
            if (job_id := self._scripts.call(call)) is not None:
                return tenant, job_id.decode()
        return None

    def _take_up_earlier(self) -> None:
        """Give the ends a turn that processes of an earlier version noted."""
        for job_id in cast("list[bytes]", self._redis.zrange(keys.webhooks_earlier(), 0, 99)):
            tenant = cast("bytes | None", self._redis.hget(keys.job(job_id.decode()), "tenant"))
            if tenant is not None:
                self._redis.zadd(keys.webhooks_due(tenant.decode()), {job_id: 1}, nx=True)
                self._redis.zadd(keys.webhook_tenants(), {tenant: 1}, nx=True)
            self._redis.zrem(keys.webhooks_earlier(), job_id)

    def _read(self, tenant: str, job_id: str) -> Delivery | None:
        record = cast("Mapping[bytes, bytes]", self._redis.hgetall(keys.job(job_id)))
        if b"webhook" not in record or b"delivery" not in record:
            # Deleted, expired, or running again: there is nothing to send.
            self._redis.zrem(keys.webhooks_due(tenant), job_id)
            return None
        noted = orjson.loads(record[b"delivery"])
        return Delivery(
            job=read_job(record),
            webhook=Webhook(**orjson.loads(record[b"webhook"])),
            number=noted["number"],
            event=noted["event"],
            at=noted["at_ms"] / 1000,
            attempts=noted["attempts"],
        )
