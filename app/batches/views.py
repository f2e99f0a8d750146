"""A batch as its reader sees it. Owns the shape of the batch object and the count of lines while jobs run."""

from contextlib import suppress
from typing import Any

from app.services import Services
from tasks.errors import NotFound
from tasks.files.batches import BatchRecord, BatchState

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
        "request_counts": _count_lines(live, batch),
        "metadata": batch.metadata,
    }


def _whole(time_s: float | None) -> int | None:
    return None if time_s is None else int(time_s)


def _count_lines(live: Services, batch: BatchRecord) -> dict[str, int]:
    """Count lines by outcome: exactly when the batch has ended, before that by each job's share of finished items."""
    completed, failed = batch.completed, batch.failed
    if not batch.ended:
        for group in batch.groups:
            with suppress(NotFound):
                counts = live.store.get(group.job_id, batch.tenant).counts
                completed += group.lines * counts.completed // group.items
                failed += group.lines * counts.failed // group.items
    return {"total": batch.total, "completed": completed, "failed": failed}
