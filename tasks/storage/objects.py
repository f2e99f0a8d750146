"""Bytes outside Redis: uploaded files by path, and result frames by job, in a folder or in object storage.

Owns the file systems behind `TWOLANE_FILES_URL` and `TWOLANE_RESULTS_URL` (anything that fsspec knows), the layout
`<results url>/<owner>/<job id>/<name>.frame` (an owner is a Redis), and how a result appears whole or not at all. Knows
no record, no tenant and no expiry: that is `tasks.files.store` and `tasks.jobs.blobs`.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from typing import IO

from fsspec.spec import AbstractBufferedFile

from config.settings import Settings
from tasks.errors import CapacityError, NotFound
from tasks.storage.filesystem import open_storage, storage_errors

__all__ = ["ByteStore", "ByteWriter", "ResultFiles", "read_blocks"]

_BLOCK_BYTES = 1 << 20
# What an upload to object storage holds in memory: one part. S3 takes parts from 5 MB, and at most 10,000 of them.
_PART_BYTES = 8 << 20
# Only what is named like a job is ours to list, and so to sweep: the place may hold other things, too.
_JOB = re.compile(r"job_\w+")


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

    def link(self, path: str, lasts_s: float) -> str | None:
        """Return an address at which anybody reads a file for a while; None: this storage has none to give."""
        if self._is_folder:
            return None
        try:
            with storage_errors():
                return str(self._system.sign(f"{self._root}/{path}", expiration=max(1, int(lasts_s))))
        except (NotImplementedError, CapacityError):
            return None

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
        """Flush everything to disk and close the file."""
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
                # In object storage closing would complete the upload; its parts are discarded instead.
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


class ResultFiles:
    """Files under `TWOLANE_RESULTS_URL`. Thread-safe. Raises StoreUnavailable or StoreFull when the storage fails.

    Args:
        settings: the URL, and options of its driver.

    Raises:
        ConfigError: there is no driver for the URL.
    """

    def __init__(self, settings: Settings) -> None:
        storage = open_storage(settings, "TWOLANE_RESULTS_URL", settings.results_url)
        self._fs, self._root = storage.system, storage.root
        # Object storage shows a file only when it is complete; a folder shows it while it is written.
        self._renames = storage.is_folder

    def write(self, owner: str, job_id: str, name: str, frame: bytes) -> str:
        """Store the bytes and return the URL at which they lie."""
        path = f"{self._root}/{owner}/{job_id}/{name}.frame"
        with storage_errors():
            if self._renames:
                self._write_file(path, frame)
            else:
                self._fs.pipe_file(path, frame)
            return str(self._fs.unstrip_protocol(path))

    def read(self, url: str) -> bytes | None:
        """Return the bytes at the URL; None when they are gone."""
        try:
            with storage_errors():
                frame: bytes = self._fs.cat_file(self._path(url))
        except FileNotFoundError:
            return None
        return frame

    def remove(self, url: str) -> None:
        """Remove the file at the URL, if it is there."""
        with contextlib.suppress(FileNotFoundError), storage_errors():
            self._fs.rm_file(self._path(url))

    def remove_job(self, owner: str, job_id: str) -> None:
        """Remove all files of a job, if there are any."""
        with contextlib.suppress(FileNotFoundError), storage_errors():
            self._fs.rm(f"{self._root}/{owner}/{job_id}", recursive=True)

    def jobs(self, owner: str) -> Iterator[str]:
        """Yield the ids of an owner's jobs that have files."""
        with contextlib.suppress(FileNotFoundError), storage_errors():
            self._fs.invalidate_cache()
            names = [
                str(path).rstrip("/").rpartition("/")[2] for path in self._fs.ls(f"{self._root}/{owner}", detail=False)
            ]
            yield from (name for name in names if _JOB.fullmatch(name))

    def _write_file(self, path: str, frame: bytes) -> None:
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        part = f"{path}.part"
        with self._fs.open(part, "wb") as file:
            file.write(frame)
            file.flush()
            os.fsync(file.fileno())
        self._fs.mv(part, path)

    def _path(self, url: str) -> str:
        return str(self._fs._strip_protocol(url))  # noqa: SLF001 - fsspec's way, in its docs
