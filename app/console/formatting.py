"""How numbers, times and sizes are written on the console's pages.

Owns the template filters. Everything that is not known is a dash.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

__all__ = ["FILTERS"]

_NOTHING = "–"
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def _count(value: float | None) -> str:
    """Write a whole number: 1,262,101."""
    return _NOTHING if value is None else f"{value:,.0f}"


def _short(value: float | None) -> str:
    """Write a large number short: 21.4 M."""
    if value is None:
        return _NOTHING
    for step, name in _STEPS:
        if value >= step:
            return f"{value / step:.3g} {name}"
    return f"{value:.0f}"


def _duration(seconds: float | None) -> str:
    """Write a time span with its two largest units: 2 h 41 min."""
    if seconds is None:
        return _NOTHING
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    for size, name, smaller, small_name in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {small_name}" if rest and whole < 10 * size else "")
    return f"{whole} s"


def _age(at: float | None) -> str:
    """Write how long ago a time was (seconds since the epoch)."""
    return _NOTHING if at is None else _duration(max(0.0, time.time() - at))


def _size(size_bytes: float | None) -> str:
    """Write a size in bytes: 2.1 GB."""
    return _NOTHING if size_bytes is None else f"{_short(size_bytes)}B"


def _clock(at: float | None) -> str:
    """Write a time of day in UTC, with the date if it is another day's."""
    if at is None:
        return _NOTHING
    moment, now = datetime.fromtimestamp(at, UTC), datetime.now(UTC)
    return moment.strftime("%H:%M:%S" if moment.date() == now.date() else "%Y-%m-%d %H:%M:%S")


def _tail(name: str) -> str:
    """Write the end of an ID, which tells it from others: …48ccdae0."""
    return f"…{name[-8:]}" if len(name) > 12 else name


def _ordinal(position: int) -> str:
    """Write a place in a queue, counted from 0: 2nd."""
    number = position + 1
    ending = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _percent(share: float | None) -> str:
    return _NOTHING if share is None else f"{100 * share:.0f}%"


FILTERS: Mapping[str, Callable[..., str]] = {
    "count": _count,
    "short": _short,
    "duration": _duration,
    "age": _age,
    "size": _size,
    "clock": _clock,
    "tail": _tail,
    "ordinal": _ordinal,
    "percent": _percent,
    "millis": lambda ms: f"{ms:.2g}" if ms < 10 else f"{ms:.0f}",
    "rate": lambda rate: f"{rate:.1f}" if rate < 10 else f"{rate:,.0f}",
}
