"""How a claimed chunk is computed: in one go first; carefully, once it has ended a worker.

Owns waiting for the engine with heartbeats, and the search for the item that ends workers. Scripts count the deaths
(`lua/_job.lua`); the engine computes.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from redis import RedisError

from tasks.bulk.device_sharing import DeviceSharing, ProgressWatch
from tasks.bulk.outcomes import ChunkOutcomes
from tasks.cache.values import job_scope, tenant_scope
from tasks.engine import Engine, ItemError, Outcomes, Work
from tasks.errors import CapacityError, EngineClosed, GaveUp, TwolaneError
from tasks.jobs.claims import Claim, ClaimCode
from tasks.jobs.job import ChunkInput
from tasks.jobs.leases import Leases

__all__ = ["ChunkWork", "Stopped"]

# A chunk that ended a worker is computed in at most so many steps: one item each, but for very large chunks.
_CAREFUL_STEPS = 512
# Suspects come early, so that the innocent are cleared soon, but not first: a worker that is killed while it starts
# would else be taken for one that died of them.
_BEFORE_SUSPECTS = 4
_BEATS_PER_LEASE = 3


class Stopped(Exception):
    """The job is being cancelled or paused, or the claim is lost: the result is of no use any more."""


class ChunkWork:
    """Computes the items of one claim.

    Args:
        engine: the worker's engine.
        leases: where the claim is held.
        sharing: what this worker's chunks have in common.
        claim: the claim.
        items: the texts.
    """

    def __init__(self, engine: Engine, leases: Leases, sharing: DeviceSharing, claim: Claim, items: ChunkInput) -> None:
        self._engine = engine
        self._leases = leases
        self._lock = sharing.lock
        self._device = sharing.progress
        self._claim = claim
        self._items = items
        self._step_s = leases.settings.lease_s / _BEATS_PER_LEASE
        self._first_progress = engine.progress()

    def compute(self, outcomes: ChunkOutcomes) -> None:
        """Enter the outcome of every item that is left.

        Raises:
            Stopped: the job is ending or paused, or the claim is lost.
            CapacityError, EngineClosed: this worker cannot do it now; no fault of the chunk.
            Exception: whatever else the engine ends the whole with, at the first attempt.
        """
        if self._claim.code is ClaimCode.POISON:
            reason = self._claim.reason or "it ended too many workers"
            for position in outcomes.left:
                outcomes.fail(position, ItemError.of(GaveUp(f"the chunk of this item was given up: {reason}")))
        elif self._claim.attempt == 1:
            with self._lock.read(self._step_s, self._beat):
                positions = outcomes.left
                outcomes.put(positions, self._run(positions))
        else:
            with self._lock.write(self._step_s, self._beat):
                for positions in plan_carefully(outcomes.left, self._claim.suspects):
                    self._run_marked(outcomes, positions)

    def _run_marked(self, outcomes: ChunkOutcomes, positions: Sequence[int]) -> None:
        if self._leases.mark(self._claim, positions, self._lease_s):
            raise Stopped
        try:
            outcomes.put(positions, self._run(positions))
        except (CapacityError, EngineClosed, Stopped):
            raise
        except Exception as error:  # noqa: BLE001 - the edge at which one item's failure is kept from its neighbours
            if len(positions) == 1:
                outcomes.fail(positions[0], describe_failure(error))
                return
            for position in positions:
                self._run_marked(outcomes, [position])

    def _run(self, positions: Sequence[int]) -> Outcomes:
        watch = ProgressWatch(self._device, self._engine.progress())
        future = self._engine.submit(self._work(positions))
        try:
            return self._wait(future, watch)
        except Stopped:
            future.cancel()
            if not watch.has_moved(self._engine.progress()) and watch.still_s >= self._leases.settings.lease_s:
                self._device.suspect(watch)
            raise

    def _wait(self, future: Future[Outcomes], watch: ProgressWatch) -> Outcomes:
        while True:
            try:
                return future.result(self._step_s)
            except TimeoutError:
                # The work itself may have ended with such an error.
                if future.done():
                    return future.result()
            finally:
                watch.has_moved(self._engine.progress())
            self._beat()

    def _beat(self) -> None:
        """Renew the lease if the device finished something since the claim; a hung device must lose it.

        Redis not answering is no reason to stop: it may be back when the result is there.
        """
        progress = self._engine.progress() - self._first_progress
        try:
            stop = self._leases.heartbeat(self._claim, progress, self._lease_s)
        except RedisError:
            return
        if stop:
            raise Stopped

    @property
    def _lease_s(self) -> float:
        return self._device.lease_s(self._leases.settings)

    def _work(self, positions: Sequence[int]) -> Work:
        claim, items = self._claim, self._items
        return Work(
            model=claim.model,
            operation=claim.operation,
            texts=[items.texts[position] for position in positions],
            queries=None if items.queries is None else [items.queries[position] for position in positions],
            params=claim.params,
            reuse=_scope(claim),
            fingerprint=claim.fingerprint,
        )


def _scope(claim: Claim) -> str:
    """Return the scope of the cache: that of a tenant serves within a job, too."""
    if claim.params.cache:
        return tenant_scope(claim.tenant)
    return job_scope(claim.job_id) if claim.params.dedupe else ""


def plan_carefully(positions: Sequence[int], suspects: Sequence[int]) -> Iterator[list[int]]:
    """Yield the items in the groups in which they go to the device: suspects one by one, others in small groups."""
    suspected = [position for position in positions if position in set(suspects)]
    others = [position for position in positions if position not in set(suspects)]
    yield from ([position] for position in others[:_BEFORE_SUSPECTS])
    yield from ([position] for position in suspected)
    rest = others[_BEFORE_SUSPECTS:]
    size = -(-len(rest) // _CAREFUL_STEPS) or 1
    yield from (rest[first : first + size] for first in range(0, len(rest), size))


def describe_failure(error: Exception) -> ItemError:
    """Return the item error that an exception becomes; what we did not raise ourselves is not shown to the caller."""
    if isinstance(error, TwolaneError):
        return ItemError.of(error)
    return ItemError.of(TwolaneError(f"computing failed with {type(error).__name__}"))
