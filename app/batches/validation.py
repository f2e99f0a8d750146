"""A batch's file becomes jobs: validated line by line, cut into chunks, and created when all of it is good.

Owns the step from `validating` to `in_progress` or `failed`. The file is streamed; a process that dies here leaves
nothing that counts: the next one removes the jobs that were noted, and starts again from the file.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict

from redis import RedisError

from app.access.auth import Tenant
from app.batches.groups import GroupTable
from app.batches.lines import Line, Refusal, read_call, read_line
from app.batches.lock import BatchLock, LockLostError
from app.batches.plan_file import PlannedCall, PlannedRefusal, write_step
from app.jobs.ndjson import is_blank, split_lines
from app.services import Services
from app.submission.service import SubmissionService
from tasks.errors import CapacityError, InvalidRequest, NotFound, RateLimited, TooLarge
from tasks.files.batches import BatchProblem, BatchState
from tasks.files.store import FileWriter, NewFile
from tasks.storage.objects import read_blocks

__all__ = ["BatchValidation", "forget_jobs"]

_MOST_PROBLEMS = 100
# The plan is removed with the batch's end; this is for the case that nobody lives to do it.
_PLAN_GRACE_S = 7 * 86_400.0


class BatchValidation:
    """Takes in the file of one batch."""

    def __init__(self, live: Services, lock: BatchLock, tenant: Tenant) -> None:
        self._live = live
        self._lock = lock
        self._tenant = tenant
        self._table = GroupTable(live, tenant, live.settings.batch_max_groups)
        self._problems: list[BatchProblem] = []
        self._seen: set[str] = set()
        self._refused = 0
        self._handed_over = False

    def run(self) -> None:
        """Validate the file and create the jobs, or fail the batch and say why.

        Raises:
            LockLostError: another process does it now, or the batch was cancelled; nothing of ours stays.
            tasks.errors.CapacityError, redis.RedisError: not possible now; to be tried again.
        """
        forget_jobs(self._live, self._lock.batch.planned, self._tenant.name)
        try:
            plan_id = self._read_file()
            if not self._problems:
                self._create_jobs(plan_id)
        except (InvalidRequest, NotFound, RateLimited, TooLarge) as error:
            self._problems.append(BatchProblem(error.code, error.message))
        finally:
            if not self._handed_over:
                self._discard()
        if self._problems:
            self._lock.move(BatchState.FAILED, {"problems": [asdict(problem) for problem in self._problems]})

    # -- reading

    def _read_file(self) -> str:
        """Read all lines, store the inputs and the plan, and return the plan's file id; empty: the file is bad."""
        batch, files = self._lock.batch, self._live.files
        source = files.open(files.get(batch.input_file_id, batch.tenant))
        keep_s = self._live.settings.batch_window_s + _PLAN_GRACE_S
        with files.open_writer(NewFile(batch.tenant, f"{batch.id}.plan", "batch_plan", keep_s)) as plan:
            for number, raw in enumerate(split_lines(read_blocks(source), self._live.settings.max_body_bytes), 1):
                self._lock.keep()
                if not is_blank(raw):
                    self._read_line(raw, number, plan)
                if len(self._problems) >= _MOST_PROBLEMS:
                    break
            if not self._seen and not self._problems:
                self._problems.append(BatchProblem("empty_file", "The input file has no lines."))
            if self._problems:
                return ""
            for group in self._table.groups:
                group.finish()
            return plan.commit().id

    def _read_line(self, raw: bytes, number: int, plan: FileWriter) -> None:
        line = self._check_line(read_line(raw, number, self._lock.batch.endpoint), number)
        # After the first problem the batch is lost, and the rest is read for further problems only.
        if isinstance(line, BatchProblem):
            self._problems.append(line)
        elif not self._problems:
            step = self._plan_line(line, number)
            if isinstance(step, BatchProblem):
                self._problems.append(step)
            else:
                plan.write(write_step(step))

    def _check_line(self, line: Line | BatchProblem, number: int) -> Line | BatchProblem:
        if isinstance(line, BatchProblem):
            return line
        if line.custom_id in self._seen:
            message = f"The custom_id '{line.custom_id[:80]}' stands in an earlier line, too."
            return BatchProblem("duplicate_custom_id", message, number, "custom_id")
        most = self._live.settings.batch_max_requests
        if len(self._seen) >= most:
            raise TooLarge(f"The file has more than {most} requests.")
        self._seen.add(line.custom_id)
        return line

    def _plan_line(self, line: Line, number: int) -> PlannedCall | PlannedRefusal | BatchProblem:
        call = read_call(line, self._lock.batch.endpoint, self._live, self._tenant)
        if isinstance(call, Refusal):
            self._refused += 1
            return PlannedRefusal(line.custom_id, call.status, call.body)
        group = self._table.place(call, line.custom_id)
        if group is None:
            most = self._live.settings.batch_max_groups
            message = f"The file has more than {most} different combinations of model and parameters."
            return BatchProblem("too_many_groups", message, number, "body")
        return PlannedCall(line.custom_id, group, len(call.items), call.answer)

    # -- creating

    def _create_jobs(self, plan_id: str) -> None:
        groups, batch = self._table.groups, self._lock.batch
        noted = {"planned": [group.job_id for group in groups], "plan_file_id": plan_id}
        # Noted before the first is created, so that the next process can remove them.
        if self._lock.move(BatchState.VALIDATING, noted) is not BatchState.VALIDATING:
            raise LockLostError
        store, submission = self._live.store, SubmissionService(self._live, self._tenant)
        items = {group.job_id: group.items for group in groups}
        store.reserve_queue(self._tenant.name, items, self._tenant.max_queued_items)
        left_s = batch.deadline_at - self._live.batches.now_s()
        for group in groups:
            self._lock.keep()
            store.create(group.describe(submission, batch.id, max(1.0, left_s)), group.records)
        self._hand_over()
        for group in groups:
            submission.publish(group.describe(submission, batch.id, 1.0).lane, len(group.records))

    def _hand_over(self) -> None:
        counts = {"total": len(self._seen), "failed": self._refused}
        fields = {"groups": [asdict(group.summarize()) for group in self._table.groups], **counts}
        try:
            # A batch that is being cancelled by now has jobs to be cancelled, and a plan that says what they were.
            self._lock.move(BatchState.IN_PROGRESS, fields)
        except RedisError:
            # It may have been written and only the answer lost: the next process that reads the record decides.
            self._handed_over = True
            raise
        self._handed_over = True

    def _discard(self) -> None:
        """Remove what was stored and created; what cannot be removed now was noted or expires."""
        groups = self._table.groups
        with contextlib.suppress(RedisError, CapacityError):
            for group in groups:
                group.discard()
            forget_jobs(self._live, [group.job_id for group in groups], self._tenant.name)


def forget_jobs(live: Services, job_ids: Sequence[str], tenant: str) -> None:
    """Delete jobs of a batch with their inputs and results, as far as there are any, and their places in the queue."""
    for job_id in job_ids:
        with contextlib.suppress(NotFound):
            job = live.store.delete(job_id, tenant)
            live.blobs.delete(job_id, job.chunks)
    live.store.release_queue(tenant, job_ids)
