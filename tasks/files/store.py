"""Files of tenants: records in Redis, bytes in a `ByteStore`.

Owns the life of a file: announced, written, visible, deleted or expired, swept. Knows neither HTTP nor the content of a
file. A record is announced before the first byte is written and forgotten after the last one is gone, so that a process
that is killed anywhere between leaves bytes that the next sweep finds.
"""

import contextlib
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any, Literal, Self

from redis import Redis, RedisError

from config.settings import Settings
from tasks import keys
from tasks.errors import CapacityError, NotFound, StoreUnavailable
from tasks.keys import Key
from tasks.scripts import Script, Scripts
from tasks.storage.objects import ByteStore
from tasks.storage.shared_places import SharedPlaces

__all__ = ["FileStore", "FileWriter", "NewFile", "Purpose", "SortOrder", "StoredFile"]

# A batch's plan is ours: no client sees it.
Purpose = Literal["batch", "batch_output", "batch_plan"]
SortOrder = Literal["asc", "desc"]

# A writer that writes nothing for so long counts as dead.
_HOLD_S = 600.0
_RENEW_S = 60.0
# A record outlives its bytes, or the sweep would not know of them.
_GRACE_S = 7 * 86_400.0
_PAGE = 100
_ID = re.compile(r"file-[0-9a-f]{31}")


@dataclass(frozen=True, slots=True)
class NewFile:
    """What is known of a file before its bytes."""

    tenant: str
    filename: str
    purpose: Purpose
    ttl_s: float

    @property
    def hidden(self) -> bool:
        """Whether clients must not see it."""
        return self.purpose == "batch_plan"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as it is read from Redis. Times are seconds since the epoch, by Redis' clock."""

    id: str
    tenant: str
    filename: str
    purpose: Purpose
    size_bytes: int
    created_at: float
    expires_at: float


class FileBeginScript(Script):
    """Announce a file for `hold_ms`; `fields` are those of its record."""

    file: Key
    expiry: Key
    member: str
    hold_ms: int
    fields: Sequence[str]


class FileCommitScript(Script):
    """Make a written file visible.

    Attributes:
        file: its record.
        expiry: all files by the time at which their bytes go.
        listed: the tenant's visible files.
        member: name of the file among all.
        file_id: empty for a file that is not listed.
        ttl_ms: how long it is kept.
        grace_ms: how long its record outlives it.
    """

    file: Key
    expiry: Key
    listed: Key
    member: str
    file_id: str
    ttl_ms: int
    grace_ms: int
    size_bytes: int


class FileHideScript(Script):
    """Take a file out of sight."""

    file: Key
    expiry: Key
    listed: Key
    member: str
    file_id: str


class FileForgetScript(Script):
    """Forget a file whose bytes are gone."""

    file: Key
    expiry: Key
    listed: Key
    member: str
    file_id: str


