"""When a call is tried again, and how long to wait before.

Owns the decision alone: nothing is sent and nobody sleeps here, so that both clients share it.
"""

import random
import time

import httpx

from twolane.errors import ApiError, ServerUnreachable, TwolaneError

__all__ = ["Retries", "describe_failure"]

_FIRST_S = 0.25
_LONGEST_S = 15.0


class Retries:
    """The tries of one call.

    Args:
        for_s: how long failures are answered with another try, in seconds since the first of them; 0: never.
    """

    def __init__(self, for_s: float) -> None:
        self._for_s = for_s
        self._until_s: float | None = None
        self._tries = 0

    def pause_after(self, error: TwolaneError) -> float:
        """Return how many seconds to wait before the next try.

        Raises:
            TwolaneError: the error itself: another try would end alike, or it was tried for long enough.
        """
        if isinstance(error, ApiError) and not error.retryable:
            raise error
        now_s = time.monotonic()
        self._until_s = now_s + self._for_s if self._until_s is None else self._until_s
        # With jitter: many clients lose one server at the same moment.
        pause_s: float = min(_LONGEST_S, _FIRST_S * 2.0**self._tries) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        self._tries += 1
        if isinstance(error, ApiError) and error.retry_after_s is not None:
            pause_s = error.retry_after_s
        if now_s + pause_s > self._until_s:
            raise error
        return pause_s


def describe_failure(base_url: httpx.URL, error: httpx.HTTPError) -> ServerUnreachable:
    """Return what a failed connection means, without the user name and password of the address."""
    origin = f"{base_url.scheme}://{base_url.host}" + (f":{base_url.port}" if base_url.port else "")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ServerUnreachable(f"no Twolane server answers at {origin}: {error or type(error).__name__}")
    if isinstance(error, httpx.TimeoutException):
        return ServerUnreachable(f"{origin} did not answer in time")
    return ServerUnreachable(f"the connection to {origin} broke: {error or type(error).__name__}")
