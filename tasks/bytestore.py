"""Bytes of files by path, in a folder or in object storage.

Owns the file system behind `TWOLANE_FILES_URL` (anything that fsspec knows) and the translation of its failures. Knows
no record, no tenant and no expiry: that is `tasks.files`.
"""

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from typing import IO

import fsspec

from config.settings import Settings
from tasks.errors import CapacityError, ConfigError, NotFound, StoreFull, StoreUnavailable

__all__ = ["ByteStore", "ByteWriter", "read_blocks"]

_BLOCK_BYTES = 1 << 20


class ByteStore:
    """Creates, opens and removes files. Thread-safe.

    Raises:
        ConfigError: no file system of that kind is installed.
    """

    def __init__(self, settings: Settings) -> None:
        url = settings.files_url or str((settings.data_dir / "files").absolute())
        try:
            self._system, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"TWOLANE_FILES_URL={url} cannot be used: {error}") from error

    def create(self, path: str) -> "ByteWriter":
        """Open a new file for writing, with its folders.

        Raises:
            StoreFull: the disk is full.
            StoreUnavailable: the storage does not answer.
        """
        full = f"{self._root}/{path}"
        try:
            self._system.makedirs(full.rpartition("/")[0], exist_ok=True)
            return ByteWriter(self._system.open(full, "wb"))
        except OSError as error:
            raise _translate(error) from error

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading.

        Raises:
            NotFound: there is none.
            StoreUnavailable: the storage does not answer.
        """
        try:
            handle: IO[bytes] = self._system.open(f"{self._root}/{path}", "rb")
        except FileNotFoundError as error:
            raise NotFound("The file's bytes are gone.", param="file_id") from error
        except OSError as error:
            raise _translate(error) from error
        return handle

    def remove(self, path: str) -> None:
        """Remove a file if it is there.

        Raises:
            StoreUnavailable: the storage does not answer.
        """
        try:
            self._system.rm_file(f"{self._root}/{path}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise _translate(error) from error


class ByteWriter:
    """Takes the bytes of one file. Every method raises StoreFull or StoreUnavailable when the storage fails."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle

    def write(self, block: bytes) -> None:
        """Append bytes."""
        try:
            self._handle.write(block)
        except OSError as error:
            raise _translate(error) from error

    def finish(self) -> None:
        """Bring everything to disk and close the file."""
        try:
            self._handle.flush()
            # Object storage has no descriptor: there, closing is what makes it durable.
            with contextlib.suppress(AttributeError, io.UnsupportedOperation):
                os.fsync(self._handle.fileno())
            self._handle.close()
        except OSError as error:
            raise _translate(error) from error

    def abandon(self) -> None:
        """Close the file, whatever becomes of its bytes."""
        with contextlib.suppress(OSError):
            self._handle.close()


def read_blocks(handle: IO[bytes]) -> Iterator[bytes]:
    """Yield an open file in blocks and close it.

    Raises:
        StoreUnavailable: the storage does not answer.
    """
    with handle:
        while block := _read_block(handle):
            yield block


def _read_block(handle: IO[bytes]) -> bytes:
    try:
        return handle.read(_BLOCK_BYTES)
    except OSError as error:
        raise _translate(error) from error


def _translate(error: OSError) -> CapacityError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StoreFull("There is no room left for files.", retry_after_s=60)
    return StoreUnavailable(f"The file storage does not answer ({type(error).__name__}).", retry_after_s=5)
