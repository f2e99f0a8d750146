"""Lines with the same model and parameters become the items of one job.

Owns the inputs of those jobs until the jobs are created. Holds at most about two chunks of a group in memory.
"""

from collections.abc import Sequence
from dataclasses import replace

from app.access.auth import Tenant
from app.batches.lines import Call
from app.services import Services
from app.submission.chunk_upload import ChunkUpload
from app.submission.orders import Order, limit_chunks
from app.submission.service import SubmissionService
from tasks.files.batches import BatchGroup
from tasks.jobs.chunking import Item, cut_chunks
from tasks.jobs.job import ChunkRecord, NewJob
from tasks.lanes import Lane, Service

__all__ = ["Group", "GroupTable"]


class Group:
    """One job in the making."""

    def __init__(self, live: Services, order: Order, tenant: Tenant) -> None:
        self.order = order
        self.lines = self.items = self.tokens = 0
        self._upload = ChunkUpload(live.store, live.blobs, Lane(order.card.slug, Service.BULK), tenant)
        self._limits = limit_chunks(live.settings, order)
        self._waiting: list[Item] = []
        self._waiting_chars = 0

    @property
    def job_id(self) -> str:
        """The ID that the job will have."""
        return self._upload.job_id

    @property
    def records(self) -> list[ChunkRecord]:
        """The chunk table so far."""
        return self._upload.records

    def add(self, call: Call, custom_id: str) -> None:
        """Take the items of a line; each carries the line's id."""
        self.lines += 1
        for item in call.items:
            self._waiting.append(replace(item, id=custom_id))
            self._waiting_chars += len(item.text) + len(item.query or "")
        if len(self._waiting) > self._limits.items or self._waiting_chars > self._limits.bytes:
            self._cut(final=False)

    def finish(self) -> None:
        """Store what is still waiting."""
        self._cut(final=True)

    def discard(self) -> None:
        """Remove the stored inputs."""
        self._upload.delete()

    def describe(self, submission: SubmissionService, batch_id: str, deadline_in_s: float) -> NewJob:
        """Return the job that the group becomes."""
        job = submission.describe(self.order, self.job_id, self.items, self.tokens, self._upload.id_bytes)
        extra = {"metadata": {"batch_id": batch_id}}
        return replace(job, input_bytes=self._upload.input_bytes, deadline_in_s=deadline_in_s, extra=extra)

    def summarize(self) -> BatchGroup:
        """Return what the batch record keeps."""
        return BatchGroup(self.job_id, self.lines, self.items)

    def _cut(self, *, final: bool) -> None:
        chunks = list(cut_chunks(self._waiting, self._limits))
        # The last chunk may still have room, so its items wait for the next lines.
        rest = [] if final or not chunks else self._waiting[chunks[-1][0].start :]
        for record, chunk in chunks if final else chunks[:-1]:
            placed = replace(record, index=len(self.records), start=self.items)
            self._upload.put(placed, chunk)
            self.items += placed.items
            self.tokens += placed.tokens
        self._waiting = rest
        self._waiting_chars = sum(len(item.text) + len(item.query or "") for item in rest)


class GroupTable:
    """The groups of one batch, in the order in which they were first seen."""

    def __init__(self, live: Services, tenant: Tenant, limit: int) -> None:
        self._live, self._tenant = live, tenant
        self._limit = limit
        self._groups: dict[tuple[object, ...], tuple[int, Group]] = {}

    def place(self, call: Call, custom_id: str) -> int | None:
        """Put a line into its group and return the group's number; None: there are too many different ones."""
        key = (call.order.card.name, call.order.params, call.order.priority)
        found = self._groups.get(key)
        if found is None:
            if len(self._groups) >= self._limit:
                return None
            found = self._groups[key] = (len(self._groups), Group(self._live, call.order, self._tenant))
        number, group = found
        group.add(call, custom_id)
        return number

    @property
    def groups(self) -> Sequence[Group]:
        """All groups by number."""
        return [group for _, group in self._groups.values()]
