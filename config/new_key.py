"""`python -m config.new_key new --tenant NAME [--file keys.toml]`: make an API key and print it once.

Owns how a key is made and how its entry is written. What an entry means and how it is read: `config.keyring`. A key has
256 random bits, so a plain fast hash is enough: there is nothing to guess.
"""

import argparse
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from config.keyring import Key, KeyringError, list_problems, load_keyring, read_keys_file

__all__ = ["new_key"]

_PREFIX = "tl-"


def new_key() -> tuple[str, str]:
    """Return a new random key (256 bits) and its SHA-256 in hex, which is what the file holds."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    return secret, hashlib.sha256(secret.encode()).hexdigest()


def _main(arguments: Sequence[str]) -> int:
    options = _options().parse_args(arguments)
    secret, digest = new_key()
    fields = {name: value for name, value in vars(options).items() if name not in {"command", "file"}}
    try:
        block = _write_block(Key.model_validate({**fields, "sha256": digest}))
        if options.file is not None:
            _append(options.file, block)
    except (ValidationError, KeyringError) as error:
        sys.stderr.write(f"{list_problems(error) if isinstance(error, ValidationError) else error}\n")
        return 2
    place = f"Added to {options.file}." if options.file is not None else "Append this to your keys file:"
    sys.stderr.write(f"The key is shown once and is stored nowhere. {place}\n")
    sys.stdout.write(f"{secret}\n" if options.file is not None else f"{secret}\n\n{block}")
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m config.new_key", description="API keys.")
    new = parser.add_subparsers(dest="command", required=True).add_parser("new", help="make a key and print it once")
    new.add_argument("--tenant", required=True, help="whose key it is; jobs and files belong to the tenant")
    new.add_argument("--requests-per-minute", type=int, help="requests per minute; left out: no limit")
    new.add_argument("--tokens-per-minute", type=int, help="tokens of synchronous calls per minute")
    new.add_argument("--max-queued-items", type=int, help="items that the tenant's unfinished jobs may hold together")
    new.add_argument("--priority", choices=("low", "normal", "high"), default="normal", help="of the tenant's jobs")
    new.add_argument("--models", type=lambda text: text.split(","), help="the only models it may use, comma-separated")
    new.add_argument("--admin", action="store_true", help="may read what belongs to the operator, as /metrics")
    new.add_argument("--read-only", action="store_true", help="with --admin: may look and not change")
    new.add_argument("--name", help="what logs and the console call the key")
    new.add_argument("--cache", action="store_true", help="use cached values of the tenant's earlier work")
    new.add_argument("--dedupe", action="store_true", help="compute equal texts of a job once")
    new.add_argument("--file", type=Path, help="keys file to append to; left out: the entry is printed")
    return parser


def _write_block(key: Key) -> str:
    # A JSON scalar or list of strings is also TOML.
    values = key.model_dump(exclude_defaults=True)
    return "[[keys]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


def _append(path: Path, block: str) -> None:
    """Append to a good keys file, or begin one that only its owner can read."""
    before = read_keys_file(path) if path.exists() else b""
    if before.strip():
        load_keyring(path)
    separator = "" if not before else "\n" if before.endswith(b"\n") else "\n\n"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
            file.write(separator + block)
    except OSError as error:
        raise KeyringError(f"{path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
