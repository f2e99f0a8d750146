"""API keys and what each may do: one TOML file of `[[keys]]`, re-read while the server runs.

Owns the format of an entry, its comparison in constant time and the re-reading of the file. Keys themselves are never
stored: the file holds their SHA-256. Knows nothing of HTTP (`app.access.auth`), counts nothing (`app.access.limits`)
and makes no keys (`config.new_key`).
"""

import hashlib
import hmac
import ipaddress
import logging
import threading
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from config.settings import Settings

__all__ = [
    "Key",
    "Keyring",
    "KeyringError",
    "KeyringFile",
    "check_exposure",
    "is_loopback",
    "list_problems",
    "load_keyring",
    "read_keys_file",
]

log = logging.getLogger(__name__)

_RECHECK_S = 1.0
_REPEAT_S = 60.0
Limit = Annotated[int, Field(ge=1)]


class KeyringError(ValueError):
    """The keys file is missing or wrong, or the server would be open to strangers. The message is for the operator."""


class Key(BaseModel):
    """One entry of the keys file: whose key it is, its fingerprint and its limits (None: no limit)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    # The tenant's name becomes part of Redis keys and of folder names.
    tenant: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_queued_items: Limit | None = None
    # What the tenant's jobs may keep in Redis, texts and results.
    max_stored_bytes: Limit | None = None
    priority: Literal["low", "normal", "high"] = "normal"
    # Weight of the tenant in turns between tenants; without it, that of the priority: 1, 4 or 16.
    share: Annotated[int, Field(ge=1, le=1000)] | None = None
    models: Annotated[list[str], Field(min_length=1)] | None = None
    admin: bool = False
    # An admin's key that may look and not change.
    read_only: bool = False
    # What log lines and the console call the key; several keys of a tenant are told apart by it.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@ -]{0,63}$")] | None = None
    # Whether cached values are used where a request does not say.
    cache: bool = False
    dedupe: bool = False


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: Annotated[list[Key], Field(min_length=1)]


class Keyring:
    """All keys of one reading of the file."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = [(bytes.fromhex(key.sha256), key) for key in keys]

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Key]:
        return (key for _, key in self._keys)

    def find(self, secret: str) -> Key | None:
        """Return the entry of this key, or None.

        Every entry is compared, each in constant time, so that the time taken tells nothing of which one came close.
        """
        return self.find_digest(hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest())

    def find_digest(self, digest: bytes) -> Key | None:
        """Return the entry of the key with this SHA-256, or None."""
        found: Key | None = None
        for known, key in self._keys:
            if hmac.compare_digest(known, digest):
                found = key
        return found


def load_keyring(path: Path) -> Keyring:
    """Read and check a keys file.

    Raises:
        KeyringError: it cannot be read, is not TOML, or an entry is wrong; the message names file, entry and field.
    """
    return _parse(path, read_keys_file(path))


class KeyringFile:
    """A keys file that is read again when it changed. Thread-safe.

    The file is looked at no more than once a second. A bad file stops the start; later it keeps the keys that were
    good, with a line in the log for each bad version and each minute. One that was emptied revokes all of its keys.

    Raises:
        KeyringError: the first reading failed.
    """

    def __init__(self, path: Path, recheck_s: float = _RECHECK_S) -> None:
        self._path = path
        self._recheck_s = recheck_s
        self._lock = threading.Lock()
        # What was last read, good or bad, so that each bad version is reported once; None: not readable.
        self._content: bytes | None = read_keys_file(path)
        self._keyring = _parse(path, self._content)
        self._next_check_s = time.monotonic() + recheck_s
        self._next_line_s = 0.0

    def current(self) -> Keyring:
        """Return the keys that count now."""
        if time.monotonic() >= self._next_check_s and self._lock.acquire(blocking=False):
            try:
                self._next_check_s = time.monotonic() + self._recheck_s
                self._refresh()
            finally:
                self._lock.release()
        return self._keyring

    @property
    def keeps_old_keys(self) -> bool:
        """Whether the file is missing, unreadable or wrong, so that keys which were read before stay valid."""
        self.current()
        return self._next_line_s > 0

    def _refresh(self) -> None:
        seen = self._content
        try:
            # The content is compared, not the time of change: two writes within the clock's grain share one time.
            self._content = None
            self._content = read_keys_file(self._path)
            if self._content == seen and not self._next_line_s:
                return
            self._keyring = _parse(self._path, self._content) if _holds_keys(self._content) else Keyring(())
            self._next_line_s = 0.0
            log.info("read %d keys from %s", len(self._keyring), self._path)
        except KeyringError as error:
            if self._content != seen or time.monotonic() >= self._next_line_s:
                self._next_line_s = time.monotonic() + _REPEAT_S
                log.error("the keys that were read before stay valid: %s", error)  # noqa: TRY400 - no traceback needed


def check_exposure(settings: Settings) -> None:
    """Refuse to serve strangers without keys; called before the web server binds.

    Raises:
        KeyringError: the address is not a loopback one and there is no keys file, or the file is bad.
    """
    if settings.keys_file is not None:
        load_keyring(settings.keys_file)
    elif not is_loopback(settings.host):
        raise KeyringError(
            f"TWOLANE_HOST={settings.host} can be reached from other machines, and there are no API keys: set "
            "TWOLANE_KEYS_FILE (make a key with `python -m config.new_key new --tenant NAME --file keys.toml`), or "
            "bind TWOLANE_HOST=127.0.0.1. In a container, which has to bind 0.0.0.0, mount a keys file"
        )


def is_loopback(host: str) -> bool:
    """Return whether an address or a name leads to this machine and no other."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        # Of all names only this one is sure to stay on the machine (RFC 6761).
        return host.lower().rstrip(".") == "localhost"


def read_keys_file(path: Path) -> bytes:
    """Return the content of a keys file.

    Raises:
        KeyringError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyringError(f"TWOLANE_KEYS_FILE={path} cannot be read: {error.strerror}") from error


def _holds_keys(content: bytes) -> bool:
    """Return whether there is anything but comments and an empty list of keys."""
    try:
        return tomllib.loads(content.decode("utf-8")) not in ({}, {"keys": []})
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        return True


def _parse(path: Path, content: bytes) -> Keyring:
    try:
        keys = _File.model_validate(tomllib.loads(content.decode("utf-8"))).keys
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise KeyringError(f"TWOLANE_KEYS_FILE={path} is not TOML: {error}") from error
    except ValidationError as error:
        raise KeyringError(f"TWOLANE_KEYS_FILE={path} is wrong: {list_problems(error)}") from error
    digests = [key.sha256 for key in keys]
    if len(set(digests)) < len(digests):
        twice = next(digest for digest in digests if digests.count(digest) > 1)
        raise KeyringError(f"TWOLANE_KEYS_FILE={path} is wrong: sha256 {twice[:8]}... stands there twice")
    return Keyring(keys)


def list_problems(error: ValidationError) -> str:
    """Return every problem of a keys file in one line, each with its entry and field, without the values."""
    return "; ".join(f"{_spell(problem['loc'])}: {problem['msg']}" for problem in error.errors())


def _spell(location: Sequence[int | str]) -> str:
    """Write a place in the file as `keys[2].tenant`, counted from 1 as an operator counts."""
    return "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
