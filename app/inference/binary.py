"""An embeddings answer as bytes instead of JSON: an npy file, an Arrow stream, or the bare numbers.

Owns the three forms and the choice by `Accept`. What JSON says beside the vectors is in the answer's headers, and in
the Arrow form in columns.
"""

import io
from typing import Any, Literal

import numpy as np
from flask import Response
from numpy.typing import NDArray

from app.vector_formats import Precision, quantize
from tasks.engine import Outcomes
from tasks.errors import InvalidRequest

__all__ = ["BINARY_TYPES", "BinaryForm", "render_binary"]

BinaryForm = Literal["npy", "arrow", "bytes"]
BINARY_TYPES: dict[str, BinaryForm] = {
    "application/x-npy": "npy",
    "application/vnd.apache.arrow.stream": "arrow",
    "application/octet-stream": "bytes",
}


def render_binary(outcomes: Outcomes, mimetype: str, precision: Precision) -> Response:
    """Return the dense vectors as bytes, row i being input i; a failed item is NaN, or 0 in whole numbers.

    Args:
        outcomes: values of shape (n, d).
        mimetype: one of `BINARY_TYPES`.
        precision: of the numbers.

    Raises:
        InvalidRequest: the call asked for other kinds of vectors, which have no place there.
    """
    if outcomes.extras or not outcomes.values.shape[1]:
        raise InvalidRequest(f"{mimetype} holds dense vectors alone; ask for JSON with `return`", param="return")
    vectors = np.array(quantize(outcomes.values, precision))
    vectors[list(outcomes.errors)] = np.nan if vectors.dtype.kind == "f" else 0
    vectors = vectors.astype(vectors.dtype.newbyteorder("<"), copy=False)
    form = BINARY_TYPES[mimetype]
    if form == "arrow":
        data = _write_arrow(outcomes, vectors)
    elif form == "npy":
        sink = io.BytesIO()
        np.save(sink, vectors)
        data = sink.getvalue()
    else:
        data = vectors.tobytes()
    response = Response(data, mimetype=mimetype)
    response.headers["x-embedding-shape"] = ",".join(map(str, vectors.shape))
    response.headers["x-embedding-dtype"] = vectors.dtype.name
    response.headers["x-prompt-tokens"] = str(int(outcomes.tokens.sum()))
    return response


def _write_arrow(outcomes: Outcomes, vectors: NDArray[Any]) -> bytes:
    import pyarrow as pa  # noqa: PLC0415 - it takes longer to import than the web process to start

    failed = np.zeros(len(vectors), bool)
    failed[list(outcomes.errors)] = True
    kind = pa.list_(pa.from_numpy_dtype(vectors.dtype), vectors.shape[1])
    errors = [outcomes.errors[row].code if row in outcomes.errors else None for row in range(len(vectors))]
    batch = pa.RecordBatch.from_pydict(
        {
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.reshape(-1)), type=kind, mask=pa.array(failed)
            ),
            "tokens": pa.array(outcomes.tokens),
            "truncated": pa.array(outcomes.truncated),
            "error": pa.array(errors, pa.string()),
        }
    ).replace_schema_metadata({"fingerprint": outcomes.fingerprint})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())
