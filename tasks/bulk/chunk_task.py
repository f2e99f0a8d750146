"""The Celery side of the bulk lanes: run a chunk, publish chunk messages, reap.

Owns the order of a chunk's life in a worker and the edge at which its errors end. A chunk message names a lane and no
chunk: which chunk goes next is decided when a worker has room for one, so that nobody waits behind messages that
were sent before. It is always acknowledged: what is still to be done is in the job records.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kombu.exceptions import KombuError
from redis import RedisError

from config.settings import Settings
from tasks import keys
from tasks.bulk.compute import ChunkWork, Stopped
from tasks.bulk.device_sharing import DeviceSharing
from tasks.bulk.outcomes import ChunkOutcomes
from tasks.celery import app, bulk_queue, publisher
from tasks.engine import NO_METER, Engine, ItemError, Meter, count_usage
from tasks.errors import CapacityError, EngineClosed, InputLost, StoreRefused
from tasks.jobs.blobs import Blobs, open_blobs
from tasks.jobs.claims import Claim, ClaimCode, Completed, Completion
from tasks.jobs.job import ChunkInput
from tasks.jobs.leases import Leases
from tasks.lanes import Lane, Service
from tasks.presence.eviction import warn_of_eviction
from tasks.redis_failures import explain_failure, is_refusal, words_of

__all__ = ["RUN_CHUNK", "WorkerContext", "publish_messages", "reap", "run_chunk"]

RUN_CHUNK = "run_chunk"
_BUSY_DELAY_S = 1.0
# Chunks up to this part of a full one, and single items, are computed beside the chunks that a worker holds.
_SMALL_PART = 8
# How often to look for a small chunk where turns change all the time, and where no change is heard of.
_LOOK_PAUSE_S, _LOOK_EVERY_S = 0.02, 1.0
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
    # Takes what keys have used.
    meter: Meter = NO_METER


@app.task(name=RUN_CHUNK, Request="tasks.celery_fixes:ForgivingRequest")  # type: ignore[untyped-decorator]  # Celery has no types
def run_chunk(model: str) -> str | None:
    """Compute the chunk whose turn it is in the lane of a model (its slug), as soon as this worker has room for it.

    Returns:
        What became of which chunk, for Flower (`tasks.celery_fixes`), beginning with `failed: ` where it could not be
        computed; None: there were more messages than chunks.
    """
    context: WorkerContext = app.twolane
    lane = Lane(model, Service.BULK)
    device = context.sharing.progress
    if not device.wait_until_moving(context.engine.progress, context.settings.ticket_timeout_s):
        _log.warning("chunks of %s are left to other workers: the device seems to hang", model)
        return None
    try:
        if not context.serves(model):
            # Unloaded after this worker took the message; it may come back until the consumer has let the queue go.
            time.sleep(_BUSY_DELAY_S)
            publish_messages(context.leases, lane, 1)
        elif what_became := _run_next(context, lane):
            publish_messages(context.leases, lane, 1)
            return what_became
    except RedisError as error:
        _log.warning("a chunk of %s is left to the reaper: %s", model, error)
        return "failed: Redis does not answer"
    return None


def _run_next(context: WorkerContext, lane: Lane) -> str:
    """Compute the next chunk; return what became of it, or an empty string if there was none.

    One thread more takes messages than chunks are held. It waits for room, or takes a small chunk without: a
    one-item job must not wait until a large chunk ends. It looks for one when `TurnsWatch` has
    heard that turns have changed.
    """
    held, settings = context.sharing.held, context.settings
    small_tokens = settings.chunk_tokens // _SMALL_PART
    has_room = held.enter(settings.chunks_in_flight, 0)
    while not has_room:
        seen = held.turns(lane)
        if held.closed or not context.leases.has_turns(lane):
            return ""
        if claim := _claim_next(context, lane, small_tokens):
            return _settle(context, claim)
        has_room = _wait_for_room(context, lane, seen)
    try:
        claim = _claim_next(context, lane)
        return "" if claim is None else _settle(context, claim)
    finally:
        held.leave()


def _wait_for_room(context: WorkerContext, lane: Lane, turns: int) -> bool:
    """Return True with a chunk more counted as held, or False when it is time to look for a small one again."""
    held, most = context.sharing.held, context.settings.chunks_in_flight
    return held.enter(most, _LOOK_PAUSE_S) or held.enter(most, _LOOK_EVERY_S, lambda: held.turns(lane) != turns)


def _claim_next(context: WorkerContext, lane: Lane, most_tokens: int | None = None) -> Claim | None:
    """Claim the chunk whose turn it is; None: there is none, or it is larger, or this worker is going away."""
    leases = context.leases
    while not context.sharing.held.closed and (tickets := leases.dispatch(lane, 1, most_tokens)):
        lease_s = context.sharing.progress.lease_s(context.settings)
        claim = leases.claim(tickets[0].job_id, tickets[0].chunk, context.worker_id, lease_s)
        if claim.held:
            return claim
        if claim.code is ClaimCode.MISFIT:
            _log.info("%s waits for a worker with the model that it began with", claim.job_id)
    return None


def publish_messages(leases: Leases, lane: Lane, wanted: int | None = None) -> int:
    """Publish messages that let workers take chunks, as far as they are needed; return how many.

    A failed publication is logged, no error: the reaper publishes what is missing.

    Args:
        leases: where the chunks are.
        lane: the bulk lane.
        wanted: see `Leases.count_messages`.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    count = leases.count_messages(lane, wanted)
    for published in range(count):
        try:
            publisher(leases.settings).send_task(RUN_CHUNK, (lane.model,), queue=bulk_queue(lane))
        # AttributeError: kombu 5.7, when another thread has just closed the lost connection of this channel.
        except (KombuError, RedisError, OSError, AttributeError) as error:
            _log.warning("chunk messages cannot be published, the reaper will try again: %s", error)
            # Do not use the broken connection again: the next message goes through a new one.
            publisher.cache_clear()
            return published
    return count


