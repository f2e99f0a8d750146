"""The items of one chunk of results: read from its frame, cut, and as JSON values.

Owns the shape of one result item. Which chunks there are is in `app.jobs.results`.
"""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from app.vector_formats import VectorFormat, split_extras, vector_values
from tasks import frames
from tasks.jobs.job import Job
from tasks.vectors import Extra, ExtraParts, Ragged, unpack_extras

__all__ = ["ItemShape", "ResultChunk", "read_frame"]


@dataclass(frozen=True, slots=True)
class ResultChunk:
    """The results of the items `start` to `start + len(tokens)`.

    Attributes:
        values: float32 or float16, shape (n, d) or (n,).
        tokens: int32, shape (n,).
        truncated: bool, shape (n,).
        ids: the caller's ids, or None.
        errors: code and message of failed items by position in this chunk.
        extras: kinds of vectors other than dense, where the job asked for them.
    """

    start: int
    values: NDArray[Any]
    tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    ids: Sequence[str | None] | None
    errors: Mapping[int, tuple[str, str]]
    extras: Mapping[Extra, Ragged] = field(default_factory=dict)

    def behind(self, index: int) -> "ResultChunk":
        """Return the items behind an index of the job."""
        cut = index + 1 - self.start
        if cut <= 0:
            return self
        rows = slice(cut, None)
        return ResultChunk(
            start=self.start + cut,
            values=self.values[rows],
            tokens=self.tokens[rows],
            truncated=self.truncated[rows],
            ids=self.ids[rows] if self.ids is not None else None,
            errors={position - cut: error for position, error in self.errors.items() if position >= cut},
            extras=self.cut_extras(rows),
        )

    def cut_extras(self, rows: slice) -> dict[Extra, Ragged]:
        """Return the extras of some neighbouring items."""
        return {kind: ragged.cut(rows) for kind, ragged in self.extras.items()}


def read_frame(frame: bytes) -> ResultChunk:
    """Return the chunk that a result frame holds.

    Raises:
        tasks.frames.FrameError: the bytes are not a frame.
    """
    header, columns = frames.unpack(frame)
    errors = {int(position): (code, message) for position, (code, message) in header["errors"].items()}
    return ResultChunk(
        start=header["start"],
        values=columns["values"],
        tokens=columns["tokens"],
        truncated=columns["truncated"],
        ids=header["ids"],
        errors=errors,
        extras=unpack_extras(columns),
    )


class ItemShape:
    """Turns chunks into result items, for one job and one way to write vectors."""

    def __init__(self, job: Job, encoding: VectorFormat, dtype: DTypeLike = np.float32) -> None:
        self._rerank = job.operation == "rerank"
        self._encoding: VectorFormat = encoding
        self._dtype = dtype
        counts = job.extra.get("documents_per_query")
        sizes = counts if isinstance(counts, list) else [job.counts.total]
        self._ends = list(itertools.accumulate(sizes))

    def rows(self, chunk: ResultChunk, *, failed: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the items of a chunk as JSON values (numpy rows included); with `failed` those that failed."""
        extras = split_extras(chunk.extras, len(chunk.values))
        for position, (value, more) in enumerate(zip(chunk.values, extras, strict=True)):
            if failed and position not in chunk.errors:
                continue
            index = chunk.start + position
            row: dict[str, Any] = {"index": index}
            if chunk.ids is not None:
                row["id"] = chunk.ids[position]
            row |= self._outcome(index, value, more, chunk.errors.get(position))
            row["tokens"] = int(chunk.tokens[position])
            row["truncated"] = bool(chunk.truncated[position])
            yield row

    def _outcome(self, index: int, value: Any, extras: ExtraParts, error: tuple[str, str] | None) -> dict[str, Any]:
        where = self._place(index) if self._rerank else {}
        if error is not None:
            return {**where, "error": {"code": error[0], "message": error[1]}}
        if self._rerank:
            return {**where, "relevance_score": round(float(value), 7)}
        return vector_values(value, extras, self._encoding, self._dtype)

    def _place(self, index: int) -> dict[str, Any]:
        query = bisect.bisect_right(self._ends, index)
        return {"query": query, "document": index - (self._ends[query - 1] if query else 0)}
