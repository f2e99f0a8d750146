"""Vectors in fewer bytes: float16, int8, uint8, binary and ubinary, as Cohere, Voyage and others name them.

Owns the scaling, which needs no calibration and no other vector. It comes last, after a cut to fewer dimensions and the
normalization. int8 is symmetric absmax quantization: a vector is divided by its largest magnitude, times 127, rounded;
cosines survive, lengths do not. uint8 is int8 plus 128. binary and ubinary are those of sentence-transformers
(`quantize_embeddings`) and Cohere: one bit per number, set above zero, eight to a byte from the highest bit; ubinary is
the byte, binary the byte minus 128.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Precision", "quantize"]

Precision = Literal["float", "float16", "int8", "uint8", "binary", "ubinary"]


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
