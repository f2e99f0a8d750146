"""What a pass will cost, learned from the passes that ran.

Owns one line per model and length class: milliseconds = fixed + slope * padded tokens, a least-squares fit that
forgets. Pure arithmetic: it measures nothing itself.
"""

from dataclasses import dataclass

__all__ = ["CostModel", "Line", "length_class"]

# After about this many passes an observation has lost two thirds of its weight.
_MEMORY_PASSES = 200
# A guess for a model that never ran: slow, so that the first bulk pass beside interactive traffic is a small one.
_GUESS_MS_PER_TOKEN = 0.1


def length_class(tokens: int) -> int:
    """Return the class of a row's length: 0 up to 16 tokens, then one more per doubling."""
    return max(0, (max(tokens, 1) - 1).bit_length() - 4)


@dataclass(slots=True)
class Line:
    """A decaying least-squares line through (padded tokens, milliseconds)."""

    weight: float = 0.0
    tokens: float = 0.0
    ms: float = 0.0
    tokens_squared: float = 0.0
    tokens_ms: float = 0.0

    def observe(self, tokens: int, ms: float) -> None:
        """Take in one pass."""
        keep = 1 - 1 / _MEMORY_PASSES
        self.weight = self.weight * keep + 1
        self.tokens = self.tokens * keep + tokens
        self.ms = self.ms * keep + ms
        self.tokens_squared = self.tokens_squared * keep + tokens * tokens
        self.tokens_ms = self.tokens_ms * keep + tokens * ms

    def fit(self) -> tuple[float, float]:
        """Return (fixed ms, ms per token), both at least zero and the slope above it."""
        mean_tokens, mean_ms = self.tokens / self.weight, self.ms / self.weight
        variance = self.tokens_squared / self.weight - mean_tokens**2
        if variance > (0.05 * mean_tokens) ** 2:
            slope = (self.tokens_ms / self.weight - mean_tokens * mean_ms) / variance
            fixed = mean_ms - slope * mean_tokens
            if slope > 0 and fixed >= 0:
                return fixed, slope
        # All passes were of one size, or noise turned the line round: charge everything to the tokens.
        return 0.0, max(mean_ms / mean_tokens, 1e-9)


class CostModel:
    """Lines by model and length class."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, int], Line] = {}

    def observe(self, model: str, longest: int, padded_tokens: int, ms: float) -> None:
        """Take in a pass of `padded_tokens`, its longest row of `longest` tokens, that took `ms`."""
        self._lines.setdefault((model, length_class(longest)), Line()).observe(padded_tokens, ms)

    def tokens_within(self, model: str, longest: int, ms: float) -> int:
        """Return the padded tokens that a pass may have to take at most `ms`; zero if not even one does."""
        fixed, slope = self._fit(model, longest)
        return max(0, int((ms - fixed) / slope))

    def _fit(self, model: str, longest: int) -> tuple[float, float]:
        """Use the line of the nearest length class that was seen."""
        wanted = length_class(longest)
        seen = [(abs(found - wanted), -found, line) for (name, found), line in self._lines.items() if name == model]
        if not seen:
            return 0.0, _GUESS_MS_PER_TOKEN
        return min(seen, key=lambda entry: entry[:2])[2].fit()
