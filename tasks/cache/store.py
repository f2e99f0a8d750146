"""Values that were computed before, in Redis, by a hash of everything that made them.

Owns what makes two items the same, the form of an entry, and the budget. Values of one scope (a tenant, or one job) are
never found from another. A cache is no truth: whoever asks it must be able to do without it at any time.
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
from tasks.scripts import Argument, Scripts

__all__ = ["Claimed", "ContentCache", "Entry", "digest_items", "is_job", "job_scope", "tenant_scope"]

_HEAD = struct.Struct("<iB")
# What an entry takes in the server besides its value: its digest twice, with table and list nodes (185 measured).
_OVERHEAD_BYTES = 200
_PER_CALL = 500
_JOB = "job:"
# Values of one job are of no use after its end: they go when none came for so long.
_JOB_LIFE_MS = 600_000


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one item: its value (float32, shape (d,), or (1,) for a score), tokens and whether it was cut."""

    value: NDArray[np.float32]
    tokens: int
    truncated: bool

    def pack(self) -> bytes:
        """Return the entry as bytes: int32 tokens, uint8 truncated, float32 values, all little-endian."""
        return _HEAD.pack(self.tokens, self.truncated) + self.value.astype("<f4", copy=False).tobytes()

    @classmethod
    def unpack(cls, packed: bytes) -> "Entry":
        """Return the entry that `pack` wrote."""
        tokens, truncated = _HEAD.unpack_from(packed)
        return cls(np.frombuffer(packed, "<f4", offset=_HEAD.size), tokens, bool(truncated))


@dataclass(frozen=True, slots=True)
class Claimed:
    """What is known of some digests: their entries, or whether somebody else computes them now."""

    found: Mapping[bytes, Entry]
    busy: frozenset[bytes] = frozenset()


def is_job(scope: str) -> bool:
    """Return whether a scope is that of one job."""
    return scope.startswith(_JOB)


def tenant_scope(tenant: str) -> str:
    """Return the scope of all that a tenant asks to keep."""
    return f"tenant:{tenant}"


def job_scope(job_id: str) -> str:
    """Return the scope of one job."""
    return f"{_JOB}{job_id}"


def digest_items(work: Work, fingerprint: str) -> list[bytes]:
    """Return for each item the SHA-256 of all that its value depends on; equal items have equal digests."""
    params = work.params
    made_by = (work.operation, fingerprint, params.instruction, params.dimensions, params.truncate)
    # Lengths stand before the parts, so that no two different lists of parts read alike.
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
    """Keeps and finds entries. Thread-safe. All methods raise `redis.RedisError` when the server does not answer.

    Args:
        redis: client without `decode_responses`.
        settings: budget of a scope and how long an entry holds.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._scripts = Scripts(redis)
        self._budget_bytes = settings.cache_max_bytes
        self._ttl_ms = int(settings.cache_ttl_s * 1000)
        self._claim_ms = int(settings.lease_s * 2000)
        # Who waits makes no progress, and must not lose its lease by that.
        self.patience_s = settings.lease_s / 2

    def find(self, scope: str, digests: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return the entries that there are."""
        names = [keys.cache_values(scope), keys.cache_times(scope), keys.cache_lookups()]
        found: dict[bytes, Entry] = {}
        for first in range(0, len(digests), _PER_CALL):
            asked = digests[first : first + _PER_CALL]
            values = cast("list[bytes | None]", self._scripts.call("cache_get", names, [self._ttl_ms, *asked]))
            known = zip(asked, values, strict=True)
            found |= {digest: Entry.unpack(value) for digest, value in known if value is not None}
        return found

    def claim(self, scope: str, digests: Sequence[bytes], owner: str) -> Claimed:
        """Find entries, and claim what is neither there nor claimed by another owner; repeatable."""
        names = [keys.cache_values(scope), keys.cache_times(scope), keys.cache_lookups(), keys.cache_claims(scope)]
        found, busy = dict[bytes, Entry](), set[bytes]()
        for first in range(0, len(digests), _PER_CALL):
            asked = digests[first : first + _PER_CALL]
            args: list[Argument] = [self._ttl_ms, owner, self._claim_ms, *asked]
            answers = cast("list[bytes | int]", self._scripts.call("cache_claim", names, args))
            for digest, answer in zip(asked, answers, strict=True):
                if isinstance(answer, bytes):
                    found[digest] = Entry.unpack(answer)
                elif answer == 0:
                    busy.add(digest)
        return Claimed(found, frozenset(busy))

    def release(self, scope: str, digests: Sequence[bytes], owner: str) -> None:
        """Give claims back: their values are kept, or will not come."""
        for first in range(0, len(digests), _PER_CALL):
            args: list[Argument] = [owner, *digests[first : first + _PER_CALL]]
            self._scripts.call("cache_release", [keys.cache_claims(scope)], args)

    def keep(self, scope: str, entries: Mapping[bytes, Entry]) -> None:
        """Keep entries; the oldest of the scope make room.

        Raises:
            redis.OutOfMemoryError: the server is full.
        """
        names = [keys.cache_values(scope), keys.cache_times(scope), keys.cache_bytes(scope)]
        items = list(entries.items())
        life_ms = _JOB_LIFE_MS if is_job(scope) else self._ttl_ms
        for first in range(0, len(items), _PER_CALL):
            args: list[Argument] = [self._budget_bytes, self._ttl_ms, min(self._ttl_ms, life_ms), _OVERHEAD_BYTES]
            for digest, entry in items[first : first + _PER_CALL]:
                args += [digest, entry.pack()]
            self._scripts.call("cache_put", names, args)
