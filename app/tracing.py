"""Request ids and the one log line per request.

Owns the id of the request in progress and the headers that every answer carries. Logs no text content: neither
bodies nor query strings, since a query string may hold a query.
"""

import logging
import re
import time
import uuid
from contextvars import ContextVar

from flask import Flask, Response, g, request

__all__ = ["current_request_id", "install_tracing"]

_log = logging.getLogger(__name__)
_request_id: ContextVar[str] = ContextVar("twolane_request_id", default="")
# A foreign id goes into our logs and headers: only what can neither break a line nor a header.
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+/=-]{0,127}")


def current_request_id() -> str:
    """Return the id of the request in progress, or an empty string outside of one."""
    return _request_id.get()


def install_tracing(app: Flask) -> None:
    """Give every request of this app an id, and every answer its headers and log line."""
    app.before_request(_begin)
    app.after_request(_finish)


def _begin() -> None:
    asked = request.headers.get("x-request-id", "")
    _request_id.set(asked if _SANE_ID.fullmatch(asked) else f"req_{uuid.uuid4().hex}")
    g.started_s = time.perf_counter()


def _finish(response: Response) -> Response:
    response.headers["x-request-id"] = current_request_id()
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    took_ms = (time.perf_counter() - g.get("started_s", time.perf_counter())) * 1000
    _log.info(
        "%s %s %d %.1fms request_id=%s", request.method, _route(), response.status_code, took_ms, current_request_id()
    )
    return response


def _route() -> str:
    """Return the path as it was registered where there is one: an unknown path is a stranger's text."""
    return request.url_rule.rule if request.url_rule is not None else "(unknown route)"
