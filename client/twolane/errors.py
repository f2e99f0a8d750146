"""What can go wrong between a program and a Twolane server.

Owns the tree of exceptions and the reading of the server's error body. Every message is one sentence for the person at
the other end and holds no API key.
"""

from collections.abc import Mapping

import msgspec

__all__ = [
    "ApiError",
    "InputError",
    "ItemsFailed",
    "JobEnded",
    "MissingExtra",
    "ServerUnreachable",
    "SinkError",
    "TwolaneError",
    "UnexpectedAnswer",
    "WebhookError",
    "first_line",
    "read_error",
]


class TwolaneError(Exception):
    """The base of all errors that this package raises on purpose."""


class ApiError(TwolaneError):
    """The server refused.

    Attributes:
        status: HTTP status.
        code: permanent name of the error, as in the server's list of errors; None: it had none.
        param: the field that is to blame.
        request_id: for the operator's log.
        retryable: whether the very same request may succeed later.
        retry_after_s: when, if the server said so.
    """

    def __init__(self, message: str, status: int, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.request_id = ""
        self.retryable = False
        self.retry_after_s: float | None = None


class ServerUnreachable(TwolaneError):
    """No answer came: the server is away, or the connection broke."""


class UnexpectedAnswer(TwolaneError):
    """What answered does not speak this API."""


class JobEnded(TwolaneError):
    """A job ended without its results: it was cancelled, or its time was over."""

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(f"job {job_id} is {status}; run the same again to have the rest computed")
        self.job_id = job_id
        self.status = status


class ItemsFailed(TwolaneError):
    """Some texts have no vector.

    Attributes:
        errors: code and message by the index of the item.
    """

    def __init__(self, errors: Mapping[int, tuple[str, str]]) -> None:
        index, (code, message) = next(iter(errors.items()))
        super().__init__(f"{len(errors)} items failed, the first of them item {index}: {message} ({code})")
        self.errors = dict(errors)


class InputError(TwolaneError):
    """A corpus cannot be read, or a row of it cannot be sent. The message says which, and what would be taken."""


class SinkError(TwolaneError):
    """The results cannot be written where they shall go, or what lies there does not belong to this run."""


class MissingExtra(TwolaneError):
    """A part of this package needs a library that is not installed."""

    def __init__(self, extra: str) -> None:
        super().__init__(f"this needs more than is installed: pip install 'twolane[{extra}]'")


class WebhookError(TwolaneError):
    """A webhook call is not from the server that shares the secret, or it is an old one sent again."""


class _Fields(msgspec.Struct):
    message: str = ""
    code: str | None = None
    param: str | None = None


class _Body(msgspec.Struct):
    error: _Fields


# What a proxy in front answers while the server behind it is started again, and the server when it is busy.
_RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


def first_line(error: BaseException) -> str:
    """Return what a library's error says in its first line, for a sentence of ours; its class if it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """Return the error that an answer other than 2xx describes."""
    try:
        fields = msgspec.json.decode(body, type=_Body).error
    except msgspec.MsgspecError:
        fields = _Fields()
    message = fields.message or f"the server answered {status}"
    error = ApiError(message, status, code=fields.code, param=fields.param)
    error.request_id = headers.get("x-request-id", "")
    error.retryable = status in _RETRYABLE and headers.get("x-should-retry", "") != "false"
    seconds = headers.get("retry-after", "")
    error.retry_after_s = float(seconds) if seconds.isascii() and seconds.isdecimal() else None
    return error
