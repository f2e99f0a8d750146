"""Out of memory: halve the batch, remember what fits, grow back within a minute.

Owns the halving and the memory of sizes; pure, whatever `run` does. A row that does not fit alone is given up.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from workers.engine.cost import length_class

__all__ = ["SafeSizes", "run_halving"]

T = TypeVar("T")

# A limit doubles in so many seconds of passes, and at most once a pass.
_DOUBLING_S, _DOUBLING = 3.0, 2.0
# How long the size that failed is not tried again, the first time and at most.
_FIRST_HOLD_S, _LONGEST_HOLD_S = 20.0, 640.0
# Sizes above this part of one that failed count as the same.
_SAME_SIZE = 0.9


@dataclass(slots=True)
class _Limit:
    """What is known of one length class after a failure. Times are those of the clock."""

    tokens: float
    failed_tokens: int
    hold_s: float
    held_until_s: float
    grown_at_s: float


class SafeSizes:
    """The padded tokens that a pass may have, by model and length class, after what went wrong before.

    A limit grows while passes fit, by time: somebody else's memory is given back in seconds, however long passes take.
    The size that failed is left alone for a while, twice as long each time it fails again, so that a device that stays
    smaller is not run into its limit over and over.
    """

    def __init__(self, max_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`max_tokens` is the budget while nothing went wrong; `clock` gives seconds."""
        self.max_tokens = max_tokens
        self._clock = clock
        self._limits: dict[tuple[str, int], _Limit] = {}

    def limit(self, model: str, longest: int) -> int:
        """Return the budget for passes whose longest row has `longest` tokens."""
        found = self._limits.get((model, length_class(longest)))
        return self.max_tokens if found is None else int(found.tokens)

    def shrink(self, model: str, longest: int, failed_tokens: int) -> None:
        """A pass of that many padded tokens did not fit: allow half of it from now on."""
        key, now_s = (model, length_class(longest)), self._clock()
        before = self._limits.get(key)
        again = before is not None and failed_tokens >= _SAME_SIZE * before.failed_tokens
        hold_s = min(2 * before.hold_s, _LONGEST_HOLD_S) if before is not None and again else _FIRST_HOLD_S
        tokens = max(1.0, min(self.limit(model, longest), failed_tokens / 2))
        self._limits[key] = _Limit(tokens, failed_tokens, hold_s, now_s + hold_s, now_s)

    def grow(self, model: str, longest: int, padded_tokens: int) -> None:
        """A pass of that many padded tokens fitted: the limit rises with the time since it last did."""
        key, now_s = (model, length_class(longest)), self._clock()
        found = self._limits.get(key)
        if found is None:
            return
        if padded_tokens >= found.failed_tokens:
            # The memory is there again.
            found.held_until_s, found.hold_s = now_s, _FIRST_HOLD_S
        factor = min(_DOUBLING ** ((now_s - found.grown_at_s) / _DOUBLING_S), _DOUBLING)
        held = now_s < found.held_until_s
        grown = min(found.tokens * factor, _SAME_SIZE * found.failed_tokens if held else self.max_tokens)
        found.tokens, found.grown_at_s = max(found.tokens, grown), now_s
        if padded_tokens >= found.failed_tokens and found.tokens >= self.max_tokens:
            del self._limits[key]


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
        on_failure: called with each part that failed, after its tensors are free and before anything is tried again.
        give_up: called with a row that fails alone.
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
