"""The server's clock, so that a worker or web process whose own clock is wrong expires nothing too early.

Owns the measured offset between the local monotonic clock and the server's time.
"""

import threading
import time

from redis import Redis, RedisError

__all__ = ["ServerClock"]

_SAMPLES = 3
_REFRESH_S = 60.0


class ServerClock:
    """Tells the server's time without asking it each time. Thread-safe."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._lock = threading.Lock()
        self._offset_s: float | None = None
        self._measured_at_s = 0.0

    def now_ms(self) -> int:
        """Return the server's time in ms since the epoch.

        Raises:
            redis.RedisError: the server was never reached; once it was, the last offset serves on.
        """
        with self._lock:
            offset_s, age_s = self._offset_s, time.monotonic() - self._measured_at_s
        if offset_s is None or age_s > _REFRESH_S:
            offset_s = self._refresh(offset_s)
        return int((time.monotonic() + offset_s) * 1000)

    def _refresh(self, last_s: float | None) -> float:
        try:
            return self._measure()
        except RedisError:
            if last_s is None:
                raise
            return last_s

    def _measure(self) -> float:
        """Keep the offset of the fastest of a few round trips (after Cristian 1989)."""
        best_trip_s, best_offset_s = float("inf"), 0.0
        for _ in range(_SAMPLES):
            sent_s = time.monotonic()
            seconds, micros = self._redis.time()
            trip_s = time.monotonic() - sent_s
            if trip_s < best_trip_s:
                best_trip_s = trip_s
                best_offset_s = seconds + micros / 1e6 - sent_s - trip_s / 2
        with self._lock:
            self._offset_s, self._measured_at_s = best_offset_s, time.monotonic()
        return best_offset_s
