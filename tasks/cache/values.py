"""Values that were computed before, in Redis, by a hash of everything that made them.

Owns what makes two items the same, the form of an entry, and the budget. Values of one scope (a tenant, or one job) are
never found from another. A cache is no source of truth: callers must be able to do without it at any time.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.engine import Work
from tasks.keys import Key
from tasks.scripts import Argument, Script, Scripts

__all__ = ["CachedValue", "ContentCache", "digest_items", "is_job", "job_scope", "tenant_scope"]

_HEAD = struct.Struct("<iB")
# What an entry takes in Redis beside its value: its digest twice, with table and list nodes (185 measured).
_OVERHEAD_BYTES = 200
_PER_CALL = 500
_JOB = "job:"
# Values of one job are of no use after its end: they go when none came for so long.
_JOB_LIFE_MS = 600_000


class CacheGetScript(Script):
    """Look up values.

    Attributes:
        values: by digest.
        times: digests by the time at which they were put.
        lookups: counts of hits and misses.
        ttl_ms: how long a value holds.
    """

    values: Key
    times: Key
    lookups: Key
    ttl_ms: int
    digests: Sequence[bytes]


class CachePutScript(Script):
    """Keep values.

    Attributes:
        values: by digest.
        times: digests by the time at which they were put.
        bytes: what the values take.
        budget_bytes: how much they may take.
        ttl_ms: how long a value holds.
        life_ms: how long all are kept when none is put any more.
        overhead_bytes: what an entry takes beside its value.
        entries: digest, value, and so on.
    """

    values: Key
    times: Key
    bytes: Key
    budget_bytes: int
    ttl_ms: int
    life_ms: int
    overhead_bytes: int
    entries: Sequence[Argument]


@dataclass(frozen=True, slots=True)
class CachedValue:
    """The outcome of one item: its value (float32, shape (d,), or (1,) for a score), tokens and whether it was cut."""

    value: NDArray[np.float32]
    tokens: int
    truncated: bool

    def pack(self) -> bytes:
        """Return the entry as bytes: int32 tokens, uint8 truncated, float32 values, all little-endian."""
        return _HEAD.pack(self.tokens, self.truncated) + self.value.astype("<f4", copy=False).tobytes()

    @classmethod
    def unpack(cls, packed: bytes) -> "CachedValue":
        """Return the entry that `pack` wrote."""
        tokens, truncated = _HEAD.unpack_from(packed)
        return cls(np.frombuffer(packed, "<f4", offset=_HEAD.size), tokens, bool(truncated))


def is_job(scope: str) -> bool:
    """Return whether a scope is that of one job."""
    return scope.startswith(_JOB)


def tenant_scope(tenant: str) -> str:
    """Return the scope of what a tenant keeps."""
    return f"tenant:{tenant}"


def job_scope(job_id: str) -> str:
    """Return the scope of one job."""
    return f"{_JOB}{job_id}"


def digest_items(work: Work, fingerprint: str) -> list[bytes]:
    """Return for each item the SHA-256 of all that its value depends on; equal items have equal digests."""
    params = work.params
    common = (work.operation, fingerprint, params.instruction, params.dimensions, params.truncate, params.cutoff_layer)
    # Named only where it is used, so that values from before there were windows are still found.
    made_by = common if params.long is None else (*common, params.long)
    # Each part is preceded by its length, so that no two different lists of parts have equal bytes.
    start = hashlib.sha256(repr(made_by).encode("utf-8", "surrogatepass"))
    queries = work.queries if work.queries is not None else [""] * len(work.texts)
    digests = []
    for query, text in zip(queries, work.texts, strict=True):
        digest = start.copy()
        for part in (query, text):
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        digests.append(digest.digest())
    return digests


class ContentCache:
    """Stores and finds values. Thread-safe. All methods raise `redis.RedisError` when Redis does not answer.

    Args:
        redis: client without `decode_responses`.
        settings: budget of a scope and how long an entry holds.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._scripts = Scripts(redis)
        self._budget_bytes = settings.cache_max_bytes
        self._ttl_ms = int(settings.cache_ttl_s * 1000)

    def find(self, scope: str, digests: Sequence[bytes]) -> dict[bytes, CachedValue]:
        """Return the entries that there are."""
        names = (keys.cache_values(scope), keys.cache_times(scope), keys.cache_lookups())
        found: dict[bytes, CachedValue] = {}
        for first in range(0, len(digests), _PER_CALL):
            asked = digests[first : first + _PER_CALL]
            values = cast("list[bytes | None]", self._scripts.call(CacheGetScript(*names, self._ttl_ms, asked)))
            known = zip(asked, values, strict=True)
            found |= {digest: CachedValue.unpack(value) for digest, value in known if value is not None}
        return found

    def keep(self, scope: str, entries: Mapping[bytes, CachedValue]) -> None:
        """Store values; the oldest of the scope make room.

        Raises:
            redis.OutOfMemoryError: Redis is full.
        """
        items = list(entries.items())
        for first in range(0, len(items), _PER_CALL):
            packed = [part for digest, entry in items[first : first + _PER_CALL] for part in (digest, entry.pack())]
            call = CachePutScript(
                keys.cache_values(scope),
                keys.cache_times(scope),
                keys.cache_bytes(scope),
                budget_bytes=self._budget_bytes,
                ttl_ms=self._ttl_ms,
                life_ms=min(self._ttl_ms, _JOB_LIFE_MS) if is_job(scope) else self._ttl_ms,
                overhead_bytes=_OVERHEAD_BYTES,
                entries=packed,
            )
            self._scripts.call(call)
