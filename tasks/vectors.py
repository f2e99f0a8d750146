"""What a text may have beside its one dense vector, or in its place: sparse weights, a vector per token or per chunk.

Owns their form in memory and their columns in a frame. Both differ in length from item to item, so n items are kept as
n lengths and flat arrays. Computes nothing (`workers.models.families`) and knows no JSON (`app.inference.rendering`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DENSE_ONLY",
    "KINDS",
    "MANY_VECTORS",
    "Extra",
    "ExtraParts",
    "Kind",
    "Parts",
    "Ragged",
    "estimate_bytes",
    "join_extras",
    "pack_extras",
    "unpack_extras",
]

Kind = Literal["dense", "sparse", "colbert"]
Extra = Literal["sparse", "colbert", "chunks", "tokens", "text"]
KINDS: tuple[Kind, ...] = ("dense", "sparse", "colbert")
DENSE_ONLY: tuple[Kind, ...] = ("dense",)
# Of these an item has many vectors, so few items are large already.
MANY_VECTORS: frozenset[Extra] = frozenset({"colbert", "chunks"})

# What one item has of a kind. sparse: token ids (int32) and their weights (float32), both of shape (k,), ids ascending;
# colbert: float32 or float16 of shape (tokens, d); chunks: int32 of shape (k, 2), where each begins and ends in the
# text, counted in characters, and float32 or float16 of shape (k, d).
# What work on tokens gives. tokens: ids, and where each begins and ends in its text, in characters, or -1; text: the
# code points of a text, for `tokenize` the words of its tokens with NUL between.
Parts = tuple[NDArray[Any], ...]
# All that one item has beside its dense vector.
ExtraParts = Mapping[Extra, Parts]

_EMPTY: Mapping[Extra, Parts] = {
    "sparse": (np.empty(0, np.int32), np.empty(0, np.float32)),
    "colbert": (np.empty((0, 0), np.float32),),
    "chunks": (np.empty((0, 2), np.int32), np.empty((0, 0), np.float32)),
    "tokens": (np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int32)),
    "text": (np.empty(0, np.int32),),
}
_NAMES: Mapping[Extra, tuple[str, ...]] = {
    "sparse": ("ids", "weights"),
    "colbert": ("vectors",),
    "chunks": ("offsets", "vectors"),
    "tokens": ("ids", "starts", "ends"),
    "text": ("points",),
}
_SPARSE_TOKEN_BYTES = 8


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """One kind of n items; item i owns the next `lengths[i]` rows of each part.

    Attributes:
        lengths: int32, shape (n,).
        parts: as in `Parts`, the items one after another.
    """

    lengths: NDArray[np.int32]
    parts: Parts

    @classmethod
    def of(cls, kind: Extra, items: Sequence[Parts | None]) -> "Ragged":
        """Concatenate items; None, an item that failed, owns no row."""
        known = [item for item in items if item is not None and len(item[0])] or [_EMPTY[kind]]
        lengths = np.array([0 if item is None else len(item[0]) for item in items], np.int32)
        return cls(lengths, tuple(np.concatenate(part) for part in zip(*known, strict=True)))

    def __iter__(self) -> Iterator[Parts]:
        """Yield what each item has, as views."""
        end = 0
        for length in self.lengths.tolist():
            start, end = end, end + length
            yield tuple(part[start:end] for part in self.parts)

    def cut(self, rows: slice) -> "Ragged":
        """Return some neighbouring items, as views."""
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        start, stop, _ = rows.indices(len(self.lengths))
        return Ragged(self.lengths[rows], tuple(part[ends[start] : ends[stop]] for part in self.parts))


def join_extras(chunks: Sequence[Mapping[Extra, Ragged]]) -> dict[Extra, Ragged]:
    """Return the extras of several runs of items as those of one."""
    kinds = chunks[0] if chunks else {}
    return {kind: Ragged.of(kind, [parts for chunk in chunks for parts in chunk[kind]]) for kind in kinds}


def pack_extras(extras: Mapping[Extra, Ragged], dtype: str = "float32") -> dict[str, NDArray[Any]]:
    """Return the columns of a frame; `dtype`, float32 or float16, is that of the vectors, and weights stay float32."""
    columns: dict[str, NDArray[Any]] = {}
    for kind, ragged in extras.items():
        columns[f"{kind}.lengths"] = ragged.lengths
        for name, part in zip(_NAMES[kind], ragged.parts, strict=True):
            columns[f"{kind}.{name}"] = part.astype(dtype, copy=False) if name == "vectors" else part
    return columns


def unpack_extras(columns: Mapping[str, NDArray[Any]]) -> dict[Extra, Ragged]:
    """Return the extras that a frame's columns hold; most frames hold none."""
    return {
        kind: Ragged(columns[f"{kind}.lengths"], tuple(columns[f"{kind}.{name}"] for name in names))
        for kind, names in _NAMES.items()
        if f"{kind}.lengths" in columns
    }


def estimate_bytes(kinds: Sequence[Kind], tokens: int, width: int, dtype: str) -> int:
    """Return about how many bytes the extras of texts with so many tokens take, vectors having `width` numbers."""
    sparse = _SPARSE_TOKEN_BYTES if "sparse" in kinds else 0
    colbert = np.dtype(dtype).itemsize * width if "colbert" in kinds else 0
    return tokens * (sparse + colbert)
