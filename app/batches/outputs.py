"""Finished jobs become the two files of a batch: answers in one, errors in the other, in the order of the input.

Owns the lines of output files and the end of a batch. Plan and results are streamed: one chunk of each job is in
memory. It may be done again from the start by another process: only the files of the one that ends the batch count.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import orjson
from flask import Response

from app.batches.lock import BatchLock
from app.batches.plan_file import PlannedCall, PlannedRefusal, read_plan
from app.http.errors import raise_item_errors, render_error
from app.jobs.ndjson import split_lines
from app.jobs.result_items import ResultChunk
from app.jobs.results import Results
from app.services import Services
from tasks.engine import ItemError, Outcomes
from tasks.errors import Expired, NotFound, TwolaneError
from tasks.files.batches import BatchState
from tasks.files.store import FileWriter, NewFile
from tasks.jobs.job import Job, JobState
from tasks.storage.objects import read_blocks
from tasks.vectors import join_extras

__all__ = ["write_outputs"]

# A plan's line may be longer than the line that it was made of, but not by much.
_PLAN_LINE_FACTOR = 2
_ENDLESS = 1 << 62
_CANCELLED = ("batch_cancelled", "This request was not run: its batch was cancelled before.")
_EXPIRED = ("batch_expired", "This request was not run before its batch expired.")


def write_outputs(live: Services, lock: BatchLock, jobs: Sequence[Job | None], goal: BatchState) -> None:
    """Write the files of a batch whose jobs have all ended, and end it.

    Args:
        live: the services of this process.
        lock: on the batch.
        jobs: its jobs by group; None where one is gone.
        goal: the state in which it ends, unless it is being cancelled.

    Raises:
        LockLostError: another process does it now; nothing of ours stays.
        tasks.errors.CapacityError, redis.RedisError: not possible now; to be tried again.
    """
    batch = lock.batch
    for leftover in batch.drafts:
        live.files.discard(leftover, batch.tenant)
    with ExitStack() as stack:
        writers = [stack.enter_context(live.files.open_writer(_describe(lock, kind))) for kind in ("output", "error")]
        # Noted before they are visible, so that the next process that advances the batch can remove them.
        lock.move(BatchState.FINALIZING, {"drafts": [writer.id for writer in writers]})
        output, errors = _Lines(writers[0]), _Lines(writers[1])
        _write_lines(live, lock, jobs, output, errors)
        fields = {
            "completed": output.count,
            "failed": errors.count,
            "total": output.count + errors.count,
            "output_file_id": output.commit(),
            "error_file_id": errors.commit(),
            # The jobs go with the batch's end.
            "models": list(dict.fromkeys(job.model for job in jobs if job is not None)),
            "tokens": sum(job.tokens for job in jobs if job is not None),
        }
        lock.move(goal, fields)


def _describe(lock: BatchLock, kind: str) -> NewFile:
    batch = lock.batch
    return NewFile(batch.tenant, f"{batch.id}_{kind}.jsonl", "batch_output", batch.output_ttl_s)


class _Lines:
    """One of the two files. Without lines it is not made."""

    def __init__(self, writer: FileWriter) -> None:
        self._writer = writer
        self.count = 0

    def write(self, custom_id: str, response: Mapping[str, Any] | None, error: Mapping[str, str] | None) -> None:
        line = {
            "id": f"batch_req_{secrets.token_hex(16)}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }
        self._writer.write(orjson.dumps(line) + b"\n")
        self.count += 1

    def commit(self) -> str:
        return self._writer.commit().id if self.count else ""


def _write_lines(live: Services, lock: BatchLock, jobs: Sequence[Job | None], output: _Lines, errors: _Lines) -> None:
    cancelling = lock.batch.state is BatchState.CANCELLING
    readers = [_ItemReader(live, job, cancelling=cancelling) for job in jobs]
    for step in _read_steps(live, lock):
        lock.keep()
        if isinstance(step, PlannedRefusal):
            errors.write(step.custom_id, _answer(step.status, orjson.dumps(step.body)), None)
            continue
        reader = readers[step.group]
        outcomes = reader.take(step.items)
        if outcomes is None:
            code, message = reader.reason
            errors.write(step.custom_id, None, {"code": code, "message": message})
            continue
        response = _render(step, outcomes)
        file = output if response.status_code == 200 else errors
        file.write(step.custom_id, _answer(response.status_code, response.data), None)


def _read_steps(live: Services, lock: BatchLock) -> Iterator[PlannedCall | PlannedRefusal]:
    batch = lock.batch
    plan = live.files.open(live.files.get(batch.plan_file_id, batch.tenant, hidden=True))
    longest = _PLAN_LINE_FACTOR * live.settings.max_body_bytes
    return read_plan(split_lines(read_blocks(plan), longest))


def _render(step: PlannedCall, outcomes: Outcomes) -> Response:
    try:
        if not step.answer.item_errors:
            raise_item_errors(outcomes.errors)
    except TwolaneError as error:
        return render_error(error)
    return step.answer.render(outcomes)


def _answer(status: int, body: bytes) -> Mapping[str, Any]:
    # The body is JSON already and is put in as it is.
    return {"status_code": status, "request_id": f"req_{secrets.token_hex(16)}", "body": orjson.Fragment(body)}


class _ItemReader:
    """Reads the items of one job in their order."""

    def __init__(self, live: Services, job: Job | None, *, cancelling: bool) -> None:
        stopped = cancelling if job is None else job.state is JobState.CANCELLED
        self.reason = _CANCELLED if stopped else _EXPIRED
        self._chunks = _walk(live, job)
        self._chunk: ResultChunk | None = None
        self._at = self._left = 0

    def take(self, items: int) -> Outcomes | None:
        """Return the outcomes of the next items; None: one of them was never computed."""
        parts: list[tuple[ResultChunk, slice]] = []
        complete = True
        while items > 0:
            if self._left == 0:
                self._left, self._chunk = next(self._chunks)
                self._at = 0
            taken = min(items, self._left)
            if self._chunk is None:
                complete = False
            else:
                parts.append((self._chunk, slice(self._at, self._at + taken)))
            self._at, self._left, items = self._at + taken, self._left - taken, items - taken
        return _join(parts) if complete else None


def _walk(live: Services, job: Job | None) -> Iterator[tuple[int, ResultChunk | None]]:
    """Yield size and results of each chunk; None: it was not computed, or is gone."""
    if job is not None:
        results = Results(live, job)
        for state in results.states():
            chunk = None
            if state.state == "done":
                with suppress(Expired, NotFound):
                    chunk = results.read(state)
            yield state.items, chunk
    while True:
        yield _ENDLESS, None


def _join(parts: Sequence[tuple[ResultChunk, slice]]) -> Outcomes:
    errors: dict[int, ItemError] = {}
    before = 0
    for chunk, part in parts:
        for position, (code, message) in chunk.errors.items():
            if part.start <= position < part.stop:
                errors[before + position - part.start] = ItemError(code, message)
        before += part.stop - part.start
    return Outcomes(
        values=np.concatenate([chunk.values[part] for chunk, part in parts]),
        tokens=np.concatenate([chunk.tokens[part] for chunk, part in parts]),
        truncated=np.concatenate([chunk.truncated[part] for chunk, part in parts]),
        errors=errors,
        extras=join_extras([chunk.cut_extras(part) for chunk, part in parts]),
    )
