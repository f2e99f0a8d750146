"""Request ids and the one log line per request.

Owns the id of the request in progress and the headers that every answer carries. Logs no text content: neither
bodies nor query strings, since a query string may hold a query.
"""

import logging
import random
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

from flask import Flask, Response, g, request

from app.http.spans import begin_span, finish_span
from config.logging import configure_logging
from config.settings import Settings

__all__ = [
    "RequestIdFilter",
    "begin_request",
    "choose_request_id",
    "configure_request_logging",
    "current_request_id",
    "finish_request",
    "install_tracing",
    "note_facts",
]

_log = logging.getLogger(__name__)
_request_id: ContextVar[str] = ContextVar("twolane_request_id", default="")
# What else the line of the request in progress has.
_facts: ContextVar[Mapping[str, object]] = ContextVar("twolane_request_facts", default=MappingProxyType({}))
# Asked every few seconds by machines. "Not ready yet" is an answer, too: seen only when they break.
_PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics"})
# A foreign id goes into our logs and headers: only what can neither break a line nor a header.
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+/=-]{0,127}")


def current_request_id() -> str:
    """Return the id of the request in progress, or an empty string outside of one."""
    return _request_id.get()


def choose_request_id(asked: str) -> str:
    """Return the id that a caller asked for, or a new one where it asked for none that we can log."""
    return asked if _SANE_ID.fullmatch(asked) else f"req_{random.getrandbits(128):032x}"


class RequestIdFilter(logging.Filter):
    """Puts the id of the request in progress on every record that a handler writes, of libraries too.

    Args:
        in_text: also at the end of the message, for formats that show nothing but the message.
    """

    def __init__(self, *, in_text: bool) -> None:
        super().__init__()
        self._in_text = in_text

    def filter(self, record: logging.LogRecord) -> bool:
        """Complete the record; it is always written."""
        if (request_id := current_request_id()) and not hasattr(record, "request_id"):
            record.request_id = request_id
            if self._in_text:
                record.msg = f"{record.msg} [{request_id}]"
        return True


def configure_request_logging(settings: Settings, process: str) -> None:
    """Set up the logging of a process that answers requests: one line each, and the request's ID on every line."""
    configure_logging(settings, process, batched=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(RequestIdFilter(in_text=settings.log_format == "text"))


def install_tracing(app: Flask) -> None:
    """Give every request of this app an id, and every answer its headers and log line."""
    app.before_request(_begin)
    app.after_request(_finish)


def begin_request(asked: str, traceparent: str = "") -> None:
    """Give the request that this thread begins the ID that its caller asked for, or a new one; begin its span."""
    # A thread serves one request after another: each overwrites the id of the one before.
    _request_id.set(choose_request_id(asked))
    _facts.set({})
    begin_span(traceparent)


def note_facts(**facts: object) -> None:
    """Add fields to the log line of the request in progress: `tenant`, `key`, `job`, `model`, `items`, `tokens`."""
    _facts.set({**_facts.get(), **facts})


def finish_request(response: Response, method: str, route: str, started_s: float) -> None:
    """Put the headers on the answer that every answer carries, write its log line and end its span.

    Args:
        response: the answer.
        method: of the request.
        route: the path as it was registered.
        started_s: `time.perf_counter()` at which it began.
    """
    response.headers["x-request-id"] = current_request_id()
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    finish_span(method, route, response.status_code, _facts.get())
    answered = response.status_code in {200, 503}
    level = logging.DEBUG if route in _PROBES and answered else logging.INFO
    if not _log.isEnabledFor(level):
        return
    took_ms = (time.perf_counter() - started_s) * 1000
    status = response.status_code
    fields = {"method": method, "route": route, "status": status, "duration_ms": round(took_ms, 1), **_facts.get()}
    _log.log(level, "%s %s %d %.1f ms", method, route, status, took_ms, extra=fields)


def _begin() -> None:
    begin_request(request.headers.get("x-request-id", ""), request.headers.get("traceparent", ""))
    g.started_s = time.perf_counter()


def _finish(response: Response) -> Response:
    if job_id := (request.view_args or {}).get("job_id"):
        note_facts(job=job_id)
    finish_request(response, request.method, _route(), g.get("started_s", time.perf_counter()))
    return response


def _route() -> str:
    """Return the path as it was registered where there is one: an unknown path is untrusted text."""
    return request.url_rule.rule if request.url_rule is not None else "(unknown route)"
