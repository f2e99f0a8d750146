"""Waiting in tests for what other threads and processes do: looked for again and again, and never for ever."""

import time
from collections.abc import Callable

__all__ = ["wait_until"]


def wait_until(condition: Callable[[], object], within_s: float = 60, step_s: float = 0.02) -> None:
    """Wait for something to become true."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(step_s)
