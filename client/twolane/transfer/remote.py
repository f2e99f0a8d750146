"""Files on other machines: `s3://`, `gs://`, `http://` and `https://`, also as patterns.

Owns the listing and the copy. A file is copied whole into the folder for temporary files, read there and removed before
the next one is copied: any server will do, and reading needs no connection that lasts for as long as a job.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from twolane.errors import InputError, TwolaneError
from twolane.transfer.arrow import load

__all__ = ["copied", "is_remote", "list_remote", "public_name"]

_EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "http": "", "https": ""}
_DRIVERS = {"s3": "s3fs", "gcs": "gcsfs"}
_BLOCK_BYTES = 2**20
_SILENCE_S = 60.0


def is_remote(name: str) -> bool:
    """Return whether a name is the address of a file elsewhere."""
    return urlsplit(name).scheme in _EXTRAS


def public_name(address: str) -> str:
    """Return an address without what may be secret: user, password, and the query, where signatures are."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def list_remote(address: str) -> list[str]:
    """Return the files that an address names, in the order of their names.

    Raises:
        InputError: there are none, or they cannot be listed.
    """
    if urlsplit(address).scheme in {"http", "https"}:
        if "*" in urlsplit(address).path:
            raise InputError(f"{public_name(address)}: a web server has no list of files; name each of them")
        return [address]
    with _reporting(address):
        files = _file_system(address)
        found = sorted(files.glob(address)) if "*" in address else [address]
        scheme = urlsplit(address).scheme
        paths = [path if "://" in path else f"{scheme}://{path}" for path in found]
        if not paths or not files.isfile(paths[0]):
            raise InputError(f"there is no file {public_name(address)}")
        return paths


@contextlib.contextmanager
def copied(address: str) -> Iterator[str]:
    """Give the path of a copy, which has the same name and is removed at the end.

    Raises:
        InputError: it cannot be fetched.
    """
    with tempfile.TemporaryDirectory(prefix="twolane-") as folder:
        path = Path(folder) / (PurePosixPath(unquote(urlsplit(address).path)).name or "file")
        with _reporting(address):
            if urlsplit(address).scheme in {"http", "https"}:
                _download(address, path)
            else:
                _file_system(address).get_file(address, str(path))
        yield str(path)


def _download(address: str, path: Path) -> None:
    with (
        httpx.stream("GET", address, follow_redirects=True, timeout=_SILENCE_S) as answer,
        path.open("wb") as file,
    ):
        if not answer.is_success:
            raise InputError(f"{public_name(address)} cannot be fetched: the server answered {answer.status_code}")
        # As it is stored: a file whose name ends in .gz may come with `Content-Encoding: gzip` too.
        packed = answer.headers.get("content-encoding") == "gzip" and path.suffix == ".gz"
        for block in answer.iter_raw(_BLOCK_BYTES) if packed else answer.iter_bytes(_BLOCK_BYTES):
            file.write(block)


def _file_system(address: str) -> Any:
    extra = _EXTRAS[urlsplit(address).scheme]
    load(_DRIVERS[extra], extra)
    return load("fsspec", extra).filesystem(urlsplit(address).scheme)


@contextlib.contextmanager
def _reporting(address: str) -> Iterator[None]:
    try:
        yield
    except TwolaneError:
        raise
    except Exception as error:  # noqa: BLE001 - the edge to drivers, which raise what each of their transports raises
        # The text of an error may repeat the address, with what is secret in it.
        reason = str(error).replace(address, public_name(address)).strip().partition("\n")[0]
        raise InputError(f"{public_name(address)} cannot be fetched: {reason or type(error).__name__}") from None
