"""Vectors in JSON: lists of floats or base64, each kind under its key.

Owns the JSON values of one item, for synchronous answers and for a job's results. Whole result sets as npy, Arrow or
Parquet are in `app.jobs.npy` and `app.jobs.arrow`.
"""

import base64
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tasks.vectors import Extra, ExtraParts, Ragged

__all__ = ["VectorFormat", "split_extras", "vector_values"]

VectorFormat = Literal["float", "base64"]


def vector_values(
    row: NDArray[Any], extras: ExtraParts, encoding: VectorFormat, dtype: DTypeLike = np.float32
) -> dict[str, Any]:
    """Return what one text got, each kind under its key, as orjson takes it; a dense vector of no length is left out.

    Vectors are numbers, or base64 of little-endian float32; sparse weights always are an object, from token id.

    Args:
        row: the dense vector.
        extras: the other kinds.
        encoding: how vectors are written.
        dtype: what the dense vector's numbers are written as.
    """
    values: dict[str, Any] = {"embedding": _vector_value(row, encoding, dtype)} if len(row) else {}
    if "sparse" in extras:
        ids, weights = extras["sparse"]
        values["sparse"] = dict(zip(map(str, ids.tolist()), weights, strict=True))
    if "colbert" in extras:
        values["colbert"] = [_vector_value(vector, encoding) for vector in extras["colbert"][0]]
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
