"""The chunks of a job that is being submitted: stored while the request is read, before there is a job.

Owns what was stored so far, so that it can be deleted when no job comes of it. Knows neither HTTP nor limits.
"""

from app.submission.orders import count_id_bytes
from tasks.jobs.blobs import Blobs
from tasks.jobs.job import ChunkInput, ChunkRecord, new_job_id

__all__ = ["ChunkUpload"]


class ChunkUpload:
    """Stores chunks under the id that their job will have.

    Attributes:
        job_id: that id.
        records: the chunk table so far.
        input_bytes: stored size.
        id_bytes: of the callers' ids, which come back with the results.
    """

    def __init__(self, blobs: Blobs) -> None:
        self.job_id = new_job_id()
        self.records: list[ChunkRecord] = []
        self.input_bytes = self.id_bytes = 0
        self._blobs = blobs

    @property
    def items(self) -> int:
        """How many items are stored."""
        return sum(record.items for record in self.records)

    @property
    def tokens(self) -> int:
        """How many tokens they are estimated to have."""
        return sum(record.tokens for record in self.records)

    def put(self, record: ChunkRecord, chunk: ChunkInput) -> None:
        """Store a chunk; errors as `Blobs.put_input`."""
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
