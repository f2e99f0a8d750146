"""How interactive calls come: how many a second, how long they take, and whether callers come back at once.

Owns these three measurements. Decides nothing; what follows from them is in `scheduler`.
"""

import math
from collections import deque
from itertools import takewhile

__all__ = ["CallTraffic"]

# The rate is over about so many seconds: a typing person counts as steady, a burst is over soon.
_RATE_S = 5.0
# Arrivals and latencies that are kept, for at most so long.
_KEPT = 512
_LATENCY_S = 60.0


class CallTraffic:
    """The calls of one worker. Not thread-safe: the queue's lock guards it. Times are those of the queue's clock."""

    def __init__(self) -> None:
        self._rate, self._rate_at_s = 0.0, -math.inf
        self._arrivals = deque[float](maxlen=_KEPT)
        self._latencies: dict[str, deque[tuple[float, float]]] = {}
        self.arrived = 0

    def note_arrival(self, now_s: float) -> None:
        """Count a call."""
        self._rate = self.calls_per_s(now_s) + 1 / _RATE_S
        self._rate_at_s = now_s
        self._arrivals.append(now_s)
        self.arrived += 1

    def note_answer(self, model: str, now_s: float, latency_s: float) -> None:
        """Keep how long a call of this model took until its answer."""
        self._latencies.setdefault(model, deque(maxlen=_KEPT)).append((now_s, latency_s))

    def calls_per_s(self, now_s: float) -> float:
        """Return the rate of late."""
        return self._rate * math.exp((self._rate_at_s - now_s) / _RATE_S) if self._rate else 0.0

    def age_s(self, now_s: float) -> float:
        """Return how long ago the last call came; infinity if none ever did."""
        return now_s - self._rate_at_s

    def count(self, after_s: float, until_s: float) -> int:
        """Return the calls that came after one moment and not after another, as far back as arrivals are kept."""
        late = takewhile(lambda at_s: at_s > after_s, reversed(self._arrivals))
        return sum(at_s <= until_s for at_s in late)

    def p99_s(self, model: str, now_s: float) -> float:
        """Return the 99th percentile of the last minute's latencies, at most the last 512; 0 without any."""
        recent = sorted(s for at_s, s in list(self._latencies.get(model, ())) if at_s >= now_s - _LATENCY_S)
        return recent[math.ceil(0.99 * len(recent)) - 1] if recent else 0.0
