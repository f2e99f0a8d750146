"""Corpora as streams of Arrow record batches.

Owns the choice of a reader by a name: files here or elsewhere, globs, folders of text files, standard input, databases.
The order of rows is always the same, since parts and their keys follow from it. What the columns mean is
`twolane.transfer.rows`.
"""

import contextlib
import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twolane.errors import InputError, first_line
from twolane.transfer import readers, remote, sql
from twolane.transfer.arrow import load

__all__ = ["FORMATS", "Source", "open_source"]

Reader = Callable[[str, Sequence[str] | None], Iterator[Any]]
FORMATS: dict[str, Reader] = {
    "parquet": readers.read_parquet,
    "csv": readers.read_csv,
    "tsv": readers.read_tsv,
    "ndjson": readers.read_ndjson,
    "json": readers.read_json,
    "arrow": readers.read_arrow,
    "text": readers.read_lines,
}
_SUFFIXES = {
    **{name: name for name in FORMATS},
    "pq": "parquet",
    "jsonl": "ndjson",
    "feather": "arrow",
    "ipc": "arrow",
    "txt": "text",
    "md": "text",
}
_PACKED = frozenset({"gz", "bz2", "zst"})


@dataclass(frozen=True, slots=True)
class _File:
    """One file here or elsewhere, and the name of its reader."""

    path: str
    form: str

    def batches(self, columns: Sequence[str] | None) -> Iterator[Any]:
        arrow, remote_file = load("pyarrow"), remote.is_remote(self.path)
        name = remote.public_name(self.path) if remote_file else self.path
        with remote.copied(self.path) if remote_file else contextlib.nullcontext(self.path) as path:
            try:
                yield from FORMATS[self.form](path, columns)
            except (OSError, arrow.ArrowException) as error:
                raise InputError(f"{name} cannot be read: {first_line(error)}") from None

    @property
    def rows(self) -> int | None:
        known = self.form == "parquet" and not remote.is_remote(self.path)
        return readers.count_parquet(self.path) if known else None


class Source:
    """One corpus.

    Attributes:
        name: as it was given, without what is secret.
        rows: how many there are, where that is known before they are read.
    """

    def __init__(self, name: str, pieces: Sequence[_File | sql.Query]) -> None:
        self.name = name
        self._pieces = pieces
        counts = [piece.rows if isinstance(piece, _File) else None for piece in pieces]
        self.rows = None if None in counts else sum(count or 0 for count in counts)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Yield record batches; `columns`: those that are needed, None: all.

        Raises:
            InputError: a file cannot be read, or has no such column.
        """
        for piece in self._pieces:
            yield from piece.batches(columns)


def open_source(*names: str, form: str | None = None, query: str | None = None) -> Source:
    """Find what a corpus is made of, in the order in which it is named.

    Args:
        names: files, globs, folders, addresses, a database, or `-` for standard input.
        form: a name of FORMATS; None: by the name of each file.
        query: of a database, in place of a table.

    Raises:
        InputError: there is nothing, or nobody knows how to read it.
    """
    if form is not None and form not in FORMATS:
        raise InputError(f"there is no format {form}; there are {', '.join(FORMATS)}")
    databases = [name for name in names if sql.is_database(name)]
    if query is not None and len(names) != len(databases):
        raise InputError("--sql asks a database; name it as postgresql://host/database")
    if databases:
        if len(names) > 1:
            raise InputError("a database is a corpus of its own; name nothing beside it")
        found = sql.Query(names[0], query)
        return Source(found.name, [found])
    shown = [remote.public_name(name) if remote.is_remote(name) else name for name in names]
    return Source(" ".join(shown), [file for name in names for file in _files(name, form)])


def _files(name: str, form: str | None) -> list[_File]:
    if name == "-":
        if form not in {None, "ndjson", "text"}:
            raise InputError("standard input is read as ndjson or as text")
        return [_File(readers.STANDARD_INPUT, form or "ndjson")]
    if remote.is_remote(name):
        return [_File(path, form or _format_of(urlsplit(path).path)) for path in remote.list_remote(name)]
    if Path(name).is_dir():
        return _folder(name, form)
    paths = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]  # noqa: PTH207 - a whole pattern
    if not paths or not all(Path(path).exists() for path in paths):
        raise InputError(f"there is no file {name}")
    return [_File(path, form or _format_of(path)) for path in paths]


def _folder(name: str, form: str | None) -> list[_File]:
    paths = sorted(str(path) for path in Path(name).rglob("*") if path.is_file() and path.name[0] != ".")
    if not paths:
        raise InputError(f"the folder {name} is empty")
    forms = {form or _format_of(path) for path in paths}
    if forms == {"text"}:
        return [_File(name, "documents")]
    return [_File(path, form or _format_of(path)) for path in paths]


def _format_of(path: str) -> str:
    suffixes = [suffix[1:].lower() for suffix in Path(path).suffixes if suffix[1:].lower() not in _PACKED]
    form = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    if form is None:
        raise InputError(f"the name of {path} does not tell its format; say it with --format: {', '.join(FORMATS)}")
    return form


FORMATS["documents"] = readers.read_documents
