"""Where the items of a job to be lie until it is created, and what becomes of them when it is not.

Owns the difference between inputs that go with their request and those of an upload under an idempotency key, which
stay for the rest of it. Knows neither HTTP nor limits.
"""

from dataclasses import replace

from app.jobs.ndjson import PayloadHash
from tasks.errors import Conflict, IdempotencyMismatch, StoreFull, TwolaneError
from tasks.jobs.blobs import Blobs
from tasks.jobs.model import ChunkInput, ChunkRecord, new_job_id
from tasks.jobs.uploads import Upload, UploadStore

__all__ = ["Deposit", "KeyedDeposit", "WrongOffset"]


class Deposit:
    """Inputs that go with their request."""

    def __init__(self, blobs: Blobs) -> None:
        self.job_id = new_job_id()
        self.records: list[ChunkRecord] = []
        self.input_bytes = 0
        self._blobs = blobs

    @property
    def items(self) -> int:
        """How many items are stored."""
        return sum(record.items for record in self.records)

    def put(self, record: ChunkRecord, chunk: ChunkInput) -> None:
        """Store a chunk; errors as `Blobs.put_input`."""
        # Known before it is stored: a put that fails half-way is deleted too.
        self.records.append(record)
        self.input_bytes += self._blobs.put_input(self.job_id, record.index, chunk)

    def close(self) -> None:
        """The job is created: the inputs are its own."""

    def give_up(self, error: BaseException | None) -> None:
        """There will be no job of these inputs, for this reason or because there was one already."""
        del error
        self._blobs.delete(self.job_id, len(self.records))


class KeyedDeposit(Deposit):
    """Inputs of an upload that may come in several requests under one key.

    Args:
        blobs: where inputs lie.
        uploads: where it stands how far an upload came.
        tenant: whose it is.
        payload: the request's key and parameters, and the trail of its lines.
    """

    def __init__(self, blobs: Blobs, uploads: UploadStore, tenant: str, payload: PayloadHash) -> None:
        super().__init__(blobs)
        self._uploads = uploads
        self._tenant, self._key = tenant, payload.key or ""
        self._trail, self._described = payload.trail, payload.parameters
        self._upload: Upload | None = None

    def open(self, offset_bytes: int | None) -> None:
        """Take over what came before, to be called before the first line is read.

        Args:
            offset_bytes: where the caller goes on; None: it sends all again.

        Raises:
            WrongOffset: it has to go on elsewhere.
            IdempotencyMismatch: the upload was begun with other parameters.
        """
        upload = self._uploads.take(self._tenant, self._key, self._described)
        known_bytes = upload.position.offset_bytes if upload is not None else 0
        if offset_bytes not in {None, known_bytes}:
            raise WrongOffset(known_bytes)
        self._trail.mark()
        if upload is not None:
            self._upload, self.job_id = upload, upload.job_id
            self.records, self.input_bytes = list(upload.records), upload.input_bytes
            self._trail.resume(upload.position, upload.items, resent=offset_bytes is None)

    def put(self, record: ChunkRecord, chunk: ChunkInput) -> None:
        """Store a chunk; errors as `UploadStore.put`."""
        if self._upload is None:
            self._upload = self._uploads.begin(self._tenant, self._key, self._described, self.job_id)
        self.records.append(record)
        position = self._trail.before(record.start + record.items)
        after = replace(self._upload, records=self.records, position=position)
        self.input_bytes += self._uploads.put(self._tenant, self._key, after, chunk, self.input_bytes)

    def close(self) -> None:
        """See `Deposit.close`: the key stands for the job from now on."""
        if self._upload is not None:
            self._uploads.end(self._tenant, self._key, self._upload.owner)

    def give_up(self, error: BaseException | None) -> None:
        """See `Deposit.give_up`: what the same request could bring to its end later is kept."""
        if self._upload is None or _may_go_on(error):
            return
        # Whoever took the upload over goes on with these inputs.
        if self._uploads.end(self._tenant, self._key, self._upload.owner):
            super().give_up(error)


class WrongOffset(Exception):
    """The upload stands elsewhere than the caller thinks; `offset_bytes` says where."""

    def __init__(self, offset_bytes: int) -> None:
        super().__init__(offset_bytes)
        self.offset_bytes = offset_bytes

    def explain(self) -> Conflict:
        """Return the refusal for the caller."""
        return Conflict(f"the upload stands at byte {self.offset_bytes}: go on there (Upload-Offset)")


def _may_go_on(error: BaseException | None) -> bool:
    """Tell whether the rest may follow. A full store wants its room back, even from those who come again."""
    if isinstance(error, IdempotencyMismatch):
        # That was something else: the upload itself is as good as before.
        return True
    if isinstance(error, TwolaneError):
        return error.retryable and not isinstance(error, StoreFull)
    return error is not None
