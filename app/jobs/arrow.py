"""Results as Arrow IPC file, Arrow IPC stream or Parquet file, one record batch per chunk.

Owns the table's schema. pyarrow is imported by the first caller: it takes longer to import than the web process to
start, and more memory than that process needs.
"""

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.jobs.result_items import ResultChunk
from app.jobs.results import Results
from tasks.vectors import MANY_VECTORS

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TableFormat", "stream_table"]

TableFormat = Literal["arrow", "arrows", "parquet"]
_log = logging.getLogger(__name__)
_GROUP_ROWS = 8192
# An Arrow stream that just ends reads as complete. This begins a message of 2 GB, which no reader takes for an end.
_BROKEN_STREAM = b"\xff\xff\xff\xff\xff\xff\xff\x7f"


class _Sink:
    """A file that only grows, and gives away what was written to it."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def tell(self) -> int:
        """Return the position, which the file format writes into its footer."""
        return self._size

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        self._size += len(self._parts[-1])
        return len(self._parts[-1])

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Writers close what they are given; there is nothing to give back."""

    def drain(self) -> bytes:
        """Return what was written since the last call."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def stream_table(results: Results, form: TableFormat, after: int = -1) -> Iterator[bytes]:
    """Yield the table's bytes. A table that cannot be read to its end has none that a reader would believe.

    Args:
        results: what to write.
        form: arrow is Arrow's file format, arrows its stream.
        after: only items behind this index.
    """
    begun = False
    try:
        for piece in _write_table(results, form, after):
            begun = True
            yield piece
    except Exception as error:
        if not begun:
            raise
        # The edge of a stream: its reader must see that it is not complete.
        _log.warning("results of a job could not be read to their end: %s", type(error).__name__)
        yield _BROKEN_STREAM


def _write_table(results: Results, form: TableFormat, after: int) -> Iterator[bytes]:
    import pyarrow as pa  # noqa: PLC0415 - see the module's docstring

    schema = _make_schema(results, results.width())
    sink = _Sink()
    with pa.PythonFile(sink, mode="w") as file, _open_writer(file, form, schema) as writer:
        waiting: list[Any] = []
        if not results.job.ended:
            # The head of the answer goes out with the first piece, and the first chunk may take long. The schema is
            # written before the first rows, so there have to be some, be it none.
            writer.write_batch(pa.RecordBatch.from_pylist([], schema))
            yield sink.drain()
        for chunk in results.chunks(after):
            waiting.append(_make_batch(chunk, schema))
            # Vectors of tokens or parts of texts make a chunk as large as a row group should be.
            many_vectors = not MANY_VECTORS.isdisjoint(chunk.extras)
            large = many_vectors or sum(batch.num_rows for batch in waiting) >= _GROUP_ROWS
            if form != "parquet" or large:
                writer.write_table(pa.Table.from_batches(waiting, schema))
                waiting.clear()
                yield sink.drain()
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting, schema))
    yield sink.drain()


def _make_schema(results: Results, width: int | None) -> "pa.Schema":
    import pyarrow as pa  # noqa: PLC0415 - see the module's docstring

    job = results.job
    facts = {"job": job.id, "model": job.model, "fingerprint": job.fingerprint, "total": str(job.counts.total)}
    return pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("id", pa.string()),
            *_value_fields(results, width),
            pa.field("tokens", pa.int32(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
            pa.field("error", pa.string()),
        ],
        metadata=facts,
    )


def _value_fields(results: Results, width: int | None) -> list[Any]:
    """Return the columns of what was asked for, in one order; where an item failed they are null."""
    import pyarrow as pa  # noqa: PLC0415 - see the module's docstring

    job = results.job
    number, kept = pa.from_numpy_dtype(results.dtype), pa.from_numpy_dtype(job.params.dtype)
    if width is None:
        return [pa.field("relevance_score", number)]
    fields = {
        "dense": pa.field("embedding", pa.list_(number, width)),
        "sparse": pa.field("sparse", pa.map_(pa.int32(), pa.float32())),
        "colbert": pa.field("colbert", pa.list_(pa.list_(kept))),
    }
    part = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("embedding", pa.list_(number))])
    fields["chunks"] = pa.field("chunks", pa.list_(part))
    given = {*job.params.extras, *(("dense",) if job.params.dense else ())}
    return [field for kind, field in fields.items() if kind in given]


def _open_writer(file: Any, form: TableFormat, schema: "pa.Schema") -> Any:
    if form != "parquet":
        import pyarrow as pa  # noqa: PLC0415 - see the module's docstring

        return pa.ipc.new_file(file, schema) if form == "arrow" else pa.ipc.new_stream(file, schema)
    import pyarrow.parquet as pq  # noqa: PLC0415 - see the module's docstring

    # Vectors do not compress (under 8%), and their dictionaries only cost time.
    return pq.ParquetWriter(file, schema, compression="none", use_dictionary=["id", "error"])


def _make_batch(chunk: ResultChunk, schema: "pa.Schema") -> "pa.RecordBatch":
    import pyarrow as pa  # noqa: PLC0415 - see the module's docstring

    count = len(chunk.tokens)
    failed = np.zeros(count, bool)
    failed[list(chunk.errors)] = True
    makers: dict[str, Callable[[], Any]] = {
        "index": lambda: pa.array(np.arange(chunk.start, chunk.start + count)),
        "id": lambda: pa.array(chunk.ids if chunk.ids is not None else [None] * count, pa.string()),
        "relevance_score": lambda: pa.array(chunk.values, schema.field("relevance_score").type, mask=failed),
        "embedding": lambda: _make_vectors(chunk, schema.field("embedding").type, pa.array(failed)),
        "sparse": lambda: _make_weights(chunk, schema.field("sparse").type, failed),
        "colbert": lambda: _make_token_vectors(chunk, schema.field("colbert").type, pa.array(failed)),
        "chunks": lambda: _make_chunks(chunk, schema.field("chunks").type, pa.array(failed)),
        "tokens": lambda: pa.array(chunk.tokens),
        "truncated": lambda: pa.array(chunk.truncated),
        "error": lambda: pa.array(
            [chunk.errors[i][0] if i in chunk.errors else None for i in range(count)], pa.string()
        ),
    }
    return pa.RecordBatch.from_arrays([makers[name]() for name in schema.names], schema=schema)


def _make_vectors(chunk: ResultChunk, kind: Any, mask: Any) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - see the module's docstring

    # Of a chunk that was given up the vectors have no length.
    given_up = len(chunk.errors) == len(chunk.values)
    values = np.zeros((len(chunk.values), kind.list_size), chunk.values.dtype) if given_up else chunk.values
    flat = pa.array(values.reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=mask)


def _make_weights(chunk: ResultChunk, kind: Any, failed: NDArray[np.bool_]) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - see the module's docstring

    ragged = chunk.extras["sparse"]
    # A null offset makes the item null: maps take no mask.
    offsets = pa.array(_offsets(ragged.lengths), mask=np.append(failed, [False]))
    return pa.MapArray.from_arrays(offsets, pa.array(ragged.parts[0]), pa.array(ragged.parts[1]), type=kind)


def _make_token_vectors(chunk: ResultChunk, kind: Any, mask: Any) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - see the module's docstring

    ragged = chunk.extras["colbert"]
    inner = _make_lists(ragged.parts[0], kind.value_type)
    return pa.ListArray.from_arrays(_offsets(ragged.lengths), inner, type=kind, mask=mask)


def _make_chunks(chunk: ResultChunk, kind: Any, mask: Any) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - see the module's docstring

    ragged = chunk.extras["chunks"]
    offsets, vectors = ragged.parts
    bounds = [pa.array(np.ascontiguousarray(offsets[:, side])) for side in (0, 1)]
    embeddings = _make_lists(vectors, kind.value_type.field("embedding").type)
    inner = pa.StructArray.from_arrays([*bounds, embeddings], fields=list(kind.value_type))
    return pa.ListArray.from_arrays(_offsets(ragged.lengths), inner, type=kind, mask=mask)


def _make_lists(vectors: NDArray[Any], kind: Any) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - see the module's docstring

    flat = pa.array(vectors.reshape(-1), kind.value_type)
    return pa.ListArray.from_arrays(_offsets(np.full(len(vectors), vectors.shape[1])), flat, type=kind)


def _offsets(lengths: NDArray[Any]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
