"""Sinks that are one file: Parquet, Arrow, npy, NDJSON and FAISS.

Owns the folder `NAME.partial` beside the file, in which each part is one Arrow file: a part is there whole or not at
all, and the file itself appears at the end, whole. So a kill loses at most the part that was being written.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from twolane.errors import SinkError
from twolane.transfer.arrow import load
from twolane.transfer.checkpoint import Checkpoint, Plan
from twolane.transfer.sinks import formats

__all__ = ["FileSink"]

_CHECKPOINT, _LOCK, _WHOLE = "checkpoint.json", "lock", "whole"


class FileSink:
    """One file.

    Raises:
        SinkError: its name does not tell a format.
    """

    def __init__(self, path: str) -> None:
        self.name = path
        self._path = Path(path)
        self._folder = self._path.with_name(self._path.name + ".partial")
        suffix = self._path.suffix.lower()
        if suffix not in formats.WRITERS:
            raise SinkError(f"the name of {path} does not tell a format; take one of {', '.join(formats.WRITERS)}")
        self._write_whole = formats.WRITERS[suffix]
        self._lock: IO[bytes] | None = None

    def open(self, plan: Plan, *, overwrite: bool) -> Checkpoint:
        """See `Sink.open`."""
        formats.check_format(self._path, plan.dimension)
        try:
            return self._open(plan, overwrite=overwrite)
        except OSError as error:
            raise SinkError(f"{self.name} cannot be written: {error.strerror or error}") from None

    def write(self, table: Any, after: Checkpoint) -> None:
        """See `Sink.write`."""
        arrow = load("pyarrow")
        with (
            self._reporting(),
            self._replacing(self._part(after.parts - 1)) as file,
            arrow.ipc.new_file(file, table.schema) as writer,
        ):
            writer.write_table(table)
        self._keep(after)

    def finish(self, after: Checkpoint) -> None:
        """See `Sink.finish`."""
        whole = self._folder / _WHOLE
        with self._reporting():
            if not after.finished:
                self._write_whole([self._part(number) for number in range(after.parts)], whole, after)
                _sync(whole)
                self._keep(msgspec.structs.replace(after, finished=True))
            # Not there: an earlier run came as far as this and was ended before it could tidy up.
            if whole.exists():
                whole.replace(self._path)
                _sync(self._path.parent)
            self._empty()

    def close(self) -> None:
        """See `Sink.close`."""
        if self._lock is None:
            return
        # Without a checkpoint there is nothing to go on from.
        if not (self._folder / _CHECKPOINT).exists():
            shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()
        self._lock = None

    def _open(self, plan: Plan, *, overwrite: bool) -> Checkpoint:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        if overwrite:
            self._empty()
        kept = self._folder / _CHECKPOINT
        if kept.exists():
            checkpoint = Checkpoint.read(kept.read_bytes())
            checkpoint.require_plan(plan, self.name)
            return checkpoint
        if self._path.exists() and not overwrite:
            return self._read_whole(plan)
        return Checkpoint.begin(plan)

    def _read_whole(self, plan: Plan) -> Checkpoint:
        """Return the checkpoint of a file that is complete."""
        checkpoint = formats.read_checkpoint(self._path)
        if checkpoint is None:
            raise SinkError(f"{self.name} is there already; --overwrite replaces it")
        checkpoint.require_plan(plan, self.name)
        return checkpoint

    def _take_lock(self) -> None:
        self._lock = (self._folder / _LOCK).open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise SinkError(f"another command is writing {self.name}") from None

    def _part(self, number: int) -> Path:
        return self._folder / f"{number:06}.arrow"

    def _keep(self, checkpoint: Checkpoint) -> None:
        with self._reporting(), self._replacing(self._folder / _CHECKPOINT) as file:
            file.write(checkpoint.write())

    def _empty(self) -> None:
        """Forget an earlier run; its checkpoint goes last, so that a kill in between leaves something to go on from."""
        names = sorted(self._folder.iterdir(), key=lambda path: path.name == _CHECKPOINT)
        for path in names:
            if path.name != _LOCK:
                path.unlink()

    @contextlib.contextmanager
    def _replacing(self, path: Path) -> Iterator[Any]:
        """Open a file that takes its place when it is complete and on the disk."""
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        _sync(path.parent)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SinkError(f"{self.name} cannot be written: {error.strerror or error}") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
