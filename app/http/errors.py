"""Errors as HTTP answers: the only file that knows HTTP status numbers of failures.

Owns the one envelope of every non-2xx answer and the table from error class to status. Owns no error class: the tree is
in `tasks.errors`.
"""

import difflib
import logging
import math
import traceback
from collections.abc import Mapping
from typing import Any

import orjson
from flask import Flask, Response, current_app, request
from flask_openapi3.models import OPENAPI3_REF_PREFIX
from flask_openapi3.types import ResponseDict
from pydantic import BaseModel, ValidationError
from redis import RedisError
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.exceptions import NotFound as HTTPNotFound

from app.http.bodies import explain_invalid
from app.http.request_ids import current_request_id
from tasks.engine import ItemError
from tasks.errors import (
    AuthenticationError,
    BodyTooSlow,
    CapacityError,
    ConfigError,
    Conflict,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineClosed,
    Expired,
    IdempotencyMismatch,
    ItemFailed,
    LaneFull,
    ModelNotFound,
    NotFinished,
    NotFound,
    NoWorker,
    PermissionDenied,
    RateLimited,
    RequestError,
    StoreUnavailable,
    TooLarge,
    TwolaneError,
    WorkError,
)
from tasks.redis_failures import explain_failure, words_of

__all__ = [
    "ErrorBody",
    "RangeNotSatisfiable",
    "documented",
    "error_code",
    "install_errors",
    "not_ready_response",
    "raise_item_errors",
    "refuse_invalid_body",
    "render_error",
    "render_failure",
    "status_of",
]

_log = logging.getLogger(__name__)


class RangeNotSatisfiable(RequestError):
    """The Range header asks for bytes behind the end."""

    code = "range_not_satisfiable"


# The nearest class on the way up the tree decides, so that a new error class has a status from the start.
_STATUS: Mapping[type[TwolaneError], int] = {
    TwolaneError: 500,
    RequestError: 400,
    BodyTooSlow: 408,
    AuthenticationError: 401,
    PermissionDenied: 403,
    ModelNotFound: 404,
    NotFound: 404,
    Conflict: 409,
    NotFinished: 409,
    Expired: 410,
    TooLarge: 413,
    RangeNotSatisfiable: 416,
    IdempotencyMismatch: 422,
    CapacityError: 503,
    LaneFull: 429,
    RateLimited: 429,
    DeadlineExceeded: 504,
    WorkError: 500,
    EngineClosed: 503,
    ConfigError: 500,
}
# What the SDKs try again by themselves; a permanent failure among them has to say so.
_RETRIED_BY_CLIENTS = frozenset({408, 409, 429}) | frozenset(range(500, 600))
_ANYWHERE = (RequestError, AuthenticationError, PermissionDenied, RateLimited, StoreUnavailable, TwolaneError)
_COMPUTING = (ModelNotFound, TooLarge, IdempotencyMismatch, LaneFull, NoWorker, DeadlineExceeded, WorkError)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Of an address in a message: it is untrusted text.
_PATH_CHARS = 100
_ALIKE = 0.7
_HTTP_CODES = {404: "route_not_found", 405: "method_not_allowed", 413: TooLarge.code}
_RETRY_AFTER_MIN_S, _RETRY_AFTER_MAX_S = 1, 60


class _ErrorResponse(Response):
    """An answer that knows the code of its error, for the metrics."""

    code = ""


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail
    detail: str


def documented(
    success: type[BaseModel],
    *errors: type[TwolaneError],
    accepted: type[BaseModel] | None = None,
    computing: bool = False,
    extra: ResponseDict | None = None,
) -> ResponseDict:
    """Return the `responses` of a route for its OpenAPI text.

    Args:
        success: body of a 200.
        errors: what this route raises besides what any route may.
        accepted: body of a 202.
        computing: whether it waits for a worker, with all that may come of it.
        extra: answers of other kinds, in OpenAPI's words.
    """
    kinds = {*errors, *_ANYWHERE, *(_COMPUTING if computing else ())}
    bodies: ResponseDict = {200: success}
    if accepted is not None:
        bodies[202] = accepted
    bodies |= extra or {}
    return bodies | {status: _describe_error() for status in sorted({status_of(kind) for kind in kinds})}


def _describe_error() -> dict[str, Any]:
    """Return the OpenAPI text of an error.

    Given the model instead, flask-openapi3 makes its schema anew for each: a third of the web process's start.
    """
    schema = {"$ref": f"{OPENAPI3_REF_PREFIX}/{ErrorBody.__name__}"}
    return {"content": {"application/json": {"schema": schema}}}


def status_of(kind: type[TwolaneError]) -> int:
    """Return the HTTP status of an error class: its own or that of its nearest base."""
    return next(_STATUS[cls] for cls in kind.__mro__ if cls in _STATUS)


