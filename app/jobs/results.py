"""A job's results, read chunk by chunk in input order.

Owns the walk over the chunk table. At most one chunk's frame is in memory. How an item looks is in `result_items`.
"""

import bisect
import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from app.http.responses import encode_json
from app.jobs.result_items import ItemShape, ResultChunk, read_frame
from app.services import Services
from app.vector_formats import Precision, VectorFormat, quantize, quantize_chunks
from tasks.errors import Expired, NotFinished, StoreUnavailable, TwolaneError
from tasks.jobs.job import ChunkState, Job
from tasks.vectors import MANY_VECTORS

__all__ = ["Results"]

_log = logging.getLogger(__name__)
_TABLE_PAGE = 256
# A page is held whole in memory, and an item may have thousands of token vectors.
_PAGE_VECTORS = 16_384
# Of a stream, so that a reader who is slow holds little memory.
_LINES_AT_ONCE = 32


class Results:
    """The results of one job that has ended.

    Args:
        live: the services.
        job: whose results.
        precision: of dense vectors; float: as they are kept. Scores and other kinds of vectors stay as they are.

    Raises:
        NotFinished: the job has not ended.
    """

    def __init__(self, live: Services, job: Job, precision: Precision = "float") -> None:
        self._require_readable(job)
        self._live = live
        self._precision: Precision = precision if job.operation == "embeddings" else "float"
        self.job = job

    @staticmethod
    def _require_readable(job: Job) -> None:
        if not job.ended:
            message = f"job {job.id} is {job.state}; its results can be read when it has ended, or with follow=true"
            raise NotFinished(message)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numbers of dense vectors, or of scores."""
        if self._precision == "float":
            return np.dtype(self.job.params.dtype)
        return quantize(np.zeros((1, 1), np.float32), self._precision).dtype

    @property
    def json_dtype(self) -> np.dtype[Any]:
        """The numbers of dense vectors in JSON: float32, unless others are asked for."""
        return np.dtype(np.float32) if self._precision == "float" else self.dtype

    def states(self, first: int = 0) -> Iterator[ChunkState]:
        """Yield the chunk table from a chunk on, a page at a time."""
        for start in range(first, self.job.chunks, _TABLE_PAGE):
            yield from self._live.store.chunk_table(self.job.id, start, _TABLE_PAGE)

    def settled(self, first: int = 0) -> Iterator[ChunkState | None]:
        """Yield the chunk table from a chunk on as far as it is settled: here at once, and never None."""
        return self.states(first)

    def find_chunk(self, index: int) -> int:
        """Return the number of the chunk that holds an item, or how many chunks there are, in a few look-ups."""

        def start(chunk: int) -> int:
            return self._live.store.chunk_table(self.job.id, chunk, 1)[0].start

        if index >= self.job.counts.total:
            return self.job.chunks
        return bisect.bisect_right(range(self.job.chunks), index, key=start) - 1

    def chunks(self, after: int = -1) -> Iterator[ResultChunk]:
        """Yield the finished chunks in order, with the items behind an index.

        Raises:
            Expired: a finished chunk is not there any more.
        """
        for state in self.settled(self.find_chunk(after + 1)):
            if state is not None and state.state == "done":
                yield self.read(state).behind(after)

    def read(self, state: ChunkState) -> ResultChunk:
        """Return one finished chunk.

        Raises:
            Expired: it is not there any more.
            StoreUnavailable: another host may have it in a folder of its own.
        """
        frame = self._live.blobs.get_result(self.job.id, state.index, state.pointer)
        if frame is None:
            if sentence := self._live.files.places.explain("TWOLANE_RESULTS_URL"):
                raise StoreUnavailable(sentence, retry_after_s=30)
            raise Expired(f"the results of job {self.job.id} are not kept any more")
        chunk = read_frame(frame)
        if self._precision == "float":
            return chunk
        extras = quantize_chunks(chunk.extras, self._precision)
        return replace(chunk, values=quantize(chunk.values, self._precision), extras=extras)

    def width(self) -> int | None:
        """Return the length of an embedding, or None for scores."""
        if self.job.operation == "rerank":
            return None
        card = self._live.catalog.find(self.job.model)
        known = self.job.params.dimensions or (card.dimension if card is not None else None)
        if not known or self.job.ended:
            first = next((state for state in self.settled() if state and state.completed), None)
            if first is not None:
                return int(self.read(first).values.shape[1])
        return int(quantize(np.zeros((1, known or 0), np.float32), self._precision).shape[1])

    def page(
        self, after: int, limit: int, encoding: VectorFormat, *, failed: bool
    ) -> tuple[list[dict[str, Any]], bool]:
        """Return items behind index `after`, and whether there are more.

        There are `limit` of them, or fewer where each brings many token vectors; with `failed` those that failed.
        """
        shape = ItemShape(self.job, encoding, self.json_dtype)
        states = (
            state for state in self.settled(self.find_chunk(after + 1)) if state and _wanted(state, failed=failed)
        )
        rows = (row for state in states for row in shape.rows(self.read(state).behind(after), failed=failed))
        found: list[dict[str, Any]] = []
        vectors = 0
        for row in rows:
            if len(found) == limit or vectors >= _PAGE_VECTORS:
                return found, True
            found.append(row)
            vectors += len(row.get("colbert", ())) + len(row.get("chunks", ()))
        return found, False

    def lines(self, encoding: VectorFormat, after: int = -1, *, failed: bool = False) -> Iterator[bytes]:
        """Yield NDJSON, some lines at a time; a blank line where nothing came for some seconds.

        A failure in the middle becomes a last line with `error` and no `index`: the status is out already, and an end
        without a word would look like a complete answer.
        """
        shape = ItemShape(self.job, encoding, self.json_dtype)
        chunks, last = self.find_chunk(after + 1), after
        try:
            for state in self.settled(chunks):
                if state is None:
                    yield b"\n"
                    continue
                chunks, last = state.index + 1, max(last, state.start + state.items - 1)
                if not _wanted(state, failed=failed):
                    continue
                chunk = self.read(state).behind(after)
                lines = (encode_json(row) + b"\n" for row in shape.rows(chunk, failed=failed))
                at_once = _LINES_AT_ONCE if MANY_VECTORS.isdisjoint(chunk.extras) else 1
                while piece := b"".join(itertools.islice(lines, at_once)):
                    yield piece
            yield self.last_line(last, complete=chunks == self.job.chunks)
        except Exception as error:  # noqa: BLE001 - the edge of a stream: its reader must see that it is not complete
            _log.warning("results of a job could not be read to their end: %s", type(error).__name__)
            code = error.code if isinstance(error, TwolaneError) else TwolaneError.code
            yield (
                encode_json({"error": {"code": code, "message": "the results could not be read to their end"}}) + b"\n"
            )

    def last_line(self, after: int, *, complete: bool) -> bytes:  # noqa: ARG002 - those that follow a job say both
        """Return what ends the NDJSON of a whole job: nothing, its last item is the last line."""
        return b""


def _wanted(state: ChunkState, *, failed: bool) -> bool:
    """Return whether a chunk holds items that are asked for."""
    return state.state == "done" and (state.failed > 0 or not failed)
