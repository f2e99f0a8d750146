"""Which batch shapes are worth having: a grid, so that few different ones occur, and fewer still are compiled.

Owns the grid and the choice among its shapes. A backend that compiles kernels for each shape it meets pays 5 ms and up
to a megabyte in each stream for a new one (OpenVINO, MiniLM), more than a short pass itself costs; a step of at most
a sixteenth of the length wastes about 2% of a passage.
"""

import functools
import sys
from collections.abc import Sequence

__all__ = ["ShapeCache", "padded_tokens", "round_length", "round_rows_down", "round_rows_up", "split_evenly"]

_LENGTH_STEPS, _ROW_STEPS = 16, 4
_LEAST_LENGTH_STEP = 4
# How much longer than necessary the longest part of a split may be; finding the very best one takes longer.
_SPLIT_SLACK = 1.02
# Kernels are never given back, so from so many shapes for each length of the grid on, a new one is compiled only where
# every known one computes this much more. Measured: docs/decisions/0017-a-bounded-set-of-shapes.md
_SHAPES_PER_LENGTH = 2
_MOST_WASTE = 1.75


class ShapeCache:
    """The shapes that have compiled kernels, and which of them a batch is padded to. Used by one thread."""

    def __init__(self, max_tokens: int) -> None:
        """Start empty, for a model that reads at most `max_tokens` tokens of a row."""
        self._max_tokens = max_tokens
        lengths = {round_length(length, max_tokens) for length in range(1, max_tokens + 1)}
        self._plenty = _SHAPES_PER_LENGTH * len(lengths)
        self._known = set[tuple[int, int]]()

    def choose(self, rows: int, length: int) -> tuple[int, int]:
        """Return rows and tokens per row of the shape to compute: one of the grid, at least as large."""
        shape = round_rows_up(rows), round_length(length, self._max_tokens)
        if shape in self._known:
            return shape
        if len(self._known) >= self._plenty and (known := self._nearest(shape)):
            return known
        self._known.add(shape)
        return shape

    def _nearest(self, shape: tuple[int, int]) -> tuple[int, int] | None:
        """Return the smallest known shape that holds this one, if it does not compute too much more."""
        rows, length = shape
        holding = (known for known in self._known if known[0] >= rows and known[1] >= length)
        best = min(holding, key=lambda known: known[0] * known[1], default=None)
        return best if best is not None and best[0] * best[1] <= _MOST_WASTE * rows * length else None


def round_length(length: int, most: int) -> int:
    """Return the next length on the grid, sixteen steps per doubling and at least four tokens apart; at most `most`."""
    step = max(_LEAST_LENGTH_STEP, _step(length, _LENGTH_STEPS))
    return min(-(-length // step) * step, most)


def round_rows_up(rows: int) -> int:
    """Return the next number of rows on the grid, four steps per doubling."""
    step = _step(rows, _ROW_STEPS)
    return -(-rows // step) * step


def round_rows_down(rows: int) -> int:
    """Return the last number of rows on the grid that is not larger."""
    step = _step(rows + 1, _ROW_STEPS)
    return rows // step * step


def padded_tokens(rows: int, longest: int) -> int:
    """Return what a batch of that many rows, the longest of that length, is padded to on the grid."""
    return round_rows_up(rows) * round_length(longest, sys.maxsize)


def split_evenly(lengths: Sequence[int], parts: int) -> list[int]:
    """Cut rows into neighbours that are computed side by side, so that the longest part is as short as it can be.

    Args:
        lengths: tokens per row, ascending.
        parts: at most so many.

    Returns:
        Where each part ends, ascending; the last is the number of rows.
    """
    low, high = sum(lengths) // parts, padded_tokens(len(lengths), lengths[-1])
    best = [len(lengths)]
    while high > low * _SPLIT_SLACK + 1:
        limit = (low + high) // 2
        ends = _fill(lengths, limit, parts)
        if ends is None:
            low = limit
        else:
            best, high = ends, limit
    return best


def _fill(lengths: Sequence[int], limit: int, parts: int) -> list[int] | None:
    """Fill one part after the other up to that many padded tokens; None if more parts were needed."""
    ends, start = list[int](), 0
    for end, length in enumerate(lengths, start=1):
        if end - start > 1 and padded_tokens(end - start, length) > limit:
            ends.append(end - 1)
            start = end - 1
        if len(ends) == parts or padded_tokens(1, length) > limit:
            return None
    return [*ends, len(lengths)]


@functools.cache
def _step(value: int, steps: int) -> int:
    """Return the distance of grid points in the doubling that ends at or above the value."""
    return max(1, (1 << max(value - 1, 0).bit_length()) // 2 // steps)
