"""The Celery side of the bulk lanes: run a chunk, publish chunk messages, reap.

Owns the order of a chunk's life in a worker and the edge at which its errors end. A chunk message (a ticket, published)
is always acknowledged: what is still to be done is in the job record.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from kombu.exceptions import KombuError
from redis import RedisError

from config.settings import Settings
from tasks import keys
from tasks.bulk.compute import ChunkWork, Stopped
from tasks.bulk.device_sharing import DeviceSharing
from tasks.bulk.outcomes import ChunkOutcomes
from tasks.celery import app, bulk_queue, publisher
from tasks.engine import Engine, ItemError
from tasks.errors import CapacityError, EngineClosed, InputLost
from tasks.jobs.blobs import Blobs, open_blobs
from tasks.jobs.claims import Claim, ClaimCode, Completed, Completion, Ticket
from tasks.jobs.job import ChunkInput
from tasks.jobs.leases import Leases
from tasks.lanes import Lane
from tasks.presence.eviction import warn_of_eviction

__all__ = ["RUN_CHUNK", "WorkerContext", "publish_tickets", "reap", "run_chunk"]

RUN_CHUNK = "run_chunk"
_BUSY_DELAY_S = 1.0
_COMPLETE_PAUSE_S = 0.5
_SWEEP_EVERY_S = 300
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker process has for its chunks; the boot step puts it on the Celery app as `app.twolane`."""

    leases: Leases
    blobs: Blobs
    engine: Engine
    settings: Settings
    worker_id: str
    sharing: DeviceSharing = field(default_factory=DeviceSharing)
    # Length of a vector by name of the card; a model that gives scores has 0.
    dimensions: Mapping[str, int] = field(default_factory=dict)
    # Whether a model (its slug) is loaded here now.
    serves: Callable[[str], bool] = lambda _: True


@app.task(name=RUN_CHUNK, Request="tasks.celery_fixes:ForgivingRequest")  # type: ignore[untyped-decorator]  # Celery has no types
def run_chunk(job_id: str, chunk: int) -> None:
    """Claim the chunk that a message names and complete it, or leave it to the reaper."""
    context: WorkerContext = app.twolane
    device = context.sharing.progress
    if not device.wait_until_moving(context.engine.progress, context.settings.ticket_timeout_s):
        _log.warning("chunk %s of %s is left to other workers: the device seems to hang", chunk, job_id)
        return
    try:
        if _pass_on(context, job_id, chunk):
            return
        claim = context.leases.claim(job_id, chunk, context.worker_id, device.lease_s(context.settings))
        if claim.code is ClaimCode.MISFIT:
            _log.info("chunk %s of %s waits for a worker with the model that its job began with", chunk, job_id)
        if claim.held:
            head = _settle(context, claim)
            job = context.leases.find(job_id)
            if job is not None:
                publish_tickets(context.leases, job.lane, head)
    except RedisError as error:
        _log.warning("chunk %s of %s is left to the reaper: %s", chunk, job_id, error)


def _pass_on(context: WorkerContext, job_id: str, chunk: int) -> bool:
    """Publish the message again if its model was unloaded here after this worker had taken it; return whether."""
    job = context.leases.find(job_id)
    if job is None or context.serves(job.lane.model):
        return False
    # It may come back to this worker until the consumer has let the queue go.
    time.sleep(_BUSY_DELAY_S)
    _publish(context.settings, job.lane, [Ticket(job_id, chunk)])
    return True


def publish_tickets(leases: Leases, lane: Lane, head: str | None = None) -> int:
    """Move pending chunks through the window and publish their messages; return how many.

    A failed publication is logged, no error: the ticket becomes overdue and is published again.

    Args:
        leases: where the chunks are.
        lane: the bulk lane.
        head: the job that is next, where the caller knows it.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    return _publish(leases.settings, lane, leases.dispatch(lane, head))


def reap(leases: Leases, lane: Lane) -> int:
    """Take back the claims of dead workers, publish what is overdue and fill the window; return how many messages.

    Every worker calls it once a second; any number of processes may.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    published = _publish(leases.settings, lane, leases.reap(lane)) + publish_tickets(leases, lane)
    if leases.redis.set(keys.store_sweep(), "", nx=True, ex=_SWEEP_EVERY_S):
        warn_of_eviction(leases.redis)
        open_blobs(leases.redis, leases.settings).sweep(leases.exists)
    return published


def _publish(settings: Settings, lane: Lane, tickets: Iterable[Ticket]) -> int:
    published = 0
    for ticket in tickets:
        try:
            priority = keys.AGAIN if ticket.again else keys.ORDINARY
            arguments = (ticket.job_id, ticket.chunk)
            publisher(settings).send_task(RUN_CHUNK, arguments, queue=bulk_queue(lane), priority=priority)
        # AttributeError: kombu 5.7, when another thread has just closed the lost connection of this channel.
        except (KombuError, RedisError, OSError, AttributeError) as error:
            _log.warning("chunk messages cannot be published, the reaper will try again: %s", error)
            # Do not use the broken connection again: the next message goes through a new one.
            publisher.cache_clear()
            break
        published += 1
    return published


def _settle(context: WorkerContext, claim: Claim) -> str | None:
    """Compute the chunk and complete it, or give it back; return the job that is next, if it is known.

    Raises:
        redis.RedisError: Redis does not answer; the claim runs out.
    """
    try:
        return _complete(context, claim, _compute(context, claim))
    except Stopped:
        context.leases.release(claim)
    except (CapacityError, EngineClosed) as error:
        _log.info("chunk %s of %s goes back: %s", claim.chunk, claim.job_id, error)
        context.leases.release(claim, _BUSY_DELAY_S)
    except RedisError:
        raise
    except Exception as error:  # noqa: BLE001 - the edge of a chunk: whatever went wrong, it must not stay claimed
        _log.exception("chunk %s of %s failed at attempt %s", claim.chunk, claim.job_id, claim.attempt)
        context.leases.fail(claim, type(error).__name__)
    return None


def _compute(context: WorkerContext, claim: Claim) -> Completion:
    items = context.blobs.get_input(claim.job_id, claim.chunk)
    width = claim.params.dimensions or context.dimensions.get(claim.model, 0)
    if items is None:
        # Deleted with its job, or completed by another worker: then this is not counted. Lost: then it is an error.
        outcomes = ChunkOutcomes(claim, ChunkInput([""] * claim.items), width)
        lost = ItemError.of(InputLost("the text of this item is not in Redis any more"))
        for position in outcomes.left:
            outcomes.fail(position, lost)
        return outcomes.completion()
    before = context.blobs.get_result(claim.job_id, claim.chunk, claim.pointer) if claim.redo else None
    outcomes = ChunkOutcomes(claim, items, width, before)
    ChunkWork(context.engine, context.leases, context.sharing, claim, items).compute(outcomes)
    return outcomes.completion()


def _complete(context: WorkerContext, claim: Claim, completion: Completion) -> str | None:
    """Store the result, retrying while Redis is down: it has cost device time.

    Raises:
        redis.RedisError: Redis stays down.
    """
    until_s = time.monotonic() + 2 * context.settings.lease_s
    while True:
        try:
            pointer = context.blobs.stage_result(claim, completion.frame)
            code, head = context.leases.complete(claim, completion, pointer)
            break
        except RedisError:
            if time.monotonic() > until_s:
                raise
            time.sleep(_COMPLETE_PAUSE_S)
    if code is not Completed.OK:
        context.blobs.discard(pointer)
        _log.info("chunk %s of %s: the result comes late (%s)", claim.chunk, claim.job_id, code.value)
    return head
