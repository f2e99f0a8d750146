"""Bytes of files by path, in a folder or in object storage.

Owns the file system behind `TWOLANE_FILES_URL` (anything that fsspec knows) and the translation of its failures. Knows
no record, no tenant and no expiry: that is `tasks.files.store`.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import IO

from fsspec.spec import AbstractBufferedFile

from config.settings import Settings
from tasks.errors import CapacityError, NotFound
from tasks.storage.filesystem import open_storage, storage_errors

__all__ = ["ByteStore", "ByteWriter", "read_blocks"]

_BLOCK_BYTES = 1 << 20
# What an upload to object storage holds in memory: one part. S3 takes parts from 5 MB, and at most 10,000 of them.
_PART_BYTES = 8 << 20


class ByteStore:
    """Creates, opens and removes files. Thread-safe.

    Raises:
        ConfigError: no file system of that kind is installed.
    """

    def __init__(self, settings: Settings) -> None:
        url = settings.files_url or str((settings.data_dir / "files").absolute())
        storage = open_storage(settings, "TWOLANE_FILES_URL", url)
        self._system, self._root, self._is_folder = storage.system, storage.root, storage.is_folder

    def create(self, path: str) -> "ByteWriter":
        """Open a new file for writing, with its folders.

        Raises:
            StoreFull: the disk is full.
            StoreUnavailable: the storage does not answer.
        """
        full = f"{self._root}/{path}"
        with storage_errors():
            if self._is_folder:
                self._system.makedirs(full.rpartition("/")[0], exist_ok=True)
            return ByteWriter(self._system.open(full, "wb", block_size=_PART_BYTES))

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading.

        Raises:
            NotFound: there is none.
            StoreUnavailable: the storage does not answer.
        """
        try:
            with storage_errors():
                handle: IO[bytes] = self._system.open(f"{self._root}/{path}", "rb")
        except FileNotFoundError as error:
            raise NotFound("The file's bytes are gone.", param="file_id") from error
        return handle

    def remove(self, path: str) -> None:
        """Remove a file if it is there.

        Raises:
            StoreUnavailable: the storage does not answer.
        """
        with contextlib.suppress(FileNotFoundError), storage_errors():
            self._system.rm_file(f"{self._root}/{path}")


class ByteWriter:
    """Takes the bytes of one file. Every method raises StoreFull or StoreUnavailable when the storage fails."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle

    def write(self, block: bytes) -> None:
        """Append bytes."""
        with storage_errors():
            self._handle.write(block)

    def finish(self) -> None:
        """Bring everything to disk and close the file."""
        with storage_errors():
            self._handle.flush()
            # Object storage has no descriptor: there, closing is what makes it durable.
            with contextlib.suppress(AttributeError, io.UnsupportedOperation):
                os.fsync(self._handle.fileno())
            self._handle.close()

    def abandon(self) -> None:
        """Close the file, whatever becomes of its bytes."""
        with contextlib.suppress(CapacityError, FileNotFoundError), storage_errors():
            if isinstance(self._handle, AbstractBufferedFile):
                # In object storage closing would complete the upload; its parts are given up instead.
                self._handle.discard()
                self._handle.closed = True
            else:
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
    with storage_errors():
        return handle.read(_BLOCK_BYTES)
