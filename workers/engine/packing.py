"""Which rows share a forward pass: pure functions over lengths.

Owns the arithmetic of padded tokens. A pass costs its rows times its longest row, so rows of similar length belong
together. Knows neither lanes nor time.
"""

from collections.abc import Callable, Iterable, Sequence

from workers.models.shapes import round_rows_down

__all__ = ["Budget", "pick_around", "pick_run"]

# Largest share of padding in a pass. Padding costs time, and in bfloat16 a little precision: a row that is padded to
# five times its length has a cosine of 0.99999 to the same row alone, one with little padding 0.9999999.
_MAX_WASTE = 0.25

# From the longest row's tokens to the padded tokens that a pass may have.
Budget = Callable[[int], int]


def pick_run(lengths: Iterable[int], budget: Budget, multiple: int = 1) -> int:
    """Return how many rows from the front of a run sorted by length, up or down, fit into one pass; at least one.

    Args:
        lengths: tokens per row, ascending or descending, at least one row.
        budget: padded tokens allowed, by the longest row.
        multiple: rows that the device computes side by side. So many are taken even where they are over the budget,
            and the count is a multiple of it, on the grid of `workers.models.shapes`, while rows last.
    """
    count, longest, real = 0, 0, 0
    for length in lengths:
        longest, real = max(longest, length), real + length
        padded = (count + 1) * longest
        if count >= multiple and (padded > budget(longest) or padded - real > _MAX_WASTE * padded):
            return round_rows_down(count // multiple) * multiple
        count += 1
    return count


def pick_around(lengths: Sequence[int], head: int, budget: Budget) -> tuple[int, int]:
    """Return the half-open range of rows that share a pass with the row at `head`, which is always in it.

    The range grows from the head towards the neighbour that is nearer in length, as long as padded tokens stay
    within the budget and the padding's share of them within a quarter.

    Args:
        lengths: tokens per row, ascending.
        head: position of the row that has to be served now.
        budget: padded tokens allowed, by the longest row.
    """
    start, end, real = head, head + 1, lengths[head]
    while start > 0 or end < len(lengths):
        down = start > 0 and (end == len(lengths) or _nearer_below(lengths, start, end, head))
        grown = (start - 1, end) if down else (start, end + 1)
        real += lengths[start - 1] if down else lengths[end]
        longest = lengths[grown[1] - 1]
        padded = (grown[1] - grown[0]) * longest
        if padded > budget(longest) or padded - real > _MAX_WASTE * padded:
            break
        start, end = grown
    return start, end


def _nearer_below(lengths: Sequence[int], start: int, end: int, head: int) -> bool:
    return lengths[head] - lengths[start - 1] <= lengths[end] - lengths[head]
