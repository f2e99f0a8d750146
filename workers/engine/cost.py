"""What a pass will cost, learned from the passes that ran: a fixed part, and a part per padded token.

Owns one fit per model and length class. Pure arithmetic: it measures nothing itself, and what follows for the size of
a pass is in `sizing`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["CostLine", "CostModel", "PassCost", "length_class"]

# How many passes of one size are averaged; older ones fade.
_MEMORY_PASSES = 16
# A size that has not come for so many passes counts half as much as one that has.
_HALF_LIFE_PASSES = 256
_LEAST_WEIGHT = 0.01
# A pass that takes so many times longer, or shorter, than its size usually does is counted as this much: one hiccup of
# the machine must not look like a slower device, while a device that did become slower is believed after a few passes.
_CLIP = 3.0
_CLIP_AFTER = 3
# Sizes have to differ by this factor to tell the fixed part from the rest.
_LEAST_SPREAD = 1.5
_LEAST_MS_PER_TOKEN = 1e-7


@dataclass(frozen=True, slots=True)
class PassCost:
    """Milliseconds of a pass: a fixed part, and a part for each padded token. The latter is above zero."""

    fixed_ms: float
    ms_per_token: float

    def ms(self, padded_tokens: float) -> float:
        """Return what a pass of so many padded tokens takes."""
        return self.fixed_ms + self.ms_per_token * padded_tokens


# For a model that never ran: slow, so that the first bulk pass beside interactive traffic is a small one.
_GUESS = PassCost(0.0, 0.1)


def length_class(tokens: int) -> int:
    """Return the class of a row's length: 0 up to 16 tokens, then one more per doubling."""
    return max(0, (max(tokens, 1) - 1).bit_length() - 4)


@dataclass(slots=True)
class _Size:
    """Fading means over the passes of about one size."""

    tokens: float = 0.0
    ms: float = 0.0
    passes: int = 0
    seen_at: int = 0

    def observe(self, tokens: int, ms: float, now: int) -> None:
        if self.passes >= _CLIP_AFTER:
            ms = min(max(ms, self.ms / _CLIP), self.ms * _CLIP)
        self.passes = min(self.passes + 1, _MEMORY_PASSES)
        self.tokens += (tokens - self.tokens) / self.passes
        self.ms += (ms - self.ms) / self.passes
        self.seen_at = now


class CostLine:
    """The line through the means of all sizes that came, one size per doubling of padded tokens.

    Sizes are kept apart so that a long phase of equal passes does not wash out what passes of other sizes had shown:
    without them nothing tells the fixed part from the part per token.
    """

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._passes = 0

    def observe(self, padded_tokens: int, ms: float) -> None:
        """Take in one pass."""
        self._passes += 1
        self._sizes.setdefault(padded_tokens.bit_length(), _Size()).observe(padded_tokens, ms, self._passes)

    @property
    def is_spread(self) -> bool:
        """Whether sizes differ enough to tell the two parts from each other."""
        tokens = [size.tokens for size in list(self._sizes.values())]
        return max(tokens) >= _LEAST_SPREAD * min(tokens)

    def fit(self) -> PassCost:
        """Return the line with the least squares of relative errors, both parts at least zero."""
        points = [(size.tokens, max(size.ms, 1e-6), self._weigh(size)) for size in list(self._sizes.values())]
        weight, t, tt, y, ty = _sum_up(points)
        spread = tt * weight - t * t
        slope = (ty * weight - t * y) / spread if spread > 0 else 0.0
        if slope <= 0:
            # Nothing but the start of a pass is to be seen: let passes grow until their tokens show.
            return PassCost(y / weight, _LEAST_MS_PER_TOKEN)
        fixed = (y - slope * t) / weight
        return PassCost(fixed, slope) if fixed >= 0 else PassCost(0.0, ty / tt)

    def split(self, fixed_ms: float | None) -> PassCost:
        """Return a cost where all passes were of one size, the fixed part being known from elsewhere or half of it."""
        sizes = list(self._sizes.values())
        tokens, ms = sum(size.tokens for size in sizes) / len(sizes), sum(size.ms for size in sizes) / len(sizes)
        fixed = ms / 2 if fixed_ms is None else min(fixed_ms, ms)
        return PassCost(fixed, max((ms - fixed) / tokens, _LEAST_MS_PER_TOKEN))

    def _weigh(self, size: _Size) -> float:
        # Never nothing: an old size says more about the other part than no second size.
        return size.passes * max(math.exp2((size.seen_at - self._passes) / _HALF_LIFE_PASSES), _LEAST_WEIGHT)


class CostModel:
    """Costs by model and length class. One thread observes, others may ask."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, int], CostLine] = {}
        self._fits: dict[tuple[str, int], PassCost] = {}

    def observe(self, model: str, longest: int, padded_tokens: int, ms: float) -> None:
        """Take in a pass of `padded_tokens`, its longest row of `longest` tokens, that took `ms`."""
        self._lines.setdefault((model, length_class(longest)), CostLine()).observe(padded_tokens, ms)
        self._fits.clear()

    def fit(self, model: str, longest: int) -> PassCost:
        """Return the cost of passes whose longest row has `longest` tokens, by the nearest class that was seen."""
        key = model, length_class(longest)
        found = self._fits.get(key)
        if found is None:
            found = self._fits[key] = self._fit(*key)
        return found

    def _fit(self, model: str, wanted: int) -> PassCost:
        seen = {found: line for (name, found), line in self._lines.copy().items() if name == model}
        if not seen:
            return _GUESS
        line = seen[_nearest(seen, wanted)]
        if line.is_spread:
            return line.fit()
        spread = [found for found, other in seen.items() if other.is_spread]
        return line.split(seen[_nearest(spread, wanted)].fit().fixed_ms if spread else None)


def _nearest(classes: Iterable[int], wanted: int) -> int:
    """Return the nearest class, the longer one of two."""
    return min(classes, key=lambda found: (abs(found - wanted), -found))


def _sum_up(points: Iterable[tuple[float, float, float]]) -> tuple[float, float, float, float, float]:
    """Return the weighted sums of 1, t, t², y and t·y, each point's weight being divided by y² for relative errors."""
    sums = [0.0] * 5
    for t, y, weight in points:
        share = weight / (y * y)
        for at, term in enumerate((1.0, t, t * t, y, t * y)):
            sums[at] += share * term
    return sums[0], sums[1], sums[2], sums[3], sums[4]
