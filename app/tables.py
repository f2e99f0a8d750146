"""Results as Arrow IPC stream or Parquet file, one record batch per chunk.

Owns the table's schema. pyarrow is imported by the first caller: it takes longer to import than the web process to
start, and more memory than that process needs.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from app.results import ResultChunk, Results

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["stream_table"]

_GROUP_ROWS = 8192


class _Sink:
    """A file that only grows, and gives away what was written to it."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
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


def stream_table(results: Results, form: Literal["arrow", "parquet"], width: int | None) -> Iterator[bytes]:
    """Yield the table's bytes.

    Args:
        results: of a job that has ended.
        form: file format.
        width: length of an embedding; None for scores.
    """
    import pyarrow as pa  # noqa: PLC0415 - see the module's docstring

    schema = _make_schema(results, width)
    sink = _Sink()
    with pa.PythonFile(sink, mode="w") as file, _open_writer(file, form, schema) as writer:
        waiting: list[Any] = []
        for chunk in results.chunks():
            waiting.append(_make_batch(chunk, schema))
            if form == "arrow" or sum(batch.num_rows for batch in waiting) >= _GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(waiting, schema))
                waiting.clear()
                yield sink.drain()
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting, schema))
    yield sink.drain()


def _make_schema(results: Results, width: int | None) -> "pa.Schema":
    import pyarrow as pa  # noqa: PLC0415 - see the module's docstring

    job = results.job
    number = pa.float16() if job.params.dtype == "float16" else pa.float32()
    value = pa.field("relevance_score", number) if width is None else pa.field("embedding", pa.list_(number, width))
    facts = {"job": job.id, "model": job.model, "fingerprint": job.fingerprint, "total": str(job.counts.total)}
    return pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("id", pa.string()),
            value,
            pa.field("tokens", pa.int32(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
            pa.field("error", pa.string()),
        ],
        metadata=facts,
    )


def _open_writer(file: Any, form: Literal["arrow", "parquet"], schema: "pa.Schema") -> Any:
    if form == "arrow":
        import pyarrow as pa  # noqa: PLC0415 - see the module's docstring

        return pa.ipc.new_stream(file, schema)
    import pyarrow.parquet as pq  # noqa: PLC0415 - see the module's docstring

    # Vectors do not compress (under 8%), and their dictionaries only cost time.
    return pq.ParquetWriter(file, schema, compression="none", use_dictionary=["id", "error"])


def _make_batch(chunk: ResultChunk, schema: "pa.Schema") -> "pa.RecordBatch":
    import pyarrow as pa  # noqa: PLC0415 - see the module's docstring

    count = len(chunk.tokens)
    failed = np.zeros(count, bool)
    failed[list(chunk.errors)] = True
    kind = schema.field(2).type
    mask = pa.array(failed)
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(chunk.values.reshape(-1), kind.value_type)
        values = pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=mask)
    else:
        values = pa.array(chunk.values, kind, mask=failed)
    columns = [
        pa.array(np.arange(chunk.start, chunk.start + count)),
        pa.array(chunk.ids if chunk.ids is not None else [None] * count, pa.string()),
        values,
        pa.array(chunk.tokens),
        pa.array(chunk.truncated),
        pa.array([chunk.errors[i][0] if i in chunk.errors else None for i in range(count)], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
