"""The bytes of inputs and results: in Redis, under the keys of their job, and results of large jobs in files.

Owns how a chunk's texts are packed (JSON, zstd level 1: about a third of their size) and where a result frame lies.
Owns no state: the job record says which chunks there are.
"""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from typing import Protocol, cast

import orjson
import zstandard
from redis import Redis, ResponseError
from redis.exceptions import OutOfMemoryError

from config.settings import Settings
from tasks import keys
from tasks.errors import CapacityError, ConfigError, StoreFull, StoreRefused
from tasks.jobs.claims import IN_REDIS, Claim
from tasks.jobs.job import ChunkInput
from tasks.keys import Key
from tasks.scripts import Script, Scripts
from tasks.storage.objects import ResultFiles

__all__ = [
    "ABANDONED_MS",
    "INPUT_GRACE_MS",
    "Blobs",
    "FileBlobs",
    "RedisBlobs",
    "open_blobs",
    "pack_input",
    "store_full",
]

_log = logging.getLogger(__name__)

_ZSTD_LEVEL = 1
_WRITE_PAUSE_S = 1.0
# Inputs are older than their job, by as long as an upload takes: a day at most. Creating the job takes that back.
INPUT_GRACE_MS = 86_400_000
_BATCH = 500
# Of Redis' proto-max-bulk-len: the least that it may be, and what it is where nothing else was set.
_SMALLEST_VALUE_LIMIT, _USUAL_VALUE_LIMIT = 2**20, 2**29
_FULL_RETRY_AFTER_S = 30.0
# How long files without a job are kept, and how long an idle Redis owns its files.
_ORPHAN_S, _OWNED_S = 3600.0, 400 * 86_400.0
# An upload to which nothing was added for so long was cut off.
ABANDONED_MS = 3_600_000


class PutInputScript(Script):
    """Store the texts of a chunk whose job does not exist yet.

    Attributes:
        input: where the texts go.
        uploads: jobs to be, by the time at which they count as abandoned.
        ttl_ms: how long the texts are kept.
        abandoned_ms: how long nothing may follow.
    """

    input: Key
    uploads: Key
    packed: bytes
    ttl_ms: int
    job_id: str
    abandoned_ms: int


class AbandonedScript(Script):
    """List jobs that never came to be and whose time is over."""

    uploads: Key


def pack_input(items: ChunkInput) -> bytes:
    """Return the items of a chunk as they are stored; without what none of them has, as older workers know it."""
    columns = {name: column for name, column in asdict(items).items() if column is not None}
    return zstandard.compress(orjson.dumps(columns), _ZSTD_LEVEL)


def store_full() -> StoreFull:
    """Return the error of a Redis that takes nothing new."""
    return StoreFull(
        "there is no memory for new jobs; jobs that end or expire make room", retry_after_s=_FULL_RETRY_AFTER_S
    )


class Blobs(Protocol):
    """Where the bytes of chunks are kept. All methods raise the error of their medium when it does not answer."""

    def put_input(self, job_id: str, chunk: int, items: ChunkInput) -> int:
        """Store the items of a chunk, before its job is created; return the size in bytes.

        Raises:
            StoreFull: the memory of Redis is used up.
        """
        ...

    def get_input(self, job_id: str, chunk: int) -> ChunkInput | None:
        """Return the items of a chunk; None when they are gone."""
        ...

    def stage_result(self, claim: Claim, frame: bytes, /) -> str:
        """Store a result frame where the completion of the claim can point at it; return the pointer."""
        ...

    def discard(self, pointer: str, /) -> None:
        """Remove a staged result that was not counted."""
        ...

    def get_result(self, job_id: str, chunk: int, pointer: str = IN_REDIS) -> bytes | None:
        """Return a result frame; None when it is gone."""
        ...

    def delete(self, job_id: str, chunks: int) -> None:
        """Remove all inputs and results of a job of so many chunks."""
        ...

    def sweep(self, is_job: Callable[[str], bool]) -> None:
        """Remove what belongs to no job any more, or never did."""
        ...


