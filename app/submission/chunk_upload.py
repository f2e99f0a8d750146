"""The chunks of a job that is being submitted: stored while the request is read, before there is a job.

Owns what was stored so far, so that it can be deleted when no job comes of it. Knows no HTTP and no limit of a request.
"""

from app.access.auth import Tenant
from app.submission.orders import count_id_bytes
from tasks.jobs.blobs import Blobs
from tasks.jobs.job import ChunkInput, ChunkRecord, new_job_id
from tasks.jobs.store import JobStore
from tasks.jobs.transitions import JobRef
from tasks.lanes import Lane

__all__ = ["ChunkUpload"]

_CHUNKS_PER_ROOM_CHECK = 16


class ChunkUpload:
    """Stores chunks under the id that their job will have, as long as there is room for them.

    Args:
        store: where the job will be.
        blobs: where its chunks go.
        lane: of the job.
        tenant: whose it is.

    Attributes:
        job_id: that id.
        records: the chunk table so far.
        input_bytes: stored size.
        id_bytes: of the callers' ids, which come back with the results.
    """

    def __init__(self, store: JobStore, blobs: Blobs, lane: Lane, tenant: Tenant) -> None:
        self.job_id = new_job_id()
        self.records: list[ChunkRecord] = []
        self.input_bytes = self.id_bytes = 0
        self._store, self._blobs, self._quota = store, blobs, tenant.quota
        self._ref = JobRef(self.job_id, lane, tenant.name)

    @property
    def items(self) -> int:
        """How many items are stored."""
        return sum(record.items for record in self.records)

    @property
    def tokens(self) -> int:
        """How many tokens they are estimated to have."""
        return sum(record.tokens for record in self.records)

    def put(self, record: ChunkRecord, chunk: ChunkInput) -> None:
        """Store a chunk.

        Raises:
            tasks.errors.TwolaneError: as `JobStore.check_room` and `Blobs.put_input`.
        """
        if record.index % _CHUNKS_PER_ROOM_CHECK == 0:
            self._store.check_room(self._ref, self.input_bytes, quota=self._quota)
        # Noted before it is stored: a put that fails half-way is deleted too.
        self.records.append(record)
        self.id_bytes += count_id_bytes(chunk)
        self.input_bytes += self._blobs.put_input(self.job_id, record.index, chunk)

    def delete(self) -> None:
        """Delete what is stored.

        Raises:
            redis.RedisError: it stays until it expires.
        """
        self._blobs.delete(self.job_id, len(self.records))
        self._store.discard(self._ref)
