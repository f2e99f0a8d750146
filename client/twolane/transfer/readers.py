"""One reader for each format of a corpus: a file to record batches.

Owns the parsing. CSV columns are texts, so that the type of a column cannot change in the middle of a file; where a
row cannot be read the error names it. A batch is all that is in memory, but for `.json`, which is read whole.
"""

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from twolane.errors import InputError
from twolane.transfer.arrow import load

__all__ = [
    "STANDARD_INPUT",
    "count_parquet",
    "read_arrow",
    "read_csv",
    "read_documents",
    "read_json",
    "read_lines",
    "read_ndjson",
    "read_parquet",
    "read_tsv",
]

Columns = Sequence[str] | None
STANDARD_INPUT = "-"
_ROWS = 4096
_BLOCK_BYTES = 2**20


def count_parquet(path: str) -> int:
    """Return how many rows a Parquet file has, by its footer; 0 where it cannot be read, which its reader will say."""
    try:
        return int(load("pyarrow.parquet").read_metadata(path).num_rows)
    except (OSError, load("pyarrow").ArrowException):
        return 0


def read_parquet(path: str, columns: Columns) -> Iterator[Any]:
    """Yield the rows of a Parquet file."""
    with load("pyarrow.parquet").ParquetFile(path) as file:
        _require(path, file.schema_arrow.names, columns)
        yield from file.iter_batches(_ROWS, columns=None if columns is None else list(columns))


def read_arrow(path: str, columns: Columns) -> Iterator[Any]:
    """Yield the rows of an Arrow file or stream."""
    arrow = load("pyarrow")
    with arrow.input_stream(path) as probe:
        is_file = probe.read(6) == b"ARROW1"
    with arrow.memory_map(path) if is_file else arrow.input_stream(path) as data:
        reader = arrow.ipc.open_file(data) if is_file else arrow.ipc.open_stream(data)
        _require(path, reader.schema.names, columns)
        batches = (reader.get_batch(n) for n in range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            yield batch if columns is None else batch.select(list(columns))


def read_csv(path: str, columns: Columns, separator: str = ",") -> Iterator[Any]:
    """Yield the rows of a CSV file (RFC 4180) with a header; every column is text."""
    csv, arrow = load("pyarrow.csv"), load("pyarrow")
    parsing = csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    reading = csv.ReadOptions(block_size=_BLOCK_BYTES)
    with arrow.input_stream(path, compression="detect") as data, csv.open_csv(data, reading, parsing) as head:
        names = head.schema.names
    _require(path, names, columns)
    converting = csv.ConvertOptions(
        column_types=dict.fromkeys(names, arrow.string()),
        strings_can_be_null=False,
        include_columns=None if columns is None else list(columns),
    )
    with arrow.input_stream(path, compression="detect") as data:
        yield from csv.open_csv(data, reading, parsing, converting)


def read_tsv(path: str, columns: Columns) -> Iterator[Any]:
    """Yield the rows of a file with tabs between its columns, else as `read_csv`."""
    return read_csv(path, columns, "\t")


def read_ndjson(path: str, columns: Columns) -> Iterator[Any]:
    """Yield the objects of a file with one on each line; a text alone is the column `text`."""
    decode = msgspec.json.Decoder().decode

    def rows() -> Iterator[Any]:
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                try:
                    yield decode(line)
                except msgspec.DecodeError as error:
                    raise InputError(f"{path}, line {number}: {error}") from None

    return _batches_of(path, rows(), columns)


def read_json(path: str, columns: Columns) -> Iterator[Any]:
    """Yield the objects of a file that is one JSON list."""
    with load("pyarrow").input_stream(path, compression="detect") as data:
        try:
            rows = msgspec.json.decode(data.read())
        except msgspec.DecodeError as error:
            raise InputError(f"{path}: {error}") from None
    if not isinstance(rows, list):
        raise InputError(f"{path} must be a list of objects; for one object a line there is the format ndjson")
    return _batches_of(path, rows, columns)


def read_lines(path: str, columns: Columns) -> Iterator[Any]:
    """Yield the lines of a text file that are not blank, as the column `text`."""
    rows = ({"text": line.decode("utf-8")} for line in _lines(path) if line.strip())
    try:
        yield from _batches_of(path, rows, columns)
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8") from None


def read_documents(path: str, columns: Columns) -> Iterator[Any]:
    """Yield each file of a folder as one row: its `path` below the folder and its `text`."""
    folder = Path(path)
    paths = sorted(file for file in folder.rglob("*") if file.is_file() and file.name[0] != ".")

    def rows() -> Iterator[dict[str, str]]:
        for file in paths:
            try:
                yield {"path": file.relative_to(folder).as_posix(), "text": file.read_text("utf-8")}
            except UnicodeDecodeError:
                raise InputError(f"{file} is not text in UTF-8") from None

    return _batches_of(path, rows(), columns)


def _lines(path: str) -> Iterator[bytes]:
    rest = b""
    standard = contextlib.nullcontext(sys.stdin.buffer)
    with standard if path == STANDARD_INPUT else load("pyarrow").input_stream(path, compression="detect") as data:
        while block := data.read(_BLOCK_BYTES):
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            yield from (line.removesuffix(b"\r") for line in lines)
    if rest:
        yield rest


def _batches_of(path: str, rows: Iterable[Any], columns: Columns) -> Iterator[Any]:
    """Yield rows as batches; the first one decides the columns and their types."""
    arrow, schema = load("pyarrow"), None
    coming = iter(rows)
    while found := list(itertools.islice(coming, _ROWS)):
        objects = [row if isinstance(row, dict) else {"text": row} for row in found]
        names = list(columns) if columns is not None else list(dict.fromkeys(name for row in objects for name in row))
        if columns is not None and schema is None:
            _require(path, {name for row in objects for name in row}, columns)
        try:
            data = {name: [row.get(name) for row in objects] for name in (schema.names if schema else names)}
            batch = arrow.RecordBatch.from_pydict(data, schema=schema)
        except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
            raise InputError(f"{path}: a column changes its type: {str(error).partition(chr(10))[0]}") from None
        schema = batch.schema
        yield batch


def _require(path: str, names: Iterable[str], columns: Columns) -> None:
    known = list(names)
    missing = [name for name in columns or () if name not in known]
    if missing:
        raise InputError(f"{path} has no column {missing[0]}; it has {', '.join(sorted(known)) or 'none'}")
