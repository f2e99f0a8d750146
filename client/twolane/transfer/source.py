"""Corpora as streams of Arrow record batches.

Owns the choice of a reader by a file's name, globs, folders of text files and standard input. The order of rows is
always the same, since parts and their keys follow from it. What the columns mean is `twolane.transfer.rows`.
"""

import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from twolane.errors import InputError
from twolane.transfer import readers
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


class Source:
    """One corpus.

    Attributes:
        name: as it was given.
        rows: how many there are, where the files say so.
    """

    def __init__(self, name: str, files: Sequence[tuple[str, str]]) -> None:
        self.name = name
        self._files = files
        parquet = all(form == "parquet" for _, form in files)
        self.rows = sum(readers.count_parquet(path) for path, _ in files) if parquet else None

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Yield record batches; `columns`: those that are needed, None: all.

        Raises:
            InputError: a file cannot be read, or has no such column.
        """
        arrow = load("pyarrow")
        for path, form in self._files:
            try:
                yield from FORMATS[form](path, columns)
            except (OSError, arrow.ArrowException) as error:
                raise InputError(f"{path} cannot be read: {_first_line(error)}") from None


def open_source(name: str, form: str | None = None) -> Source:
    """Find the files of a corpus.

    Args:
        name: a file, a glob, a folder, or `-` for standard input.
        form: a name of FORMATS; None: by the name of each file.

    Raises:
        InputError: there is nothing, or nobody knows how to read it.
    """
    if form is not None and form not in FORMATS:
        raise InputError(f"there is no format {form}; there are {', '.join(FORMATS)}")
    if name == "-":
        if form not in {None, "ndjson", "text"}:
            raise InputError("standard input is read as ndjson or as text")
        return Source(name, [(readers.STANDARD_INPUT, form or "ndjson")])
    if Path(name).is_dir():
        return Source(name, _folder(name, form))
    paths = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]  # noqa: PTH207 - a whole pattern
    if not paths or not all(Path(path).exists() for path in paths):
        raise InputError(f"there is no file {name}")
    return Source(name, [(path, form or _format_of(path)) for path in paths])


def _folder(name: str, form: str | None) -> list[tuple[str, str]]:
    paths = sorted(str(path) for path in Path(name).rglob("*") if path.is_file() and path.name[0] != ".")
    if not paths:
        raise InputError(f"the folder {name} is empty")
    forms = {form or _format_of(path) for path in paths}
    if forms == {"text"}:
        return [(name, "documents")]
    return [(path, form or _format_of(path)) for path in paths]


def _format_of(path: str) -> str:
    suffixes = [suffix[1:].lower() for suffix in Path(path).suffixes if suffix[1:].lower() not in _PACKED]
    form = _SUFFIXES.get(suffixes[-1]) if suffixes else None
    if form is None:
        raise InputError(f"the name of {path} does not tell its format; say it with --format: {', '.join(FORMATS)}")
    return form


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


FORMATS["documents"] = readers.read_documents
