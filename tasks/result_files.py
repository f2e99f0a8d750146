"""Result frames outside Redis: in a local folder or in object storage, through fsspec.

Owns the layout `<results url>/<job id>/<name>.frame` and how a file appears whole or not at all. Knows nothing of jobs.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import fsspec

from tasks.errors import ConfigError

__all__ = ["ResultFiles"]


class ResultFiles:
    """Files under one URL. Thread-safe. Raises `OSError` when the storage does not answer.

    Args:
        url: a folder, or a URL that fsspec knows.

    Raises:
        ConfigError: fsspec has no driver for the URL.
    """

    def __init__(self, url: str) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"TWOLANE_RESULTS_URL={url} cannot be used: {error}") from error
        # Object storage shows a file only when it is complete; a folder shows it while it is written.
        self._renames = "file" in self._protocols()

    def write(self, job_id: str, name: str, frame: bytes) -> str:
        """Store the bytes and return the URL at which they lie."""
        folder = f"{self._root}/{job_id}"
        path = f"{folder}/{name}.frame"
        self._fs.makedirs(folder, exist_ok=True)
        target = f"{path}.part" if self._renames else path
        with self._fs.open(target, "wb") as file:
            file.write(frame)
            if self._renames:
                file.flush()
                os.fsync(file.fileno())
        if self._renames:
            self._fs.mv(target, path)
        return str(self._fs.unstrip_protocol(path))

    def read(self, url: str) -> bytes | None:
        """Return the bytes at the URL; None when they are gone."""
        try:
            frame: bytes = self._fs.cat_file(self._fs._strip_protocol(url))  # noqa: SLF001 - fsspec's way, in its docs
        except FileNotFoundError:
            return None
        return frame

    def remove(self, url: str) -> None:
        """Remove the file at the URL, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._fs._strip_protocol(url))  # noqa: SLF001 - see above

    def remove_job(self, job_id: str) -> None:
        """Remove all files of a job, if there are any."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(f"{self._root}/{job_id}", recursive=True)

    def jobs(self) -> Iterator[str]:
        """Yield the ids of jobs that have files."""
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            yield from (str(path).rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._root, detail=False))

    def _protocols(self) -> tuple[Any, ...]:
        protocol = self._fs.protocol
        return (protocol,) if isinstance(protocol, str) else tuple(protocol)