class FileStore:
    """Writes, lists, reads and deletes files. Thread-safe. Every method may raise redis.RedisError.

    Args:
        redis: a client without `decode_responses`.
        settings: where the bytes go, see `ByteStore`.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self.bytes = ByteStore(settings)
        self.places = SharedPlaces(redis, settings, files=True)
        self._scripts = Scripts(redis)

    def open_writer(self, new: NewFile) -> "FileWriter":
        """Announce a new file and return its writer.

        Raises:
            StoreFull, StoreUnavailable: the bytes cannot be written, or others would not find them.
        """
        self._require_one_place()
        return FileWriter(self, new)

    def get(self, file_id: str, tenant: str, *, hidden: bool = False) -> StoredFile:
        """Return the record of a file; of a hidden one only when asked for.

        Raises:
            NotFound: there is none, it has expired, or it belongs to another tenant.
        """
        # The id becomes part of a path: nothing but our own spelling may get there.
        raw = self._redis.hgetall(keys.file(file_id)) if _ID.fullmatch(file_id) else {}
        file = _read_record(file_id, raw)
        if file is None or file.tenant != tenant or (file.purpose == "batch_plan") != hidden:
            raise NotFound(f"No such File object: {file_id[:80]}", param="file_id")
        if file.expires_at <= self._now_s():
            raise NotFound(f"The file {file_id} has expired.", param="file_id")
        return file

    def list(
        self, tenant: str, *, limit: int, order: SortOrder = "desc", after: str = "", purpose: str = ""
    ) -> list[StoredFile]:
        """Return visible files by time of creation, at most `limit`, behind the one named `after`."""
        found: list[StoredFile] = []
        now_s = self._now_s()
        while len(found) < limit:
            ids = self._list_ids(tenant, order, after)
            files = map(_read_record, ids, self._read_many(ids))
            found.extend(f for f in files if f is not None and f.expires_at > now_s and purpose in {"", f.purpose})
            if len(ids) < _PAGE:
                break
            after = ids[-1]
        return found[:limit]

    def open(self, file: StoredFile) -> IO[bytes]:
        """Open the bytes of a file for reading; errors as `ByteStore.open`."""
        try:
            return self.bytes.open(_member(file.id, file.tenant))
        except NotFound:
            # Another host may have them: that is no reason for a batch to fail for good.
            self._require_one_place()
            raise

    def link(self, file: StoredFile, lasts_s: float) -> str | None:
        """Return an address of the bytes in object storage, see `ByteStore.link`."""
        return self.bytes.link(_member(file.id, file.tenant), lasts_s)

    def delete(self, file_id: str, tenant: str) -> None:
        """Delete a file.

        Raises:
            NotFound: there is none for this tenant.
        """
        self.get(file_id, tenant)
        self.discard(file_id, tenant)

    def discard(self, file_id: str, tenant: str) -> None:
        """Remove whatever there is under this id, complete or not, visible or not; repeatable.

        Raises:
            StoreUnavailable: the bytes cannot be removed now; the file is out of sight, and the sweep tries again.
        """
        names, member = _keys(file_id, tenant), _member(file_id, tenant)
        self._scripts.call(FileHideScript(*names, member, file_id))
        self.bytes.remove(member)
        self._scripts.call(FileForgetScript(*names, member, file_id))

    def sweep(self) -> int:
        """Remove files that have expired or were left behind and return how many. Any process may call it.

        A file whose bytes cannot be removed now is tried again later, so that it does not hold up the others.
        """
        now_ms = int(self._now_s() * 1000)
        due: Any = self._redis.zrange(keys.files_expiry(), 0, now_ms, byscore=True, offset=0, num=_PAGE)
        for member in due:
            tenant, _, file_id = member.decode().partition("/")
            try:
                self.discard(file_id, tenant)
            except CapacityError:
                self._redis.zadd(keys.files_expiry(), {member: now_ms + int(_HOLD_S * 1000)}, xx=True)
        return len(due)

    # -- for the writer

    def announce(self, file_id: str, new: NewFile) -> None:
        """Announce that bytes of this file are being written."""
        fields = ["tenant", new.tenant, "filename", new.filename, "purpose", new.purpose]
        file, expiry, _ = _keys(file_id, new.tenant)
        call = FileBeginScript(file, expiry, _member(file_id, new.tenant), int(_HOLD_S * 1000), fields)
        self._scripts.call(call)

    def publish(self, file_id: str, new: NewFile, size_bytes: int) -> StoredFile:
        """Make a written file visible and return its record.

        Raises:
            StoreUnavailable: writing took so long that the file was swept.
        """
        call = FileCommitScript(
            *_keys(file_id, new.tenant),
            member=_member(file_id, new.tenant),
            file_id="" if new.hidden else file_id,
            ttl_ms=int(new.ttl_s * 1000),
            grace_ms=int(_GRACE_S * 1000),
            size_bytes=size_bytes,
        )
        if not self._scripts.call(call):
            raise StoreUnavailable("The file took too long to arrive and was given up.")
        return self.get(file_id, new.tenant, hidden=new.hidden)

    # -- inside

    def _require_one_place(self) -> None:
        if sentence := self.places.explain("TWOLANE_FILES_URL"):
            raise StoreUnavailable(sentence, retry_after_s=30)

    def _now_s(self) -> float:
        seconds, micros = self._redis.time()
        return float(seconds + micros / 1e6)

    def _list_ids(self, tenant: str, order: SortOrder, after: str) -> Sequence[str]:
        name = keys.tenant_files(tenant)
        found: Any
        if order == "desc":
            found = self._redis.zrevrangebylex(name, f"({after}" if after else "+", "-", 0, _PAGE)
        else:
            found = self._redis.zrangebylex(name, f"({after}" if after else "-", "+", 0, _PAGE)
        return [member.decode() for member in found]

    def _read_many(self, ids: Sequence[str]) -> Sequence[Mapping[Any, Any]]:
        with self._redis.pipeline(transaction=False) as pipe:
            for file_id in ids:
                pipe.hgetall(keys.file(file_id))
            records: Sequence[Mapping[Any, Any]] = pipe.execute()
        return records


class FileWriter:
    """Takes the bytes of one new file, in order. Leaving it without `commit` discards them.

    Every method raises StoreFull or StoreUnavailable when the bytes cannot be written.
    """

    def __init__(self, store: FileStore, new: NewFile) -> None:
        # Sorts by creation time and cannot be guessed: 11 hex digits of ms, 20 random.
        self.id = f"file-{int(time.time() * 1000):011x}{secrets.token_hex(10)}"
        self.size_bytes = 0
        self._store, self._new = store, new
        store.announce(self.id, new)
        self._renew_at_s = time.monotonic() + _RENEW_S
        self._bytes = store.bytes.create(_member(self.id, new.tenant))
        self._committed = False

    def write(self, block: bytes) -> None:
        """Append bytes."""
        self._bytes.write(block)
        self.size_bytes += len(block)
        if time.monotonic() >= self._renew_at_s:
            self._renew_at_s = time.monotonic() + _RENEW_S
            self._store.announce(self.id, self._new)

    def commit(self, ttl_s: float | None = None) -> StoredFile:
        """Flush the bytes to disk, make the file visible and return its record.

        Args:
            ttl_s: how long it is kept, where that became known only now.
        """
        self._bytes.finish()
        new = self._new if ttl_s is None else replace(self._new, ttl_s=ttl_s)
        stored = self._store.publish(self.id, new, self.size_bytes)
        self._committed = True
        return stored

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._committed:
            self._bytes.abandon()
            # What cannot be discarded now is left to the sweep; the original error must not be hidden.
            with contextlib.suppress(RedisError, CapacityError):
                self._store.discard(self.id, self._new.tenant)


def _member(file_id: str, tenant: str) -> str:
    """Return the name of a file among all tenants' files: the path of its bytes, too."""
    return f"{tenant}/{file_id}"


def _keys(file_id: str, tenant: str) -> tuple[Key, Key, Key]:
    return keys.file(file_id), keys.files_expiry(), keys.tenant_files(tenant)


def _read_record(file_id: str, raw: Mapping[Any, Any]) -> StoredFile | None:
    """Return the record of a complete file; None for one that is being written, is deleted or is not there."""
    record: dict[str, Any] = {name.decode(): value.decode() for name, value in raw.items()}
    if record.get("state") != "ready":
        return None
    return StoredFile(
        id=file_id,
        tenant=record["tenant"],
        filename=record["filename"],
        purpose=record["purpose"],
        size_bytes=int(record["bytes"]),
        created_at=int(record["created_ms"]) / 1000,
        expires_at=int(record["expires_ms"]) / 1000,
    )
