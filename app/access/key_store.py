"""API keys that were made or revoked while the server runs: kept in Redis, beside those of the keys file.

Owns their records, with who made and who revoked them. Keys themselves are never stored: a record holds the SHA-256, as
the file does, and the file stays as the operator wrote it. What a key may do is `config.keyring.Key`.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import orjson
from pydantic import ValidationError
from redis import Redis, RedisError

from config.keyring import Key, list_problems
from config.new_key import new_key
from tasks import keys
from tasks.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable

__all__ = ["KeyRecord", "KeyStore", "find_record", "key_id"]

_log = logging.getLogger(__name__)
_CACHE_S = 1.0


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is known of one key.

    Attributes:
        key: whose it is and what it may do.
        source: `file`, or `api` for one that was made while the server ran.
        created_at, created_by, revoked_at, revoked_by: times are seconds since the epoch; None and empty: not known.
        valid_until: a key that was rotated ends then.
    """

    key: Key
    source: str = "api"
    created_at: float | None = None
    created_by: str = ""
    revoked_at: float | None = None
    revoked_by: str = ""
    valid_until: float | None = None

    @property
    def id(self) -> str:
        """A short name that gives nothing of the key away."""
        return key_id(self.key)

    @property
    def is_valid(self) -> bool:
        """Whether the key still opens anything."""
        return self.revoked_at is None and (self.valid_until is None or time.time() < self.valid_until)


def key_id(key: Key) -> str:
    """Return the short name under which counters, logs and the console know a key."""
    return key.sha256[:16]


class KeyStore:
    """The records of all web processes. Thread-safe; what is read is used for a second.

    Args:
        redis: a client that gives up quickly.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._lock = threading.Lock()
        self._records: Mapping[str, KeyRecord] | None = None
        self._next_read_s = 0.0

    def current(self) -> Mapping[str, KeyRecord]:
        """Return the records by key ID; when Redis does not answer, those that were read before.

        Raises:
            StoreUnavailable: none were read yet, so that a revoked key could not be told from a good one.
        """
        if self._records is None:
            with self._lock:
                self._refresh()
        elif time.monotonic() >= self._next_read_s and self._lock.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._lock.release()
        if self._records is None:
            raise StoreUnavailable("API keys cannot be checked now", retry_after_s=2)
        return self._records

    def make(self, fields: Mapping[str, Any], by: str) -> tuple[str, KeyRecord]:
        """Make a key; return it, which is stored nowhere and cannot be shown again, and its record.

        Raises:
            InvalidRequest: a field is wrong.
            redis.RedisError: Redis does not answer.
        """
        secret, digest = new_key()
        try:
            key = Key.model_validate({**fields, "sha256": digest})
        except ValidationError as error:
            raise InvalidRequest(list_problems(error)) from error
        record = KeyRecord(key, created_at=time.time(), created_by=by)
        self._write(record)
        _log.info("%s made key %s of tenant %s", by, record.id, key.tenant)
        return secret, record

    def revoke(self, record: KeyRecord, by: str) -> KeyRecord:
        """Revoke a key for good, one of the file too.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        if record.revoked_at is None:
            record = replace(record, revoked_at=time.time(), revoked_by=by)
            self._write(record)
            _log.info("%s revoked key %s of tenant %s", by, record.id, record.key.tenant)
        return record

    def rotate(self, record: KeyRecord, by: str, grace_s: float) -> tuple[str, KeyRecord]:
        """Make a key with the same rights; the old one ends after `grace_s` seconds.

        Raises:
            Conflict: the old one has ended already.
            redis.RedisError: Redis does not answer.
        """
        if not record.is_valid:
            raise Conflict("this key has been revoked; make a new one")
        made = self.make(record.key.model_dump(exclude={"sha256"}), by)
        self._write(replace(record, valid_until=time.time() + grace_s))
        _log.info("%s rotated key %s of tenant %s", by, record.id, record.key.tenant)
        return made

    def _write(self, record: KeyRecord) -> None:
        values = {name: getattr(record, name) for name in KeyRecord.__slots__ if name != "key"}
        line = orjson.dumps({**values, "key": record.key.model_dump()})
        self._redis.hset(keys.api_keys(), record.id, line)
        self._next_read_s = 0.0

    def _refresh(self) -> None:
        self._next_read_s = time.monotonic() + _CACHE_S
        try:
            lines = cast("dict[bytes, bytes]", self._redis.hgetall(keys.api_keys()))
        except RedisError as error:
            _log.warning("API keys cannot be read from Redis: %s", type(error).__name__)
            return
        records = (_read(line) for line in lines.values())
        self._records = {record.id: record for record in records if record is not None}


def find_record(records: Mapping[str, KeyRecord], name: str) -> KeyRecord:
    """Return the record of that ID.

    Raises:
        NotFound: there is none.
    """
    if name not in records:
        raise NotFound("there is no such key")
    return records[name]


def _read(line: bytes) -> KeyRecord | None:
    values = orjson.loads(line)
    try:
        return KeyRecord(key=Key.model_validate(values.pop("key")), **values)
    except (ValidationError, TypeError):
        # Of a newer version: what it means is not known here, so it opens nothing.
        _log.warning("a key in Redis cannot be read by this version")
        return None
