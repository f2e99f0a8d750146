"""Result frames outside Redis: in a local folder or in object storage, through fsspec.

Owns the layout `<results url>/<job id>/<name>.frame` and how a file appears whole or not at all. Knows nothing of jobs.
"""

import contextlib
import os
import re
from collections.abc import Iterator

from config.settings import Settings
from tasks.storage.filesystem import open_storage, storage_errors

__all__ = ["ResultFiles"]

# Only what is named like a job is ours to list, and so to sweep: the place may hold other things after all.
_JOB = re.compile(r"job_\w+")


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

    def write(self, job_id: str, name: str, frame: bytes) -> str:
        """Store the bytes and return the URL at which they lie."""
        path = f"{self._root}/{job_id}/{name}.frame"
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

    def remove_job(self, job_id: str) -> None:
        """Remove all files of a job, if there are any."""
        with contextlib.suppress(FileNotFoundError), storage_errors():
            self._fs.rm(f"{self._root}/{job_id}", recursive=True)

    def jobs(self) -> Iterator[str]:
        """Yield the ids of jobs that have files."""
        with contextlib.suppress(FileNotFoundError), storage_errors():
            self._fs.invalidate_cache()
            names = [str(path).rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._root, detail=False)]
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
