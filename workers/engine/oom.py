"""Out of memory: halve the batch, remember what fits, grow back slowly.

Owns the halving and the memory of sizes; pure, whatever `run` does. A row that does not fit alone is given up.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from workers.engine.cost import length_class

__all__ = ["SafeSizes", "run_halving"]

T = TypeVar("T")

_PASSES_BEFORE_GROWTH = 64
_GROWTH = 1.125


class SafeSizes:
    """The padded tokens that a pass may have, by model and length class, after what went wrong before."""

    def __init__(self, max_tokens: int) -> None:
        """`max_tokens` is the budget while nothing went wrong."""
        self._max_tokens = max_tokens
        self._limits: dict[tuple[str, int], float] = {}
        self._good: dict[tuple[str, int], int] = {}

    def limit(self, model: str, longest: int) -> int:
        """Return the budget for passes whose longest row has `longest` tokens."""
        return int(self._limits.get((model, length_class(longest)), self._max_tokens))

    def shrink(self, model: str, longest: int, failed_tokens: int) -> None:
        """A pass of that many padded tokens did not fit: allow half of it from now on."""
        key = model, length_class(longest)
        self._limits[key] = max(1.0, min(self.limit(model, longest), failed_tokens / 2))
        self._good[key] = 0

    def grow(self, model: str, longest: int) -> None:
        """A pass fitted. After enough of them in a row the limit rises a little, up to the budget."""
        key = model, length_class(longest)
        if key not in self._limits:
            return
        self._good[key] += 1
        if self._good[key] >= _PASSES_BEFORE_GROWTH:
            self._good[key] = 0
            self._limits[key] *= _GROWTH
            if self._limits[key] >= self._max_tokens:
                del self._limits[key], self._good[key]


def run_halving(
    rows: Sequence[T],
    run: Callable[[Sequence[T]], None],
    on_failure: Callable[[Sequence[T], Exception], None],
    give_up: Callable[[T, Exception], None],
    fits: Callable[[Sequence[T]], bool] = lambda _: True,
) -> None:
    """Run the rows together, or in halves of halves where that fails; each row is in exactly one pass that succeeds.

    The same halving serves a batch that does not fit and one that holds a row on which the model fails.

    Args:
        rows: what to run.
        run: runs some of them, or raises before any of them has got its value.
        on_failure: told of each part that failed, after its tensors are free and before anything is tried again.
        give_up: told of a row that fails alone.
        fits: whether a part is worth trying, by what was learned meanwhile; a single row always is.
    """
    parts = [rows]
    while parts:
        part = parts.pop()
        if len(part) == 1 or fits(part):
            error = _try(part, run)
            if error is None:
                continue
            on_failure(part, error)
            if len(part) == 1:
                give_up(part[0], error)
                continue
        middle = len(part) // 2
        parts += [part[middle:], part[:middle]]


def _try(part: Sequence[T], run: Callable[[Sequence[T]], None]) -> Exception | None:
    """Return the error without its traceback: the frames there would keep the failed pass's tensors in memory."""
    try:
        run(part)
    except Exception as error:  # noqa: BLE001 - an edge: each row behind it gets a value or an error in the end
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    return None
