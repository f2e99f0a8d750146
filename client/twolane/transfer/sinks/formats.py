"""The parts of a run as one file of a format.

Owns the writers. A part is all that is in memory, but for FAISS. Parquet and Arrow files keep the checkpoint of their
run among their metadata, so that a command which is given again finds that all is done.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from twolane.errors import SinkError
from twolane.transfer.arrow import load
from twolane.transfer.checkpoint import Checkpoint

__all__ = ["WRITERS", "check_format", "read_checkpoint"]

_KEY = b"twolane"


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint that a complete file keeps; None: it keeps none."""
    arrow = load("pyarrow")
    try:
        if path.suffix.lower() == ".parquet":
            metadata = load("pyarrow.parquet").read_schema(path).metadata
        elif path.suffix.lower() == ".arrow":
            with arrow.memory_map(str(path)) as file:
                metadata = arrow.ipc.open_file(file).schema.metadata
        else:
            return None
    except arrow.ArrowException:
        return None
    data = (metadata or {}).get(_KEY)
    return None if data is None else Checkpoint.read(data)


def check_format(path: Path, dimension: int) -> None:
    """Refuse what could not be written at the end.

    Raises:
        SinkError: scores, for a format of vectors.
        MissingExtra: the format's library is not installed.
    """
    if path.suffix.lower() == ".faiss":
        load("faiss", "faiss")
        if not dimension:
            raise SinkError(f"{path} keeps vectors, and these are scores; write them into another kind of file")


def _tables(parts: Sequence[Path], schema: Any = None) -> Iterator[Any]:
    arrow = load("pyarrow")
    for path in parts:
        with arrow.memory_map(str(path)) as file:
            table = arrow.ipc.open_file(file).read_all()
            yield table if schema is None else table.cast(schema)


def _schema(parts: Sequence[Path], checkpoint: Checkpoint) -> Any:
    """Return the first part's schema with the run's facts: model, fingerprint and how much of what there is."""
    arrow = load("pyarrow")
    if not parts:
        return arrow.schema([("id", arrow.int64())])
    with arrow.memory_map(str(parts[0])) as file:
        schema = arrow.ipc.open_file(file).schema
    kept = msgspec.structs.replace(checkpoint, finished=True).write()
    return schema.with_metadata({_KEY: kept})


def _write_parquet(parts: Sequence[Path], target: Path, checkpoint: Checkpoint) -> None:
    schema = _schema(parts, checkpoint)
    with load("pyarrow.parquet").ParquetWriter(target, schema, compression="zstd", compression_level=1) as writer:
        for table in _tables(parts, schema):
            writer.write_table(table)


def _write_arrow(parts: Sequence[Path], target: Path, checkpoint: Checkpoint) -> None:
    schema = _schema(parts, checkpoint)
    with load("pyarrow").ipc.new_file(str(target), schema) as writer:
        for table in _tables(parts, schema):
            writer.write_table(table)


def _write_npy(parts: Sequence[Path], target: Path, checkpoint: Checkpoint) -> None:
    """Write the vectors alone, row i for row i of the corpus; a row that failed is NaN."""
    numpy = load("numpy")
    shape = (checkpoint.rows, checkpoint.dimension) if checkpoint.dimension else (checkpoint.rows,)
    with target.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        numpy.lib.format.write_array_header_1_0(file, header)
        for table in _tables(parts):
            file.write(_values(table, checkpoint.dimension).astype("<f4", copy=False).tobytes())


def _write_faiss(parts: Sequence[Path], target: Path, checkpoint: Checkpoint) -> None:
    """Write an exact index for the inner product, by ID, or by the number of the row where IDs are texts.

    The whole index is in memory. Rows that failed are not in it.
    """
    faiss, numpy, compute = load("faiss", "faiss"), load("numpy"), load("pyarrow.compute")
    index, row = faiss.IndexIDMap2(faiss.IndexFlatIP(checkpoint.dimension)), 0
    for table in _tables(parts):
        numbers = numpy.arange(row, row + table.num_rows)
        ids = (
            table.column("id").to_numpy()
            if load("pyarrow.types").is_integer(table.schema.field("id").type)
            else numbers
        )
        good = compute.is_valid(table.column("embedding")).to_numpy()
        vectors = _values(table.filter(load("pyarrow").array(good)), checkpoint.dimension).astype(numpy.float32)
        index.add_with_ids(numpy.ascontiguousarray(vectors), ids[good].astype(numpy.int64))
        row += table.num_rows
    faiss.write_index(index, str(target))


def _write_ndjson(parts: Sequence[Path], target: Path, _: Checkpoint) -> None:
    encode = msgspec.json.Encoder().encode
    with target.open("wb") as file:
        for table in _tables(parts):
            for batch in table.to_batches(max_chunksize=512):
                file.writelines(encode(row) + b"\n" for row in batch.to_pylist())


def _values(table: Any, dimension: int) -> Any:
    numpy = load("numpy")
    column = table.column("embedding" if dimension else "relevance_score").combine_chunks()
    if not dimension:
        return column.to_numpy(zero_copy_only=False)
    values = column.values.to_numpy(zero_copy_only=False)
    values = values[column.offset * dimension : (column.offset + len(column)) * dimension]
    matrix = values.reshape(len(column), dimension)
    if column.null_count:
        matrix = matrix.copy()
        matrix[column.is_null().to_numpy(zero_copy_only=False)] = numpy.nan
    return matrix


Writer = Callable[[Sequence[Path], Path, Checkpoint], None]
WRITERS: dict[str, Writer] = {
    ".parquet": _write_parquet,
    ".arrow": _write_arrow,
    ".npy": _write_npy,
    ".faiss": _write_faiss,
    ".ndjson": _write_ndjson,
    ".jsonl": _write_ndjson,
}
