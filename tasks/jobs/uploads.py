"""Uploads under an idempotency key that are not complete: how far each came, so that the rest can follow later.

Owns the record of an upload and its one writer. A record stands for chunks that are stored like those of any job to be
(`tasks.jobs.blobs`); when nothing was added for `TWOLANE_UPLOAD_TTL_S`, or after a day, record and chunks go. Knows no
HTTP.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import orjson
from redis import Redis
from redis.exceptions import OutOfMemoryError

from config.settings import Settings
from tasks import keys
from tasks.errors import Conflict, IdempotencyMismatch
from tasks.jobs.blobs import INPUT_GRACE_MS, pack_input, store_full
from tasks.jobs.model import ChunkInput, ChunkRecord
from tasks.jobs.records import write_chunk
from tasks.keys import Key
from tasks.scripts import Script, Scripts

__all__ = ["Position", "Upload", "UploadStore"]


class Position(NamedTuple):
    """A place between two lines of an upload.

    Attributes:
        offset_bytes: bytes before it.
        lines: lines before it.
        digest: of these lines, each chained to those before.
    """

    offset_bytes: int = 0
    lines: int = 0
    digest: bytes = b""


_START = Position()


@dataclass(frozen=True, slots=True)
class Upload:
    """What is stored of an upload.

    Attributes:
        job_id: the job that it will be.
        owner: names the request that adds to it.
        position: behind the last line that is stored.
        input_bytes: stored size.
        records: its chunks.
    """

    job_id: str
    owner: str = ""
    position: Position = _START
    input_bytes: int = 0
    records: Sequence[ChunkRecord] = ()

    @property
    def items(self) -> int:
        """How many items are stored."""
        return sum(record.items for record in self.records)


@dataclass(frozen=True, slots=True)
class UploadOpenScript(Script):
    """Become the writer of an upload, or begin it."""

    upload: Key
    owner: str
    described: str
    job_id: str
    life_ms: int


@dataclass(frozen=True, slots=True)
class UploadPutScript(Script):
    """Store one more chunk of an upload."""

    upload: Key
    input: Key
    uploads: Key
    owner: str
    job_id: str
    number: int
    line: str
    packed: bytes
    life_ms: int
    input_ms: int
    offset_bytes: int
    lines: int
    digest: str
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class UploadEndScript(Script):
    """Forget an upload."""

    upload: Key
    owner: str


class UploadStore:
    """Uploads of all tenants. Thread-safe. All methods raise `redis.RedisError` when the server does not answer.

    Args:
        redis: client without `decode_responses`.
        settings: how long an upload is kept.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)
        self._life_ms = int(settings.upload_ttl_s * 1000)
        # As in `tasks.jobs.blobs`: an upload takes a day at most, and its job may live as long as any.
        self._input_ms = int(settings.job_ttl_s * 1000) + INPUT_GRACE_MS

    def get(self, tenant: str, key: str) -> tuple[Upload, float] | None:
        """Return an upload and how many seconds it is kept if nothing comes; None: there is none."""
        name = keys.upload(tenant, key)
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(name)
            pipe.pttl(name)
            fields, left_ms = pipe.execute()
        return (_read(fields), max(0, left_ms) / 1000) if fields else None

    def take(self, tenant: str, key: str, described: str) -> Upload | None:
        """Become the writer of an upload that is there; whoever was it before can add nothing any more.

        Args:
            tenant: whose it is.
            key: its key.
            described: a hash of the request's parameters.

        Raises:
            IdempotencyMismatch: it was begun with other parameters.
        """
        return self._open(tenant, key, described, "")

    def begin(self, tenant: str, key: str, described: str, job_id: str) -> Upload:
        """Begin an upload; arguments as `take`.

        Raises:
            Conflict: another request has begun it meanwhile.
        """
        upload = self._open(tenant, key, described, job_id)
        if upload is None or upload.job_id != job_id:
            raise _taken()
        return upload

    def put(self, tenant: str, key: str, after: Upload, items: ChunkInput, packed_before: int) -> int:
        """Store one more chunk, and in the same step how far the upload has come; return its size in bytes.

        Args:
            tenant: whose it is.
            key: its key.
            after: the upload with the new chunk as its last record.
            items: the chunk.
            packed_before: stored bytes before it.

        Raises:
            Conflict: another request has taken the upload over.
            StoreFull: the server's memory is used up.
        """
        packed, record = pack_input(items), after.records[-1]
        call = UploadPutScript(
            keys.upload(tenant, key),
            keys.job_input(after.job_id, record.index),
            keys.store_uploads(),
            owner=after.owner,
            job_id=after.job_id,
            number=record.index,
            line=write_chunk(record),
            packed=packed,
            life_ms=self._life_ms,
            input_ms=self._input_ms,
            offset_bytes=after.position.offset_bytes,
            lines=after.position.lines,
            digest=after.position.digest.hex(),
            stored_bytes=packed_before + len(packed),
        )
        try:
            answer = self._scripts.call(call)
        except OutOfMemoryError as error:
            raise store_full() from error
        if answer != b"OK":
            raise _taken()
        return len(packed)

    def end(self, tenant: str, key: str, owner: str) -> bool:
        """Forget an upload; return whether it was still this owner's. Its chunks are the caller's business."""
        return bool(self._scripts.call(UploadEndScript(keys.upload(tenant, key), owner)))

    def _open(self, tenant: str, key: str, described: str, job_id: str) -> Upload | None:
        owner = secrets.token_hex(8)
        call = UploadOpenScript(keys.upload(tenant, key), owner, described, job_id, self._life_ms)
        answer = cast("list[Any]", self._scripts.call(call))
        if answer[0] == b"MISMATCH":
            raise IdempotencyMismatch("this idempotency key was used before with other parameters")
        if answer[0] == b"NONE":
            return None
        fields = answer[1:]
        return _read(dict(zip(fields[::2], fields[1::2], strict=True)))


def _read(fields: Mapping[bytes, bytes]) -> Upload:
    text = {name.decode(): value.decode() for name, value in fields.items()}
    count = sum(name.isdigit() for name in text)
    lines = [orjson.loads(text[str(number)]) for number in range(count)]
    return Upload(
        job_id=text["job"],
        owner=text["owner"],
        position=Position(int(text["offset"]), int(text["lines"]), bytes.fromhex(text["digest"])),
        input_bytes=int(text["bytes"]),
        records=tuple(
            ChunkRecord(number, line["start"], line["items"], line["tokens"]) for number, line in enumerate(lines)
        ),
    )


def _taken() -> Conflict:
    return Conflict("another request sends this upload now")
