"""What the client and its asynchronous twin have in common around one call.

Owns the address, the headers and time limits of a request, and the reading of its answer.
"""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar, cast

import httpx
import msgspec

from twolane.answers import ItemError, Job, ResultItem
from twolane.errors import ServerUnreachable, UnexpectedAnswer, read_error
from twolane.requests import Call

__all__ = ["DEFAULT_URL", "EventReader", "ResultReader", "Target", "read_answer", "read_version"]

T = TypeVar("T")
DEFAULT_URL = "http://127.0.0.1:8000"
_CONNECT_S = 10.0


class Target:
    """Where a server is and how it is asked.

    Args:
        base_url: with or without `/v1` at its end; None: the variable TWOLANE_URL, or this machine.
        api_key: None: the variable TWOLANE_API_KEY, if there is one.
        timeout_s: longest silence of the server within a call.
    """

    def __init__(self, base_url: str | None, api_key: str | None, timeout_s: float) -> None:
        address = (base_url or os.environ.get("TWOLANE_URL") or DEFAULT_URL).rstrip("/").removesuffix("/v1")
        self.url = httpx.URL(address)
        if self.url.scheme not in {"http", "https"} or not self.url.host:
            raise ValueError("the address of the server must begin with http:// or https://")
        self.timeout_s = timeout_s
        self.headers = {"User-Agent": f"twolane-python/{read_version()}"}
        key = api_key if api_key is not None else os.environ.get("TWOLANE_API_KEY", "")
        if key:
            self.headers["Authorization"] = f"Bearer {key}"

    def options(self) -> dict[str, Any]:
        """Return what an httpx client is made with."""
        return {"base_url": self.url, "headers": self.headers, "timeout": self._timeout(0.0)}

    def arguments(self, call: Call[Any]) -> dict[str, Any]:
        """Return what httpx builds the request of a call from."""
        return {
            "method": call.method,
            "url": call.path,
            "params": dict(call.params) or None,
            "headers": dict(call.headers),
            "content": call.content,
            "timeout": self._timeout(call.wait_s),
        }

    def _timeout(self, wait_s: float) -> httpx.Timeout:
        return httpx.Timeout(self.timeout_s + wait_s, connect=_CONNECT_S)


class EventReader:
    """Reads a job's server-sent events (WHATWG HTML, section 9.2) line by line."""

    def __init__(self) -> None:
        self.last_id = ""
        self._data: list[str] = []

    def feed(self, line: str) -> Job | None:
        """Take one line; return the job when it ends an event."""
        name, _, value = line.partition(":")
        if name == "id":
            self.last_id = value.strip()
        elif name == "data":
            self._data.append(value.removeprefix(" "))
        elif not line and self._data:
            data, self._data = "\n".join(self._data), []
            return _decode(data.encode(), Job)
        return None


class _LineKind(msgspec.Struct):
    """What tells an item from the line that ends a stream."""

    index: int | None = None
    complete: bool = False
    error: ItemError | None = None


class ResultReader:
    """Reads results that are followed, line by line, and knows where to go on.

    Args:
        after: the index behind which they begin.
    """

    def __init__(self, after: int) -> None:
        self.after = after
        self.complete = False

    def feed(self, line: str) -> ResultItem | None:
        """Take one line; return the item in it, if there is one.

        Raises:
            ServerUnreachable: the server could not read on.
        """
        if not line.strip():
            return None
        data = line.encode()
        kind = _decode(data, _LineKind)
        if kind.index is None:
            if kind.error is not None:
                raise ServerUnreachable(kind.error.message)
            self.complete = kind.complete
            return None
        self.after = kind.index
        return _decode(data, ResultItem)


def read_answer(call: Call[T], response: httpx.Response) -> T:
    """Return the body of a complete answer.

    Raises:
        ApiError: the server refused.
        UnexpectedAnswer: the body is of another shape.
    """
    if not response.is_success:
        raise read_error(response.status_code, response.headers, response.content)
    if call.answer is bytes:
        return cast("T", response.content)
    return _decode(response.content, call.answer)


def read_version() -> str:
    """Return the version of this package."""
    try:
        return version("twolane")
    except PackageNotFoundError:  # run from a checkout without an installation
        return "0"


def _decode(data: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=shape)
    except msgspec.MsgspecError as error:
        raise UnexpectedAnswer(f"the server's answer is not what this version reads: {error}") from None
