"""The `Prefer` header, and room for callers that wait for a job.

Owns how many threads may be held by waiting callers: with all of them held, nobody else would be served. Knows no job.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Preferences", "WaitingRoom", "parse_prefer"]

_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,9})\"?")
_LONGEST_WAIT_S = 60


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a caller prefers (RFC 7240).

    Attributes:
        respond_async: queue it, however small it is.
        wait_s: how long the caller would wait; None when it did not say.
    """

    respond_async: bool = False
    wait_s: int | None = None

    @property
    def applied(self) -> dict[str, str]:
        """The `Preference-Applied` header; empty when nothing was preferred."""
        wait = f"wait={self.wait_s}" if self.wait_s is not None else ""
        told = ", ".join(part for part in ("respond-async" if self.respond_async else "", wait) if part)
        return {"Preference-Applied": told} if told else {}


def parse_prefer(header: str) -> Preferences:
    """Read a `Prefer` header; what we do not know is ignored, as the RFC wants it."""
    parts = [part.strip().lower() for part in re.split(r"[,;]", header)]
    waits = [int(match.group(1)) for part in parts if (match := _WAIT.fullmatch(part))]
    return Preferences("respond-async" in parts, min(waits[0], _LONGEST_WAIT_S) if waits else None)


class WaitingRoom:
    """Lets a bounded number of callers wait. Thread-safe."""

    def __init__(self, seats: int) -> None:
        self._seats = threading.BoundedSemaphore(max(1, seats))

    def take(self) -> Callable[[], None] | None:
        """Take a seat and return what gives it back, to be called once; None: there is none."""
        return self._seats.release if self._seats.acquire(blocking=False) else None

    @contextmanager
    def seat(self) -> Iterator[bool]:
        """Take a seat for as long as the block runs; False: none is free, and the caller should not wait."""
        give_back = self.take()
        try:
            yield give_back is not None
        finally:
            if give_back is not None:
                give_back()
