"""What a key may use up: requests and tokens per minute, and items in the queue.

Owns the counters and the `x-ratelimit-*` headers. The counters are sliding windows of the `limits` library (the engine
of Flask-Limiter) in the same Redis, so that they hold across web processes and run by the server's clock. When they
cannot be read, the request is refused: a limit never fails open. The library is imported when a limiter is made: a
server without keys has none, and starts without it.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from flask import Flask, Response, g
from redis import Redis

from app.access.auth import Tenant
from tasks import keys
from tasks.errors import RateLimited, StoreUnavailable, TooLarge

__all__ = ["Limiter", "WindowUsage", "limit"]

T = TypeVar("T")
Kind = Literal["requests", "tokens"]
_KINDS: tuple[Kind, ...] = ("requests", "tokens")
_WINDOW_S = 60


@dataclass(frozen=True, slots=True)
class WindowUsage:
    """A sliding window as the library counts it: this minute's amount, and the last minute's by the part still in view.

    Attributes:
        previous: amount of the last minute.
        previous_left_s: how much of the last minute is still in view, at most 60.
        current: amount of this minute.
        current_left_s: time until this minute is out of view, at most 120.
    """

    previous: int
    previous_left_s: float
    current: int
    current_left_s: float

    @property
    def amount(self) -> int:
        """What counts as used now."""
        return math.floor(self.previous * self.previous_left_s / _WINDOW_S) + self.current

    def wait_s(self, most: int, amount: int) -> float:
        """Return the time until an amount (at most `most`) fits under the limit; 0 when it fits now."""
        if self.amount + amount <= most:
            return 0.0
        turn_s = max(0.0, self.current_left_s - _WINDOW_S)
        room = most - amount - self.current
        if room >= 0:
            return min(turn_s, self.previous_left_s - _WINDOW_S * (room + 1) / self.previous)
        # This minute alone is too much: it has to become the last one and go out of view in part.
        return turn_s + _WINDOW_S - min(_WINDOW_S, _WINDOW_S * (most - amount + 1) / self.current)


class Limiter:
    """Counts what keys use. Thread-safe.

    Args:
        redis: a client whose time-outs are those of the web tier; its connection pool is shared.
    """

    def __init__(self, redis: Redis) -> None:
        from limits import RateLimitItemPerMinute  # noqa: PLC0415 - see the module's docstring
        from limits.errors import StorageError  # noqa: PLC0415 - see the module's docstring
        from limits.storage import RedisStorage  # noqa: PLC0415 - see the module's docstring
        from limits.strategies import SlidingWindowCounterRateLimiter  # noqa: PLC0415 - see the module's docstring

        self._storage = RedisStorage(
            "redis://", connection_pool=redis.connection_pool, key_prefix=keys.limits_prefix(), wrap_exceptions=True
        )
        self._windows = SlidingWindowCounterRateLimiter(self._storage)
        self._item = RateLimitItemPerMinute
        self._error: type[Exception] = StorageError

    def charge(self, tenant: Tenant, kind: Kind, amount: int = 1) -> None:
        """Take an amount off what the key may still use; a key without this limit pays nothing.

        Raises:
            RateLimited: too much was used already; nothing was taken.
            TooLarge: the amount is more than a whole minute's, so that waiting is of no use.
            StoreUnavailable: the counters cannot be reached.
        """
        most = _read_limit(tenant, kind)
        if most is None or amount <= 0:
            return
        if amount > most:
            raise TooLarge(f"This request needs {amount} {kind}; your key's limit is {most} {kind} per minute.")
        if not self._ask(lambda: self._windows.hit(self._item(most), tenant.key_id, kind, cost=amount)):
            wait_s = self.measure(tenant, kind, most).wait_s(most, amount)
            raise RateLimited(f"Rate limit reached: {most} {kind} per minute.", retry_after_s=wait_s)

    def measure(self, tenant: Tenant, kind: Kind, most: int) -> WindowUsage:
        """Return what the key has used of a limit.

        Raises:
            StoreUnavailable: the counters cannot be reached.
        """
        name = self._item(most).key_for(tenant.key_id, kind)
        return WindowUsage(*self._ask(lambda: self._storage.get_sliding_window(name, _WINDOW_S)))

    def write_headers(self, tenant: Tenant) -> dict[str, str]:
        """Return the `x-ratelimit-*` headers of the key's limits, spelled as OpenAI does; none without limits.

        Raises:
            StoreUnavailable: the counters cannot be reached.
        """
        headers: dict[str, str] = {}
        for kind in _KINDS:
            most = _read_limit(tenant, kind)
            if most is not None:
                usage = self.measure(tenant, kind, most)
                headers[f"x-ratelimit-limit-{kind}"] = str(most)
                headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, most - usage.amount))
                headers[f"x-ratelimit-reset-{kind}"] = f"{math.ceil(usage.wait_s(most, most))}s"
        return headers

    def add_headers(self, tenant: Tenant, response: Response) -> None:
        """Put the key's limits on an answer."""
        # The answer is made already; the next request is the one to be refused.
        with contextlib.suppress(StoreUnavailable):
            response.headers.update(self.write_headers(tenant))

    def _ask(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except self._error as error:
            raise StoreUnavailable("The rate limits cannot be checked now.") from error


def limit(app: Flask, limiter: Limiter) -> None:
    """Charge every request of this app that has a tenant, and put the key's limits on its answer.

    Call it after `app.access.auth.protect`: the hooks run in the order in which they were registered.
    """

    def charge_request() -> None:
        if "tenant" in g:
            limiter.charge(g.tenant, "requests")

    def add_headers(response: Response) -> Response:
        if "tenant" in g:
            limiter.add_headers(g.tenant, response)
        return response

    app.before_request(charge_request)
    app.after_request(add_headers)


def _read_limit(tenant: Tenant, kind: Kind) -> int | None:
    return tenant.requests_per_minute if kind == "requests" else tenant.tokens_per_minute
