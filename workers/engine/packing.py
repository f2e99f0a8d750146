"""Which rows share a forward pass: pure functions over lengths.

Owns the arithmetic of padded tokens. On most backends a pass costs its rows times its longest row, so rows of similar
length belong together; on those that compute without padding it costs its real tokens. Knows neither lanes nor time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from workers.models.shapes import round_rows_down

__all__ = ["LEAST_PADDING", "Budget", "pass_tokens", "pick_around", "pick_beside", "pick_run"]

# Padding in a pass by its real tokens. Padding costs time, and in bfloat16 a little precision: a row that is padded to
# five times its length has a cosine of 0.99999 to the same row alone, one with little padding 0.9999999.
LEAST_PADDING = 1 / 3


def _some_padding(_longest: int) -> float:
    return LEAST_PADDING


@dataclass(frozen=True, slots=True)
class Budget:
    """What a pass may have, given its longest row.

    Attributes:
        tokens: tokens that the pass costs, by the longest row's.
        padding: tokens of padding for each real one, likewise.
        counts_padding: see `Backend.counts_padding`.
    """

    tokens: Callable[[int], int]
    padding: Callable[[int], float] = _some_padding
    counts_padding: bool = True

    def cost(self, rows: int, longest: int, real: int) -> int:
        """Return the tokens that a pass of so many rows costs, the longest of that length, with `real` tokens."""
        return rows * longest if self.counts_padding else real

    def holds(self, rows: int, longest: int, real: int) -> bool:
        """Return whether so many rows, the longest of that length, with so many real tokens, are a pass."""
        cost = self.cost(rows, longest, real)
        return cost <= self.tokens(longest) and cost - real <= self.padding(longest) * real


def pass_tokens(lengths: Sequence[int], *, counts_padding: bool) -> int:
    """Return the tokens that a pass over rows of these lengths costs; at least one row."""
    return len(lengths) * max(lengths) if counts_padding else sum(lengths)


def pick_run(lengths: Iterable[int], budget: Budget, multiple: int = 1) -> int:
    """Return how many rows from the front of a run sorted by length, up or down, fit into one pass; at least one.

    Args:
        lengths: tokens per row, ascending or descending, at least one row.
        budget: bounds the pass.
        multiple: rows that the device computes side by side. So many are taken even where they are over the budget,
            and where padding counts, the count is a multiple of it, on the grid of `workers.models.shapes`, while rows
            last.
    """
    count, longest, real = 0, 0, 0
    for length in lengths:
        longest, real = max(longest, length), real + length
        if count >= multiple and not budget.holds(count + 1, longest, real):
            return round_rows_down(count // multiple) * multiple if budget.counts_padding else count
        count += 1
    return count


def pick_beside(lengths: Iterable[int], rows: Sequence[int], budget: Budget) -> int:
    """Return how many rows from the front of a run sorted by length fit into one pass with others; maybe none.

    Args:
        lengths: tokens per row, ascending or descending.
        rows: tokens of the rows that are in the pass already, at least one.
        budget: bounds the pass.
    """
    longest, real, most = max(rows), sum(rows), 0
    for count, length in enumerate(lengths, start=1):
        longest, real = max(longest, length), real + length
        if budget.cost(len(rows) + count, longest, real) > budget.tokens(longest):
            break
        # A few long rows may be too much padding for short ones, and some more of them not.
        if budget.holds(len(rows) + count, longest, real):
            most = count
    return most


def pick_around(lengths: Sequence[int], head: int, budget: Budget) -> tuple[int, int]:
    """Return the half-open range of rows that share a pass with the row at `head`, which is always in it.

    The range grows from the head towards the neighbour that is nearer in length, as long as the budget allows.

    Args:
        lengths: tokens per row, ascending.
        head: position of the row that has to be served now.
        budget: bounds the pass.
    """
    start, end, real = head, head + 1, lengths[head]
    while start > 0 or end < len(lengths):
        down = start > 0 and (end == len(lengths) or _nearer_below(lengths, start, end, head))
        grown = (start - 1, end) if down else (start, end + 1)
        real += lengths[start - 1] if down else lengths[end]
        longest = lengths[grown[1] - 1]
        if not budget.holds(grown[1] - grown[0], longest, real):
            break
        start, end = grown
    return start, end


def _nearer_below(lengths: Sequence[int], start: int, end: int, head: int) -> bool:
    return lengths[head] - lengths[start - 1] <= lengths[end] - lengths[head]
