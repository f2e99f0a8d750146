"""A job's results, read chunk by chunk in input order.

Owns the walk over the chunk table and the shape of one result item. At most one chunk's frame is in memory.
"""

import bisect
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.http.responses import encode_json
from app.services import Services
from app.vector_formats import VectorFormat, split_extras, vector_values
from tasks import frames
from tasks.errors import Expired, NotFinished, TwolaneError
from tasks.jobs.job import ChunkState, Job
from tasks.vectors import Extra, ExtraParts, Ragged, unpack_extras

__all__ = ["ItemShape", "ResultChunk", "Results", "read_frame"]

_log = logging.getLogger(__name__)
_TABLE_PAGE = 256
# A page is held whole in memory, and an item may have thousands of token vectors.
_PAGE_VECTORS = 16_384


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


class Results:
    """The results of one job that has ended.

    Raises:
        NotFinished: the job has not ended.
    """

    def __init__(self, live: Services, job: Job) -> None:
        if not job.ended:
            raise NotFinished(f"job {job.id} is {job.state}; its results can be read when it has ended")
        self._live = live
        self.job = job

    def states(self, first: int = 0) -> Iterator[ChunkState]:
        """Yield the chunk table from a chunk on, a page at a time."""
        for start in range(first, self.job.chunks, _TABLE_PAGE):
            yield from self._live.store.chunk_table(self.job.id, start, _TABLE_PAGE)

    def find_chunk(self, index: int) -> int:
        """Return the number of the chunk that holds an item, or how many chunks there are, in a few look-ups."""

        def start(chunk: int) -> int:
            return self._live.store.chunk_table(self.job.id, chunk, 1)[0].start

        if index >= self.job.counts.total:
            return self.job.chunks
        return bisect.bisect_right(range(self.job.chunks), index, key=start) - 1

    def chunks(self, first: int = 0) -> Iterator[ResultChunk]:
        """Yield the finished chunks in order.

        Raises:
            Expired: a finished chunk is not there any more.
        """
        for state in self.states(first):
            if state.state == "done":
                yield self.read(state)

    def read(self, state: ChunkState) -> ResultChunk:
        """Return one finished chunk.

        Raises:
            Expired: it is not there any more.
        """
        frame = self._live.blobs.get_result(self.job.id, state.index, state.pointer)
        if frame is None:
            raise Expired(f"the results of job {self.job.id} are not kept any more")
        return read_frame(frame)

    def width(self) -> int | None:
        """Return the length of an embedding, or None for scores."""
        if self.job.operation == "rerank":
            return None
        first = next(self.chunks(), None)
        if first is not None:
            return int(first.values.shape[1])
        card = self._live.catalog.find(self.job.model)
        return self.job.params.dimensions or (card.dimension if card is not None else None) or 0

    def page(self, after: int, limit: int, encoding: VectorFormat) -> tuple[list[dict[str, Any]], bool]:
        """Return items behind index `after`, and whether there are more.

        There are `limit` of them, or fewer where each brings many token vectors.
        """
        shape = ItemShape(self.job, encoding)
        chunks = self.chunks(self.find_chunk(after + 1))
        rows = (row for chunk in chunks for row in shape.rows(chunk) if row["index"] > after)
        found: list[dict[str, Any]] = []
        vectors = 0
        for row in rows:
            if len(found) == limit or vectors >= _PAGE_VECTORS:
                return found, True
            found.append(row)
            vectors += len(row.get("colbert", ()))
        return found, False

    def lines(self, encoding: VectorFormat) -> Iterator[bytes]:
        """Yield NDJSON, a chunk at a time.

        A failure in the middle becomes a last line with `error` and no `index`: the status is out already, and an end
        without a word would look like a complete answer.
        """
        shape = ItemShape(self.job, encoding)
        try:
            for chunk in self.chunks():
                lines = (encode_json(row) + b"\n" for row in shape.rows(chunk))
                if "colbert" in chunk.extras:
                    yield from lines
                else:
                    yield b"".join(lines)
        except Exception as error:  # noqa: BLE001 - the edge of a stream: its reader must see that it is not complete
            _log.warning("results of a job could not be read to their end: %s", type(error).__name__)
            code = error.code if isinstance(error, TwolaneError) else TwolaneError.code
            yield (
                encode_json({"error": {"code": code, "message": "the results could not be read to their end"}}) + b"\n"
            )


class ItemShape:
    """Turns chunks into result items, for one job and one way to write vectors."""

    def __init__(self, job: Job, encoding: VectorFormat) -> None:
        self._rerank = job.operation == "rerank"
        self._encoding: VectorFormat = encoding
        counts = job.extra.get("documents_per_query")
        sizes = counts if isinstance(counts, list) else [job.counts.total]
        self._ends = list(itertools.accumulate(sizes))

    def rows(self, chunk: ResultChunk) -> Iterator[dict[str, Any]]:
        """Yield the items of a chunk as JSON values (numpy rows included)."""
        extras = split_extras(chunk.extras, len(chunk.values))
        for position, (value, more) in enumerate(zip(chunk.values, extras, strict=True)):
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
        return vector_values(value, extras, self._encoding)

    def _place(self, index: int) -> dict[str, Any]:
        query = bisect.bisect_right(self._ends, index)
        return {"query": query, "document": index - (self._ends[query - 1] if query else 0)}
