"""Results as one npy file, whole or a range of its bytes, without ever holding the array.

Owns the npy header (numpy's format version 1.0) and the reading of `Range`. Rows of failed or missing items are NaN, or
0 where numbers are whole, so that row i is always item i.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np

from app.http.errors import RangeNotSatisfiable
from app.jobs.results import Results

__all__ = ["ByteRange", "NpyFile", "parse_range"]

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_FILL_ROWS = 1024


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes `start` to `stop`, the latter not included."""

    start: int
    stop: int


def parse_range(header: str, size_bytes: int) -> ByteRange | None:
    """Read a `Range` header (RFC 9110); None when there is none that we serve in part, as the RFC allows.

    Not by werkzeug 3.1: it refuses a suffix that is longer than the file, which the RFC answers with all of it.

    Raises:
        RangeNotSatisfiable: it starts behind the end.
    """
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(0, size_bytes - int(last)), size_bytes
    else:
        start, stop = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
    if start >= size_bytes or (first and last and int(last) < start):
        raise RangeNotSatisfiable(f"the file has {size_bytes} bytes")
    return ByteRange(start, stop)


class NpyFile:
    """The npy form of a job's results.

    Args:
        results: of a job that has ended.
        width: length of an embedding; None for scores.
    """

    def __init__(self, results: Results, width: int | None) -> None:
        self._results = results
        total = results.job.counts.total
        self._dtype = results.dtype.newbyteorder("<")
        self._missing_value = np.nan if self._dtype.kind == "f" else 0
        self._shape = (total,) if width is None else (total, width)
        self._row_bytes = self._dtype.itemsize * (width or 1)
        self._header = self._make_header()
        self.size_bytes = len(self._header) + total * self._row_bytes

    def read(self, wanted: ByteRange) -> Iterator[bytes]:
        """Yield the bytes of a range; only chunks that it touches are read."""
        if wanted.start < len(self._header):
            yield self._header[wanted.start : wanted.stop]
        for offset, data in self._pieces(wanted):
            start, stop = max(wanted.start, offset), min(wanted.stop, offset + len(data))
            if start < stop:
                yield data[start - offset : stop - offset]

    def _pieces(self, wanted: ByteRange) -> Iterator[tuple[int, bytes]]:
        """Yield chunks with their place in the file."""
        first_row = max(0, wanted.start - len(self._header)) // self._row_bytes
        for state in self._results.states(self._results.find_chunk(first_row)):
            offset = len(self._header) + state.start * self._row_bytes
            if offset >= wanted.stop:
                return
            if state.state != "done":
                yield from self._missing(offset, state.items)
                continue
            chunk = self._results.read(state)
            if len(chunk.errors) == state.items:
                # Of a chunk that was given up the vectors have no length.
                yield from self._missing(offset, state.items)
                continue
            values = chunk.values.astype(self._dtype)
            values[list(chunk.errors)] = self._missing_value
            yield offset, values.tobytes()

    def _missing(self, offset: int, items: int) -> Iterator[tuple[int, bytes]]:
        for start in range(0, items, _FILL_ROWS):
            rows = min(_FILL_ROWS, items - start)
            data = np.full((rows, *self._shape[1:]), self._missing_value, self._dtype).tobytes()
            yield offset + start * self._row_bytes, data

    def _make_header(self) -> bytes:
        sink = BytesIO()
        description = {"descr": self._dtype.str, "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(sink, description)
        return sink.getvalue()
