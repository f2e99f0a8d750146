"""Counters and histograms of the whole installation: each process adds to Redis, every web process reads the sums.

Owns the counting in a process, the adding (each count once, however often a reply is lost) and the reading. So the
series of `/metrics` carry no process and survive all restarts. Which metrics there are is `app.ops.metric_names`.
"""

import bisect
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from redis import Redis

from tasks import keys
from tasks.keys import Key
from tasks.periodic import PeriodicThread
from tasks.scripts import Script, command

__all__ = ["BUCKETS_S", "Counters", "HistogramCounts", "KeyUsage", "MetricCounts", "read_counts", "read_usage"]

# From a pass on a GPU to the longest call that the default time limit allows; of all histograms, in seconds.
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_FLUSH_S = 2.0
# In Redis a counter is `name SEPARATOR label SEPARATOR label`; the sum of a histogram has one more part.
_SEPARATOR = "\x1f"
_SUM = "sum"
_DAY_S = 86_400
_KEEP_MS, _KEEP_USAGE_MS = 30 * _DAY_S * 1000, 400 * _DAY_S * 1000
# A script takes so many arguments without running out of stack.
_PER_FLUSH = 2000
_STOP_S = 3.0
_USAGE = ("usage_items_total", "usage_tokens_total", "usage_device_seconds_total")

Labels = tuple[str, ...]


class AddCountsScript(Script):
    """Add what a process has counted; `counts` are names and amounts in turns."""

    totals: Key
    daily: Key
    flushed: Key
    number: int
    keep_ms: int
    keep_usage_ms: int
    counts: Sequence[str]


class Counters:
    """Counts in this process and adds to Redis every two seconds, so that who counts pays no trip. Thread-safe.

    A process that is killed loses what it counted since. While Redis is away the counts wait.

    Args:
        redis: a client that gives up quickly.
        every_s: pause between two additions.
    """

    def __init__(self, redis: Redis, every_s: float = _FLUSH_S) -> None:
        self._redis = redis
        self._process = secrets.token_hex(8)
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._counts: dict[tuple[str, Labels], float] = defaultdict(float)
        # Values of each bucket and, at the end, their sum.
        self._histograms: dict[tuple[str, Labels], list[float]] = {}
        self._unsent: list[tuple[int, list[str]]] = []
        self._number = 0
        self._thread = PeriodicThread(self.flush, every_s, "counters")

    def start(self) -> None:
        """Add to Redis from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Add what is left, as far as Redis answers, and end the thread. Safe to call twice."""
        self._thread.stop(_STOP_S)
        self.flush()

    def add(self, name: str, labels: Labels, amount: float = 1) -> None:
        """See `tasks.engine.Meter`."""
        with self._lock:
            self._counts[name, labels] += amount

    def observe(self, name: str, labels: Labels, value: float) -> None:
        """See `tasks.engine.Meter`; `value` is in seconds."""
        place = bisect.bisect_left(BUCKETS_S, value)
        with self._lock:
            counts = self._histograms.get((name, labels))
            if counts is None:
                counts = self._histograms[name, labels] = [0.0] * (len(BUCKETS_S) + 2)
            counts[place] += 1
            counts[-1] += value

    def flush(self) -> None:
        """Add what was counted, and what could not be added before.

        Raises:
            redis.RedisError: Redis does not answer; the counts are kept for the next time.
        """
        with self._flushing:
            self._collect()
            while self._unsent:
                number, counts = self._unsent[0]
                names = keys.metric_counts(), keys.usage_day(_today()), keys.metric_flush(self._process)
                call = AddCountsScript(*names, number, _KEEP_MS, _KEEP_USAGE_MS, counts)
                self._redis.execute_command(*command(call))  # type: ignore[no-untyped-call]
                self._unsent.pop(0)

    def _collect(self) -> None:
        with self._lock:
            counts, self._counts = self._counts, defaultdict(float)
            histograms, self._histograms = self._histograms, {}
        pairs = [(_SEPARATOR.join((name, *labels)), amount) for (name, labels), amount in counts.items()]
        for (name, labels), values in histograms.items():
            pairs += _write_histogram(_SEPARATOR.join((name, *labels)), values)
        for first in range(0, len(pairs), _PER_FLUSH):
            self._number += 1
            part = pairs[first : first + _PER_FLUSH]
            self._unsent.append((self._number, [text for name, amount in part for text in (name, repr(amount))]))


def _write_histogram(name: str, values: Sequence[float]) -> Iterator[tuple[str, float]]:
    for place, count in enumerate(values[:-1]):
        if count:
            yield f"{name}{_SEPARATOR}{place}", count
    yield f"{name}{_SEPARATOR}{_SUM}", values[-1]


@dataclass(slots=True)
class HistogramCounts:
    """A histogram: how many values each bucket of `BUCKETS_S` has, the last those above all, and their sum."""

    buckets: list[float] = field(default_factory=lambda: [0.0] * (len(BUCKETS_S) + 1))
    sum: float = 0.0


class MetricCounts:
    """What all processes have counted."""

    def __init__(self, table: Mapping[bytes, bytes]) -> None:
        self._values: dict[str, dict[Labels, float]] = defaultdict(dict)
        for counter, amount in table.items():
            name, *labels = counter.decode().split(_SEPARATOR)
            self._values[name][tuple(labels)] = float(amount)

    def counter(self, name: str) -> Mapping[Labels, float]:
        """Return the amounts of a counter by its labels."""
        return self._values.get(name, {})

    def histogram(self, name: str) -> Mapping[Labels, HistogramCounts]:
        """Return a histogram by its labels."""
        found: dict[Labels, HistogramCounts] = defaultdict(HistogramCounts)
        for (*labels, place), amount in self.counter(name).items():
            counts = found[tuple(labels)]
            if place == _SUM:
                counts.sum = amount
            else:
                counts.buckets[int(place)] = amount
        return found


def read_counts(redis: Redis) -> MetricCounts:
    """Read all counters.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    return MetricCounts(cast("dict[bytes, bytes]", redis.hgetall(keys.metric_counts())))


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """What one key has used in one day: `day` is in days since the epoch, `key_id` empty where there are no keys."""

    day: int
    tenant: str
    key_id: str
    items: int
    tokens: int
    device_s: float


def read_usage(redis: Redis, days: int) -> list[KeyUsage]:
    """Return what each key has used in each of the last days, the newest day first.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    today = _today()
    pipeline = redis.pipeline(transaction=False)
    for day in range(today, today - days, -1):
        pipeline.hgetall(keys.usage_day(day))
    found = []
    for back, table in enumerate(pipeline.execute()):
        counts = MetricCounts(table)
        items, tokens, device_s = (counts.counter(name) for name in _USAGE)
        for labels in sorted({*items, *tokens, *device_s}):
            used = int(items.get(labels, 0)), int(tokens.get(labels, 0)), device_s.get(labels, 0.0)
            found.append(KeyUsage(today - back, labels[0], labels[1], *used))
    return found


def _today() -> int:
    return int(time.time() // _DAY_S)
