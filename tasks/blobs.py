"""The bytes of inputs and results: in Redis, under the keys of their job.

Owns how a chunk's texts are packed (JSON, zstd level 1: about a third of their size) and where result frames lie. Owns
no state: which chunks there are is the job record's business.
"""

from dataclasses import asdict
from typing import Protocol, cast

import orjson
import zstandard
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.claims import IN_REDIS, Claim
from tasks.errors import ConfigError
from tasks.jobs import ChunkInput

__all__ = ["Blobs", "RedisBlobs", "open_blobs"]

_ZSTD_LEVEL = 1
_DAY_MS = 86_400_000
_BATCH = 500


class Blobs(Protocol):
    """Where the bytes of chunks are kept. All methods raise the error of their medium when it does not answer."""

    def put_input(self, job_id: str, chunk: int, items: ChunkInput) -> int:
        """Store the items of a chunk, before its job is created; return the size in bytes."""
        ...

    def get_input(self, job_id: str, chunk: int) -> ChunkInput | None:
        """Return the items of a chunk; None when they are gone."""
        ...

    def stage_result(self, claim: Claim, frame: bytes, /) -> str:
        """Bring a result frame to where the completion of the claim can point at it; return the pointer."""
        ...

    def put_result(self, job_id: str, chunk: int, frame: bytes) -> str:
        """Store a result frame by itself and return its pointer."""
        ...

    def get_result(self, job_id: str, chunk: int, pointer: str = IN_REDIS) -> bytes | None:
        """Return a result frame; None when it is gone."""
        ...

    def delete(self, job_id: str, chunks: int) -> None:
        """Remove all inputs and results of a job of so many chunks."""
        ...


class RedisBlobs:
    """Blobs in Redis. Each has its expiry from the start; thread-safe.

    Args:
        redis: client without `decode_responses`.
        settings: how long jobs live.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        # Inputs are older than their job, by as long as an upload takes.
        self._ttl_ms = int(settings.job_ttl_s * 1000) + _DAY_MS

    def put_input(self, job_id: str, chunk: int, items: ChunkInput) -> int:
        """See `Blobs`. The upload is noted, so that what never becomes a job can be swept."""
        packed = zstandard.compress(orjson.dumps(asdict(items)), _ZSTD_LEVEL)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.set(keys.job_input(job_id, chunk), packed, px=self._ttl_ms)
        pipeline.execute()
        return len(packed)

    def get_input(self, job_id: str, chunk: int) -> ChunkInput | None:
        """See `Blobs`."""
        packed = cast("bytes | None", self._redis.get(keys.job_input(job_id, chunk)))
        return None if packed is None else ChunkInput(**orjson.loads(zstandard.decompress(packed)))

    def stage_result(self, _claim: Claim, _frame: bytes, /) -> str:
        """See `Blobs`: the completion script stores the frame in the same step in which it counts it."""
        return IN_REDIS

    def put_result(self, job_id: str, chunk: int, frame: bytes) -> str:
        """See `Blobs`."""
        self._redis.set(keys.job_result(job_id, chunk), frame, px=self._ttl_ms)
        return IN_REDIS

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


def open_blobs(redis: Redis, settings: Settings) -> Blobs:
    """Return the blobs that the settings ask for."""
    return RedisBlobs(redis, settings)
