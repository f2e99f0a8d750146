"""How vectors are written: numbers in fewer bits, and lists or base64 in JSON.

Owns two things. The scaling to float16, int8, uint8, binary and ubinary, as Cohere, Voyage and others name them: it
needs no calibration and no other vector, and comes last, after a cut to fewer dimensions and the normalization. int8
is symmetric absmax quantization: a vector is divided by its largest magnitude, times 127, rounded; cosines survive,
lengths do not. uint8 is int8 plus 128. binary and ubinary are those of sentence-transformers (`quantize_embeddings`)
and Cohere: one bit per number, set above zero, eight to a byte from the highest bit; ubinary is the byte, binary the
byte minus 128. And the JSON values of one item, for synchronous answers and for a job's results; whole result sets as
npy, Arrow or Parquet are in `app.jobs.npy` and `app.jobs.arrow`.
"""

import base64
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tasks.vectors import Extra, ExtraParts, Ragged

__all__ = ["Precision", "VectorFormat", "quantize", "quantize_chunks", "split_extras", "vector_values"]

Precision = Literal["float", "float16", "int8", "uint8", "binary", "ubinary"]
VectorFormat = Literal["float", "base64"]


def quantize(vectors: NDArray[np.float32], precision: Precision) -> NDArray[Any]:
    """Return vectors in another precision.

    Args:
        vectors: float32, shape (n, d).
        precision: what is wanted; float returns them as they are.

    Returns:
        float32, float16, int8 or uint8, shape (n, d), or for the two binary ones (n, ceil(d / 8)); bits behind d are 0.
    """
    if precision in {"float", "float16"}:
        return vectors.astype(np.float32 if precision == "float" else np.float16, copy=False)
    if precision in {"binary", "ubinary"}:
        packed: NDArray[np.uint8] = np.packbits(vectors > 0, axis=-1)
        # The byte minus 128, in eight bits, is the byte with its highest bit turned.
        return packed if precision == "ubinary" else (packed ^ 0x80).view(np.int8)
    largest = np.abs(vectors).max(axis=-1, keepdims=True, initial=np.finfo(np.float32).tiny)
    scaled: NDArray[np.int8] = np.rint(vectors / largest * 127).astype(np.int8)
    return (scaled.view(np.uint8) ^ 0x80) if precision == "uint8" else scaled


def quantize_chunks(extras: Mapping[Extra, Ragged], precision: Precision) -> Mapping[Extra, Ragged]:
    """Return the extras with the vectors of chunks in another precision: they are dense vectors."""
    if "chunks" not in extras:
        return extras
    offsets, vectors = extras["chunks"].parts
    return {**extras, "chunks": Ragged(extras["chunks"].lengths, (offsets, quantize(vectors, precision)))}


def vector_values(
    row: NDArray[Any], extras: ExtraParts, encoding: VectorFormat, dtype: DTypeLike = np.float32
) -> dict[str, Any]:
    """Return what one text got, each kind under its key, as orjson takes it; a dense vector of no length is left out.

    Vectors are numbers, or base64 of little-endian float32; sparse weights always are an object, from token id.

    Args:
        row: the dense vector.
        extras: the other kinds.
        encoding: how vectors are written.
        dtype: what the numbers of dense vectors are written as.
    """
    values: dict[str, Any] = {"embedding": _vector_value(row, encoding, dtype)} if len(row) else {}
    if "sparse" in extras:
        ids, weights = extras["sparse"]
        values["sparse"] = dict(zip(map(str, ids.tolist()), weights, strict=True))
    if "colbert" in extras:
        values["colbert"] = [_vector_value(vector, encoding) for vector in extras["colbert"][0]]
    if "chunks" in extras:
        offsets, vectors = extras["chunks"]
        values["chunks"] = [
            {"start": start, "end": end, "embedding": _vector_value(vector, encoding, dtype)}
            for (start, end), vector in zip(offsets.tolist(), vectors, strict=True)
        ]
    return values


def split_extras(extras: Mapping[Extra, Ragged], items: int) -> Iterator[ExtraParts]:
    """Yield what each item has besides its dense vector."""
    if not extras:
        return ({} for _ in range(items))
    return (dict(zip(extras, parts, strict=True)) for parts in zip(*extras.values(), strict=True))


def _vector_value(row: NDArray[Any], encoding: VectorFormat, dtype: DTypeLike = np.float32) -> NDArray[Any] | str:
    if encoding == "base64":
        return base64.b64encode(row.astype(np.dtype(dtype).newbyteorder("<"), copy=False).tobytes()).decode("ascii")
    return np.ascontiguousarray(row, dtype)
