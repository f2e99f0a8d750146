"""The batch scheduler: advances batches from their file to jobs, and from finished jobs to output files.

Owns the decision what is next for a batch, and a periodic thread of each web process. Any process may advance any
batch: the state is in Redis, and a lock makes sure that one does it at a time. When a process dies, its lock expires
and another one continues.
"""

import contextlib
import logging
import secrets
import time
import traceback

from redis import RedisError

from app.access.auth import Tenant
from app.batches.lock import BatchLock, LockLostError
from app.batches.outputs import write_outputs
from app.batches.validation import BatchValidation, forget_jobs
from app.services import Services
from tasks.errors import Conflict, NotFound, TwolaneError
from tasks.files.batches import BatchRecord, BatchState
from tasks.jobs.job import Job, JobState
from tasks.periodic import PeriodicThread

__all__ = ["BatchScheduler"]

_log = logging.getLogger(__name__)
_TICK_S = 0.5
_POLL_S = 0.5
_RETRY_S = 5.0
_SWEEP_EVERY_S = 60.0
_STOP_S = 5.0


class BatchScheduler:
    """Advances the batches of all tenants.

    Args:
        live: the services of this process.
    """

    def __init__(self, live: Services) -> None:
        self._live = live
        self._holder = secrets.token_hex(8)
        self._wake = live.batch_wake
        self._sweep_at_s = 0.0
        self._thread = PeriodicThread(self._run, _TICK_S, "batch scheduler", wake=self._wake)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; what it was doing is left to another process."""
        self._thread.stop(_STOP_S)

    def run_once(self) -> int:
        """Advance every batch that is due, and return how many there were."""
        due = self._live.batches.list_due()
        for tenant, batch_id in due:
            if not self._thread.stopping:
                self._advance_locked(batch_id, tenant)
        return len(due)

    def _run(self) -> None:
        self.run_once()
        if time.monotonic() >= self._sweep_at_s:
            self._sweep_at_s = time.monotonic() + _SWEEP_EVERY_S
            while not self._thread.stopping and self._live.files.sweep():
                pass

    def _advance_locked(self, batch_id: str, tenant: str) -> None:
        store = self._live.batches
        if not store.lock(batch_id, tenant, self._holder):
            return
        delay_s = _RETRY_S
        try:
            delay_s = self._advance(BatchLock(store, store.get(batch_id, tenant), self._holder))
        except LockLostError:
            return
        except (RedisError, TwolaneError) as error:
            _log.warning("batch %s cannot be advanced now: %s", batch_id, type(error).__name__)
        except Exception as error:  # noqa: BLE001 - the other batches must not wait for one that fails
            # The message of an unforeseen error may hold text of a line.
            frames = "".join(traceback.format_tb(error.__traceback__))
            _log.error("batch %s failed to advance: %s\n%s", batch_id, type(error).__name__, frames)
        if delay_s == 0:
            self._wake.set()
        with contextlib.suppress(RedisError):
            store.unlock(batch_id, tenant, self._holder, delay_s)

    def _advance(self, lock: BatchLock) -> float:
        """Do what is next and return the delay until the next step, in seconds."""
        batch = lock.batch
        if batch.ended:
            self._tidy_up(batch)
            return _POLL_S
        if batch.state is BatchState.VALIDATING and self._live.batches.now_s() < batch.deadline_at:
            BatchValidation(self._live, lock, Tenant.from_rights(batch.tenant, batch.rights)).run()
            return 0.0
        # A batch whose file was taken in has lines, be they good or refused.
        if batch.total == 0:
            lock.move(BatchState.EXPIRED, {})
            return 0.0
        return self._follow(lock)

    def _follow(self, lock: BatchLock) -> float:
        """Wait for the jobs of a batch; when all have ended, write its files."""
        batch = lock.batch
        jobs = [self._read_job(group.job_id, batch) for group in batch.groups]
        if any(job is not None and not job.ended for job in jobs):
            return _POLL_S
        expired = any(job is not None and job.state is JobState.EXPIRED for job in jobs)
        write_outputs(self._live, lock, jobs, BatchState.EXPIRED if expired else BatchState.COMPLETED)
        return 0.0

    def _read_job(self, job_id: str, batch: BatchRecord) -> Job | None:
        """Return a job of a batch, cancelled if the batch is being cancelled; None: it was deleted."""
        store = self._live.store
        with contextlib.suppress(NotFound):
            job = store.get(job_id, batch.tenant)
            if batch.state is BatchState.CANCELLING and not job.ended:
                with contextlib.suppress(Conflict):
                    job = store.cancel(job_id, batch.tenant)
            return job
        return None

    def _tidy_up(self, batch: BatchRecord) -> None:
        """Remove what was only needed on the way to the end."""
        forget_jobs(self._live, batch.planned, batch.tenant)
        kept = {"", batch.output_file_id, batch.error_file_id}
        for file_id in {batch.plan_file_id, *batch.drafts} - kept:
            self._live.files.discard(file_id, batch.tenant)
        self._live.batches.leave(batch.id, batch.tenant)