class RedisBlobs:
    """Blobs in Redis. Each has its expiry from the start; thread-safe.

    Args:
        redis: client without `decode_responses`.
        settings: how long jobs live.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)
        self._ttl_ms = int(settings.job_ttl_s * 1000) + INPUT_GRACE_MS

    def put_input(self, job_id: str, chunk: int, items: ChunkInput) -> int:
        """See `Blobs`. The upload is noted, so that what never becomes a job can be swept."""
        packed = pack_input(items)
        call = PutInputScript(
            keys.job_input(job_id, chunk),
            keys.store_uploads(),
            packed=packed,
            ttl_ms=self._ttl_ms,
            job_id=job_id,
            abandoned_ms=ABANDONED_MS,
        )
        try:
            self._scripts.call(call)
        except OutOfMemoryError as error:
            raise store_full() from error
        return len(packed)

    def get_input(self, job_id: str, chunk: int) -> ChunkInput | None:
        """See `Blobs`."""
        packed = cast("bytes | None", self._redis.get(keys.job_input(job_id, chunk)))
        return None if packed is None else ChunkInput(**orjson.loads(zstandard.decompress(packed)))

    def stage_result(self, _claim: Claim, frame: bytes, /) -> str:
        """See `Blobs`: the completion script stores the frame in the same step in which it counts it.

        Raises:
            StoreRefused: Redis takes no value of this size; it would close the connection without a word.
        """
        if len(frame) > _SMALLEST_VALUE_LIMIT and len(frame) > (most := self._largest_value()):
            way_out = "lower TWOLANE_CHUNK_TOKENS or raise proto-max-bulk-len"
            raise StoreRefused(f"its result has {len(frame)} bytes and Redis takes {most} at most: {way_out}")
        return IN_REDIS

    def discard(self, _pointer: str, /) -> None:
        """See `Blobs`: nothing is stored before it is counted."""

    def get_result(self, job_id: str, chunk: int, pointer: str = IN_REDIS) -> bytes | None:
        """See `Blobs`.

        Raises:
            ConfigError: the result lies elsewhere.
        """
        if pointer != IN_REDIS:
            raise ConfigError(f"a result lies at {pointer}, but TWOLANE_RESULTS_URL is not set")
        return cast("bytes | None", self._redis.get(keys.job_result(job_id, chunk)))

    def delete(self, job_id: str, chunks: int) -> None:
        """See `Blobs`."""
        for first in range(0, chunks, _BATCH):
            numbers = range(first, min(chunks, first + _BATCH))
            names = [key(job_id, number) for number in numbers for key in (keys.job_input, keys.job_result)]
            self._redis.unlink(*names)
        self._redis.zrem(keys.store_uploads(), job_id)

    def sweep(self, is_job: Callable[[str], bool]) -> None:
        """See `Blobs`: uploads that were cut off. Everything else expires by itself."""
        for found in self._scripts.call(AbandonedScript(keys.store_uploads())):
            job_id = found.decode()
            if not is_job(job_id):
                self._delete_inputs(job_id)
            self._redis.zrem(keys.store_uploads(), job_id)

    def _largest_value(self) -> int:
        name = "proto-max-bulk-len"
        try:
            return int(cast("dict[str, str]", self._redis.config_get(name)).get(name, _USUAL_VALUE_LIMIT))
        except ResponseError:  # many services do not let their settings be read
            return _USUAL_VALUE_LIMIT

    def _delete_inputs(self, job_id: str) -> None:
        """How many chunks an upload has is not known: they are numbered without gaps."""
        for first in count(0, _BATCH):
            if not self._redis.unlink(*(keys.job_input(job_id, number) for number in range(first, first + _BATCH))):
                return


class FileBlobs(RedisBlobs):
    """Blobs in Redis, but for the results of large jobs, which lie in files. See `Blobs`."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        super().__init__(redis, settings)
        self._files = ResultFiles(settings)
        self._patience_s = 2 * settings.lease_s

    def stage_result(self, claim: Claim, frame: bytes, /) -> str:
        """See `Blobs`. Each claim writes a file of its own, so that a late one cannot overwrite what was counted.

        Retries while the storage is unavailable for a moment, since the result has cost device time.

        Raises:
            StoreRefused: the storage refuses the result for good.
            CapacityError: it stays unavailable; the chunk goes back, and no attempt is spent.
        """
        if not claim.outside:
            return super().stage_result(claim, frame)
        until_s = time.monotonic() + self._patience_s
        while True:
            try:
                return self._files.write(self._owner(), claim.job_id, f"{claim.chunk}-{claim.fence}", frame)
            except CapacityError as error:
                if isinstance(error, StoreRefused) or time.monotonic() > until_s:
                    raise
                time.sleep(_WRITE_PAUSE_S)

    def discard(self, pointer: str, /) -> None:
        """See `Blobs`. What cannot be removed now is removed with its job."""
        if pointer == IN_REDIS:
            return
        try:
            self._files.remove(pointer)
        except CapacityError as error:
            _log.warning("a result that was not counted stays at %s: %s", pointer, error.message)

    def get_result(self, job_id: str, chunk: int, pointer: str = IN_REDIS) -> bytes | None:
        """See `Blobs`."""
        if pointer == IN_REDIS:
            return super().get_result(job_id, chunk)
        return self._files.read(pointer)

    def delete(self, job_id: str, chunks: int) -> None:
        """See `Blobs`."""
        super().delete(job_id, chunks)
        self._files.remove_job(self._owner(), job_id)

    def sweep(self, is_job: Callable[[str], bool]) -> None:
        """See `Blobs`: also the files of this Redis' jobs that expired, when they have had no record for an hour.

        What another Redis owns in the same place is left alone. A storage that is unavailable is swept another time.
        """
        super().sweep(is_job)
        owner, orphans = self._owner(), keys.store_orphans()
        now_s = float(self._redis.time()[0])
        try:
            for job_id in self._files.jobs(owner):
                if is_job(job_id):
                    self._redis.zrem(orphans, job_id)
                    continue
                self._redis.zadd(orphans, {job_id: now_s}, nx=True)
                self._redis.expire(orphans, int(_OWNED_S))
                # A Redis that came back without its newest jobs may get them from a backup.
                if now_s - cast("float", self._redis.zscore(orphans, job_id)) >= _ORPHAN_S:
                    self._files.remove_job(owner, job_id)
                    self._redis.zrem(orphans, job_id)
        except CapacityError as error:
            _log.warning("the results of expired jobs stay for now: %s", error.message)

    def _owner(self) -> str:
        """Return the name of this Redis among all that may use the same storage; asked each time, since it may change.

        A Redis that lost its data is another one: its files of before belong to nobody and stay.
        """
        new = f"redis-{secrets.token_hex(8)}"
        known = cast("bytes | None", self._redis.set(keys.store_identity(), new, nx=True, get=True, ex=int(_OWNED_S)))
        if known is None:
            return new
        self._redis.expire(keys.store_identity(), int(_OWNED_S))
        return known.decode()


def open_blobs(redis: Redis, settings: Settings) -> Blobs:
    """Return the blobs that the settings ask for; opens nothing yet.

    Raises:
        ConfigError: there is no driver for the results URL.
    """
    return FileBlobs(redis, settings) if settings.results_url else RedisBlobs(redis, settings)
