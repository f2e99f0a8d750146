"""The `Prefer` header (RFC 7240): what a caller would like, and which of it was applied."""

from dataclasses import dataclass

from werkzeug.http import parse_dict_header

__all__ = ["Preferences", "parse_prefer"]

_LONGEST_WAIT_S = 60


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a caller prefers.

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
        applied = ", ".join(part for part in ("respond-async" if self.respond_async else "", wait) if part)
        return {"Preference-Applied": applied} if applied else {}


def parse_prefer(header: str) -> Preferences:
    """Read a `Prefer` header; what we do not know is ignored, as the RFC wants it."""
    # A parameter of a preference (`respond-async; foo=bar`) is none of ours, so it may stand beside the preferences.
    wishes = {name.lower(): value for name, value in parse_dict_header(header.replace(";", ",")).items()}
    wait = wishes.get("wait") or ""
    wait_s = min(int(wait), _LONGEST_WAIT_S) if wait.isascii() and wait.isdecimal() else None
    return Preferences("respond-async" in wishes, wait_s)
