"""Whether two requests with one idempotency key are the same: a hash of what they ask for.

Owns what counts: the parameters and the lines of a body, or a JSON body as it was understood. Stores nothing.
"""

import hashlib
from collections.abc import Iterator
from typing import Self

import orjson
from pydantic import BaseModel

from tasks.jobs.job import Idempotency

__all__ = ["PayloadHash"]


class PayloadHash:
    """The hash of one request.

    Args:
        key: the caller's idempotency key, if there is one.
        parts: what the request says besides its lines.
        streamed: whether lines follow: then the hash is known only when all were read through `follow`.
    """

    def __init__(self, key: str | None, *parts: bytes, streamed: bool = False) -> None:
        self.key = key
        self.streamed = streamed
        self._hash = hashlib.blake2b(digest_size=16)
        for part in parts:
            self._add(part)

    @classmethod
    def of_json(cls, key: str | None, body: BaseModel) -> Self:
        """Return the hash of a JSON body as it was understood: spaces and the order of fields do not count."""
        if key is None:
            return cls(None)
        return cls(key, orjson.dumps(body.model_dump(warnings=False), option=orjson.OPT_SORT_KEYS))

    def follow(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the lines and add each to the hash, which so depends on no block and no chunk."""
        if self.key is None:
            return lines
        return (self._add(line) for line in lines)

    def settle(self) -> Idempotency | None:
        """Return the key with the hash of all that was read so far; None without a key."""
        return Idempotency(self.key, self._hash.hexdigest()) if self.key is not None else None

    def _add(self, part: bytes) -> bytes:
        self._hash.update(len(part).to_bytes(8, "little") + part)
        return part
