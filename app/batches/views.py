"""A batch as its reader sees it. Owns the shape of the batch object and the count of lines while jobs run."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from app.services import Services
from tasks.errors import NotFound
from tasks.files.batches import BatchRecord, BatchState
from tasks.jobs.job import Job

__all__ = ["view_batch"]

_TIMES = (
    BatchState.IN_PROGRESS,
    BatchState.FINALIZING,
    BatchState.COMPLETED,
    BatchState.FAILED,
    BatchState.EXPIRED,
    BatchState.CANCELLING,
    BatchState.CANCELLED,
)


def view_batch(live: Services, batch: BatchRecord) -> dict[str, Any]:
    """Return the batch object."""
    problems = [
        {"code": problem.code, "message": problem.message, "param": problem.param, "line": problem.line}
        for problem in batch.problems
    ]
    jobs = _find_jobs(live, batch)
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": problems} if problems else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.state.value,
        "output_file_id": batch.output_file_id or None,
        "error_file_id": batch.error_file_id or None,
        "created_at": int(batch.created_at),
        "expires_at": int(batch.deadline_at),
        **{f"{state.value}_at": _whole(batch.times.get(state)) for state in _TIMES},
        "request_counts": _count_lines(batch, jobs),
        "model": ", ".join(batch.models or dict.fromkeys(job.model for job in jobs.values())) or None,
        "usage": _view_usage(batch.tokens or sum(job.tokens for job in jobs.values())),
        "metadata": batch.metadata,
    }


def _whole(time_s: float | None) -> int | None:
    return None if time_s is None else int(time_s)


def _find_jobs(live: Services, batch: BatchRecord) -> dict[str, Job]:
    """Return the jobs of the batch by ID, those that are still kept."""
    found: dict[str, Job] = {}
    if batch.ended:
        return found
    for group in batch.groups:
        with suppress(NotFound):
            found[group.job_id] = live.store.get(group.job_id, batch.tenant)
    return found


def _count_lines(batch: BatchRecord, jobs: Mapping[str, Job]) -> dict[str, int]:
    """Count lines by outcome: exactly when the batch has ended, before that by each job's share of finished items."""
    completed, failed = batch.completed, batch.failed
    if not batch.ended:
        for group in batch.groups:
            if group.job_id in jobs:
                counts = jobs[group.job_id].counts
                completed += group.lines * counts.completed // group.items
                failed += group.lines * counts.failed // group.items
    return {"total": batch.total, "completed": completed, "failed": failed}


def _view_usage(tokens: int) -> dict[str, Any]:
    """Return the tokens that were read so far, in the shape of OpenAI's batches."""
    return {
        "input_tokens": tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens,
    }
