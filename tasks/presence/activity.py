"""What happened of late in the whole installation: calls and how long they took, refusals, tokens, failed items.

Owns counters of each minute and each hour in Redis, to which all web processes and workers add, and their reading. They
are for people who look now; history belongs in Prometheus.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from redis import Redis

from tasks import keys
from tasks.periodic import PeriodicThread

__all__ = ["Activity", "ActivityRecorder", "hour_now", "minute_now", "read_activity"]

_FLUSH_S = 2.0
_MINUTES_KEPT_S, _LATELY_MIN, _PLOTTED_MIN, _HOURS = 2 * 3600, 5, 60, 24
# Buckets of latency: four for each doubling, so a percentile is right within nine per cent.
_PER_DOUBLING = 4


@dataclass(frozen=True, slots=True)
class Activity:
    """See the module.

    Attributes:
        calls_per_s: small calls that were answered, over five minutes.
        p50_ms, p99_ms: what they took in the web process; None: there were none.
        refused: answers 429, 503 and 504 of five minutes, by error code and tenant (empty: nobody's).
        failed: failed items of 24 hours by code.
        computed: items of 24 hours.
        tokens: tokens that chunks read in each of the last sixty minutes, oldest first; the last one is not over yet.
        first_minute: of those, in minutes since the epoch.
    """

    calls_per_s: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None
    refused: Mapping[tuple[str, str], int] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    computed: int = 0
    tokens: tuple[int, ...] = ()
    first_minute: int = 0


class ActivityRecorder:
    """Counts in this process, and adds to Redis every two seconds, so that a call pays nothing. Thread-safe.

    Args:
        redis: a client that gives up quickly.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._thread = PeriodicThread(self.flush, _FLUSH_S, "activity")

    def start(self) -> None:
        """Add to Redis from now on, for as long as this process lives."""
        self._thread.start()

    def note_call(self, took_s: float) -> None:
        """Count one small call that was answered."""
        bucket = round(_PER_DOUBLING * math.log2(max(took_s * 1000, 0.1)))
        with self._lock:
            self._counts[f"call:{bucket}"] += 1

    def note_refusal(self, code: str, tenant: str) -> None:
        """Count one answer that sent a caller away."""
        with self._lock:
            self._counts[f"refused:{code}:{tenant}"] += 1

    def flush(self) -> None:
        """Add what was counted.

        Raises:
            redis.RedisError: Redis does not answer; what was counted meanwhile is given up.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        name = keys.activity_minute(minute_now())
        pipeline = self._redis.pipeline(transaction=False)
        for counter, amount in counts.items():
            pipeline.hincrby(name, counter, amount)
        pipeline.expire(name, _MINUTES_KEPT_S)
        pipeline.execute()


def minute_now() -> int:
    """Return the minute of the counters that count now."""
    return int(time.time() // 60)


def hour_now() -> int:
    """Return the hour of the counters that count now."""
    return int(time.time() // 3600)


def read_activity(redis: Redis) -> Activity:
    """Read the counters.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    minute, hour = minute_now(), hour_now()
    pipeline = redis.pipeline(transaction=False)
    for back in range(_LATELY_MIN):
        pipeline.hgetall(keys.activity_minute(minute - back))
    for back in range(_HOURS):
        pipeline.hgetall(keys.activity_hour(hour - back))
    first = minute - _PLOTTED_MIN + 1
    for one in range(first, minute + 1):
        pipeline.hget(keys.activity_minute(one), "tokens")
    answers = pipeline.execute()
    lately, daily = _add(answers[:_LATELY_MIN]), _add(answers[_LATELY_MIN : _LATELY_MIN + _HOURS])
    calls = {int(name[5:]): count for name, count in lately.items() if name.startswith("call:")}
    refused = {
        (code, tenant): count
        for name, count in lately.items()
        if name.startswith("refused:")
        for _, code, tenant in [name.split(":", 2)]
    }
    return Activity(
        # The newest minute has only begun.
        calls_per_s=sum(calls.values()) / (60 * (_LATELY_MIN - 1) + time.time() % 60),
        p50_ms=_percentile(calls, 0.5),
        p99_ms=_percentile(calls, 0.99),
        refused=refused,
        failed={name[7:]: count for name, count in daily.items() if name.startswith("failed:")},
        computed=daily["items"],
        tokens=tuple(int(tokens or 0) for tokens in answers[_LATELY_MIN + _HOURS :]),
        first_minute=first,
    )


def _add(tables: list[dict[bytes, bytes]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for table in tables:
        total.update({name.decode(): int(count) for name, count in table.items()})
    return total


def _percentile(buckets: Mapping[int, int], share: float) -> float | None:
    """Return the milliseconds under which this share of the calls stayed."""
    left = share * sum(buckets.values())
    for bucket, count in sorted(buckets.items()):
        left -= count
        if left <= 0:
            return float(2 ** (bucket / _PER_DOUBLING))
    return None
