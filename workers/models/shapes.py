"""Which batch shapes are worth having: a grid, so that few different ones occur.

Owns the grid. A backend that compiles kernels for each shape it meets pays 5 ms and up to a megabyte for a new one
(OpenVINO, MiniLM), more than a short pass itself costs; a step of at most an eighth of the length wastes about 4%.
"""

__all__ = ["round_length", "round_rows_down", "round_rows_up"]

_LENGTH_STEPS, _ROW_STEPS = 8, 4
_LEAST_LENGTH_STEP = 4


def round_length(length: int, most: int) -> int:
    """Return the next length on the grid, eight steps per doubling and at least four tokens apart; at most `most`."""
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


def _step(value: int, steps: int) -> int:
    """Return the distance of grid points in the doubling that ends at or above the value."""
    return max(1, (1 << max(value - 1, 0).bit_length()) // 2 // steps)