def render_error(error: TwolaneError) -> Response:
    """Return the answer for one of our own errors."""
    status = status_of(type(error))
    response = _respond(status, error.message, param=getattr(error, "param", None), code=error.code)
    if isinstance(error, CapacityError | EngineClosed):
        response.headers["Retry-After"] = str(_whole_seconds(getattr(error, "retry_after_s", 1.0)))
    if isinstance(error, AuthenticationError):
        response.headers["WWW-Authenticate"] = "Bearer"
    if status in _RETRIED_BY_CLIENTS and not error.retryable:
        response.headers["x-should-retry"] = "false"
    return response


def error_code(response: Response) -> str:
    """Return the error code in an answer; empty: there is none of ours."""
    return str(getattr(response, "code", ""))


def render_failure(error: Exception) -> Response:
    """Return the answer for anything that a handler raised, outside of Flask too."""
    if isinstance(error, TwolaneError):
        return render_error(error)
    if isinstance(error, ValidationError):
        return refuse_invalid_body(error)
    return _render_store_failure(error) if isinstance(error, RedisError) else _render_unexpected(error)


def refuse_invalid_body(error: ValidationError) -> Response:
    """Return the answer for a body, query or path that does not fit its schema; the first complaint is named."""
    return render_error(explain_invalid(error))


def install_errors(app: Flask) -> None:
    """Give every failure on every path of this app the envelope."""
    app.register_error_handler(TwolaneError, render_error)
    app.register_error_handler(RedisError, _render_store_failure)
    app.register_error_handler(HTTPException, _render_http_exception)
    app.register_error_handler(Exception, _render_unexpected)


def not_ready_response(error: CapacityError, state: Mapping[str, Any]) -> Response:
    """Return the answer of a probe that fails: the envelope, and beside it what a person wants to know."""
    response = render_error(error)
    response.data = orjson.dumps({**orjson.loads(response.data), **state})
    return response


def raise_item_errors(errors: Mapping[int, ItemError]) -> None:
    """Raise the first failure among the items of a synchronous call, which has no place for single failures.

    Raises:
        ContextLengthExceeded: a text was too long and should not be cut.
        ItemFailed: anything else.
    """
    for position, error in sorted(errors.items()):
        if error.code == ContextLengthExceeded.code:
            raise ContextLengthExceeded(error.message, param="input")
        raise ItemFailed(f"item {position}: {error.message}")


def _respond(status: int, message: str, *, param: str | None, code: str | None) -> Response:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}, "detail": message}
    response = _ErrorResponse(orjson.dumps(body), status, mimetype="application/json")
    response.code = code or ""
    return response


def _whole_seconds(seconds: float) -> int:
    return min(max(math.ceil(seconds), _RETRY_AFTER_MIN_S), _RETRY_AFTER_MAX_S)


def _render_store_failure(error: RedisError) -> Response:
    _log.warning("Redis failed: %s", words_of(error))
    return render_error(explain_failure(error))


def _render_http_exception(error: HTTPException) -> Response:
    if error.response is not None:  # made by us or by a library that knows what it wants to say
        return error.response  # type: ignore[return-value] # Flask makes only Flask responses
    status = error.code or 500
    message = _explain_address(error) or error.description or error.name
    response = _respond(status, message, param=None, code=_HTTP_CODES.get(status, RequestError.code))
    # Allow, Content-Range and the like belong to the answer; its old body's type does not.
    for name, value in error.get_headers():
        if name.lower() not in {"content-type", "content-length"}:
            response.headers[name] = value
    return response


def _explain_address(error: HTTPException) -> str:
    """Return what is wrong with the address or the method, and what was probably meant; empty: something else is."""
    asked = f"{request.method} {request.path[:_PATH_CHARS]}"
    if isinstance(error, MethodNotAllowed):
        methods = ", ".join(sorted(set(error.valid_methods or ()) - {"HEAD", "OPTIONS"}))
        return f"{asked}: this address takes {methods} only"
    if not isinstance(error, HTTPNotFound):
        return ""
    rules = sorted({rule.rule for rule in current_app.url_map.iter_rules() if not rule.arguments})
    near = difflib.get_close_matches(request.path[:_PATH_CHARS], rules, n=1, cutoff=_ALIKE)
    return f"there is nothing at {asked}; {f'did you mean {near[0]}? ' if near else ''}/docs lists what there is"


def _render_unexpected(error: Exception) -> Response:
    """The last edge, for what was not foreseen. An exception's message may hold text: only its kind is kept."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    _log.error("unhandled %s\n%s", type(error).__name__, frames)
    message = f"the server failed while it worked on this request; its request id is {current_request_id()}"
    return _respond(500, message, param=None, code=TwolaneError.code)
