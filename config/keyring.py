"""API keys and what each may do: one TOML file of `[[keys]]`, re-read while the server runs.

Owns the shape of an entry, the file's look-up in constant time, its re-reading and the command that makes a key. Keys
themselves are never stored: the file holds their SHA-256. Knows nothing of HTTP (`app.access.auth`) and counts nothing
(`app.access.limits`). A key made here has 256 random bits, so a plain fast hash is enough: there is nothing to guess.

    python -m config.keyring new --tenant NAME [--requests-per-minute N] [--file keys.toml]
"""

import argparse
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import secrets
import sys
import threading
import time
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from config.settings import Settings

__all__ = ["Key", "Keyring", "KeyringError", "KeyringFile", "check_exposure", "load_keyring", "new_key"]

log = logging.getLogger(__name__)

_RECHECK_S = 1.0
_PREFIX = "tl-"
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
    priority: Literal["low", "normal", "high"] = "normal"
    models: Annotated[list[str], Field(min_length=1)] | None = None
    admin: bool = False
    # Whether values that were computed before are taken over where a request does not say.
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

    def find(self, secret: str) -> Key | None:
        """Return the entry of this key, or None.

        Every entry is compared, each in constant time, so that the time taken tells nothing of which one came close.
        """
        digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
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
    return _parse(path, _read(path))


class KeyringFile:
    """A keys file that is read again when it changed. Thread-safe.

    The file is looked at no more than once a second. A bad file stops the start; later it keeps the keys that were
    good, with one line in the log for each bad version.

    Raises:
        KeyringError: the first reading failed.
    """

    def __init__(self, path: Path, recheck_s: float = _RECHECK_S) -> None:
        self._path = path
        self._recheck_s = recheck_s
        self._lock = threading.Lock()
        # What was last read, good or bad, so that each bad version is reported once; None: not readable.
        self._content: bytes | None = _read(path)
        self._keyring = _parse(path, self._content)
        self._next_check_s = time.monotonic() + recheck_s

    def current(self) -> Keyring:
        """Return the keys that count now."""
        if time.monotonic() >= self._next_check_s and self._lock.acquire(blocking=False):
            try:
                self._next_check_s = time.monotonic() + self._recheck_s
                self._refresh()
            finally:
                self._lock.release()
        return self._keyring

    def _refresh(self) -> None:
        seen = self._content
        try:
            # The content is compared, not the time of change: two writes within the clock's grain share one time.
            self._content = None
            self._content = _read(self._path)
            if self._content == seen:
                return
            self._keyring = _parse(self._path, self._content)
            log.info("read %d keys from %s", len(self._keyring), self._path)
        except KeyringError as error:
            if self._content != seen:
                log.error("the keys that were read before stay valid: %s", error)  # noqa: TRY400 - no traceback needed


def check_exposure(settings: Settings) -> None:
    """Refuse to serve strangers without keys; called before the web server binds.

    Raises:
        KeyringError: the address is not a loopback one and there is no keys file, or the file is bad.
    """
    if settings.keys_file is not None:
        load_keyring(settings.keys_file)
    elif not _is_loopback(settings.host):
        raise KeyringError(
            f"TWOLANE_HOST={settings.host} can be reached from other machines, and there are no API keys: set "
            "TWOLANE_KEYS_FILE (make a key with `python -m config.keyring new --tenant NAME --file keys.toml`), or "
            "bind TWOLANE_HOST=127.0.0.1. In a container, which has to bind 0.0.0.0, mount a keys file"
        )


def new_key() -> tuple[str, str]:
    """Return a new random key (256 bits) and its SHA-256 in hex, which is what the file holds."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    return secret, hashlib.sha256(secret.encode()).hexdigest()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        # Of all names only this one is sure to stay on the machine (RFC 6761).
        return host.lower().rstrip(".") == "localhost"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyringError(f"TWOLANE_KEYS_FILE={path} cannot be read: {error.strerror}") from error


def _parse(path: Path, content: bytes) -> Keyring:
    try:
        keys = _File.model_validate(tomllib.loads(content.decode("utf-8"))).keys
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise KeyringError(f"TWOLANE_KEYS_FILE={path} is not TOML: {error}") from error
    except ValidationError as error:
        raise KeyringError(f"TWOLANE_KEYS_FILE={path} is wrong: {_list_problems(error)}") from error
    digests = [key.sha256 for key in keys]
    if len(set(digests)) < len(digests):
        twice = next(digest for digest in digests if digests.count(digest) > 1)
        raise KeyringError(f"TWOLANE_KEYS_FILE={path} is wrong: sha256 {twice[:8]}... stands there twice")
    return Keyring(keys)


def _list_problems(error: ValidationError) -> str:
    return "; ".join(f"{_spell(problem['loc'])}: {problem['msg']}" for problem in error.errors())


def _spell(location: Sequence[int | str]) -> str:
    """Write a place in the file as `keys[2].tenant`, counted from 1 as an operator counts."""
    return "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _main(arguments: Sequence[str]) -> int:
    options = _options().parse_args(arguments)
    secret, digest = new_key()
    fields = {name: value for name, value in vars(options).items() if name not in {"command", "file"}}
    try:
        block = _write_block(Key.model_validate({**fields, "sha256": digest}))
        if options.file is not None:
            _append(options.file, block)
    except (ValidationError, KeyringError) as error:
        sys.stderr.write(f"{_list_problems(error) if isinstance(error, ValidationError) else error}\n")
        return 2
    place = f"Added to {options.file}." if options.file is not None else "Append this to your keys file:"
    sys.stderr.write(f"The key is shown once and is stored nowhere. {place}\n")
    sys.stdout.write(f"{secret}\n" if options.file is not None else f"{secret}\n\n{block}")
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m config.keyring", description="API keys.")
    new = parser.add_subparsers(dest="command", required=True).add_parser("new", help="make a key and print it once")
    new.add_argument("--tenant", required=True, help="whose key it is; jobs and files belong to the tenant")
    new.add_argument("--requests-per-minute", type=int, help="requests per minute; left out: no limit")
    new.add_argument("--tokens-per-minute", type=int, help="tokens of synchronous calls per minute")
    new.add_argument("--max-queued-items", type=int, help="items that the tenant's unfinished jobs may hold together")
    new.add_argument("--priority", choices=("low", "normal", "high"), default="normal", help="of the tenant's jobs")
    new.add_argument("--models", type=lambda text: text.split(","), help="the only models it may use, comma-separated")
    new.add_argument("--admin", action="store_true", help="may read what belongs to the operator, as /metrics")
    new.add_argument("--cache", action="store_true", help="take over values of the tenant's earlier work")
    new.add_argument("--dedupe", action="store_true", help="compute equal texts of a job once")
    new.add_argument("--file", type=Path, help="keys file to append to; left out: the entry is printed")
    return parser


def _write_block(key: Key) -> str:
    # A JSON scalar or list of strings is also TOML.
    values = key.model_dump(exclude_defaults=True)
    return "[[keys]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def _append(path: Path, block: str) -> None:
    """Append to a good keys file, or begin one that only its owner can read."""
    before = _read(path) if path.exists() else b""
    if before.strip():
        _parse(path, before)
    separator = "" if not before else "\n" if before.endswith(b"\n") else "\n\n"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
            file.write(separator + block)
    except OSError as error:
        raise KeyringError(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