def reap(leases: Leases, lane: Lane) -> int:
    """Take back the claims of dead workers and publish messages where none is left; return how many messages.

    Every worker calls it once a second; any number of processes may.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    leases.reap(lane)
    published = publish_messages(leases, lane)
    if leases.redis.set(keys.store_sweep(), "", nx=True, ex=_SWEEP_EVERY_S):
        warn_of_eviction(leases.redis)
        open_blobs(leases.redis, leases.settings).sweep(leases.exists)
    return published


def _settle(context: WorkerContext, claim: Claim) -> str:
    """Compute the chunk and complete it, or give it back; return which of these in words.

    Raises:
        redis.RedisError: Redis does not answer; the claim runs out.
    """
    chunk = f"chunk {claim.chunk} of {claim.job_id}"
    try:
        completion = _compute(context, claim)
        _complete(context, claim, completion)
    except Stopped:
        context.leases.release(claim)
        return f"{chunk} was stopped"
    except StoreRefused as error:
        return _fail_refused(context, claim, error)
    except (CapacityError, EngineClosed) as error:
        _log.info("chunk %s of %s goes back: %s", claim.chunk, claim.job_id, error)
        context.leases.release(claim, _BUSY_DELAY_S)
        return f"{chunk} went back: {error}"
    except RedisError as error:
        if not is_refusal(error):
            raise
        return _fail_refused(context, claim, error)
    except Exception as error:  # noqa: BLE001 - the edge of a chunk: whatever went wrong, it must not stay claimed
        _log.exception("chunk %s of %s failed at attempt %s", claim.chunk, claim.job_id, claim.attempt)
        context.leases.fail(claim, type(error).__name__)
        return f"failed: {chunk}, attempt {claim.attempt}: {type(error).__name__}"
    return f"{chunk}: {completion.completed} items, {completion.failed} failed"


def _fail_refused(context: WorkerContext, claim: Claim, error: StoreRefused | RedisError) -> str:
    """Count an attempt whose result was refused for good; the pauses grow, since everything may be refused alike."""
    reason = error.message if isinstance(error, StoreRefused) else explain_failure(error).message
    facts = claim.chunk, claim.job_id, claim.attempt, words_of(error)
    _log.error("the result of chunk %s of %s is refused at attempt %s: %s", *facts)
    context.leases.fail(claim, reason, _BUSY_DELAY_S * 2 ** min(claim.failures, 8))
    return f"refused: chunk {claim.chunk} of {claim.job_id}, attempt {claim.attempt}: {reason}"


def _compute(context: WorkerContext, claim: Claim) -> Completion:
    items = context.blobs.get_input(claim.job_id, claim.chunk)
    # Of a chunk that is given up no vector is kept: a frame of zeros would be refused as the result was.
    given_up = claim.code is ClaimCode.POISON
    width = 0 if given_up else claim.params.dimensions or context.dimensions.get(claim.model, 0)
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


def _complete(context: WorkerContext, claim: Claim, completion: Completion) -> None:
    """Store the result, retrying while Redis is down: it has cost device time.

    Raises:
        redis.RedisError: Redis stays down, or refuses the result.
        StoreRefused: the result can never be stored.
    """
    until_s = time.monotonic() + 2 * context.settings.lease_s
    while True:
        try:
            pointer = context.blobs.stage_result(claim, completion.frame)
            code = context.leases.complete(claim, completion, pointer)
            break
        except RedisError as error:
            if is_refusal(error) or time.monotonic() > until_s:
                raise
            time.sleep(_COMPLETE_PAUSE_S)
    if code is Completed.OK:
        key, items = (claim.tenant, claim.key_id), completion.completed + completion.failed
        count_usage(context.meter, key, items, completion.tokens, completion.device_s)
    else:
        context.blobs.discard(pointer)
        _log.info("chunk %s of %s: the result comes late (%s)", claim.chunk, claim.job_id, code.value)
