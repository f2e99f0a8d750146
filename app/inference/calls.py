"""One call of a synchronous route: answered now, or queued as a job where its caller prefers that.

Owns the reading of the headers that say so, and the short way on which plain calls are answered without Flask: its
request context, routing and hooks were half of what a small call costs a web process. What is asked and how an answer
looks belong to the route, and are the same on both ways.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from flask import Response, request
from pydantic import BaseModel

from app.access.auth import Authenticator, Tenant, check_rights, current_tenant
from app.http.bodies import parse_json
from app.http.errors import raise_item_errors, render_failure
from app.http.openapi import Api
from app.http.places import PLACE, at_place
from app.http.prefer import parse_prefer
from app.http.request_ids import begin_request, finish_request
from app.http.responses import compress_whole
from app.inference.binary import BINARY_TYPES
from app.jobs.views import render_submission
from app.services import Services, services
from app.submission.orders import Order
from app.submission.payload import PayloadHash
from app.submission.service import SubmissionService
from tasks.engine import Outcomes
from tasks.errors import InvalidRequest
from tasks.jobs.chunking import Item

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["DirectCalls", "SynchronousCall", "answer_or_queue"]

# What shapes the answer of a call. A job has results of its own, so these are refused there and never ignored.
_OF_CALLS_ONLY = ("output_dtype", "top_n")
# What only Flask's way reads.
_NOT_PLAIN = ("HTTP_PREFER", "HTTP_CONTENT_ENCODING", "HTTP_ORIGIN")


@dataclass(frozen=True, slots=True)
class SynchronousCall:
    """What a body asks for.

    Attributes:
        order: what to do.
        items: what to do it with; read once.
        count: how many they are. Millions of items are seconds of work, so too many are refused before they are made.
        body: the call as it was read; an `Idempotency-Key` stands for it.
        render: makes the answer of outcomes, without failed items unless they are wanted.
        item_errors: whether the answer has a place for failed items; else the first of them fails the call.
    """

    order: Order
    items: Iterable[Item]
    count: int
    body: BaseModel
    render: Callable[[Outcomes], Response]
    item_errors: bool = False


def answer_or_queue(call: SynchronousCall) -> Response:
    """Return the rendered outcomes or, with `Prefer: respond-async`, the job that was made of the call.

    Raises:
        tasks.errors.TwolaneError: as `SubmissionService.answer` and `.submit`; the error of the first failed item.
    """
    live, preferences = services(), parse_prefer(request.headers.get("Prefer", ""))
    submission = SubmissionService(live, current_tenant())
    if not preferences.respond_async:
        return _answer(submission, call)
    _refuse_fields_of_calls(call.body)
    payload = PayloadHash.of_json(request.headers.get("Idempotency-Key"), call.body)
    return render_submission(live, submission.submit(call.order, call.items, payload.settle, queue=True), preferences)


def _answer(submission: SubmissionService, call: SynchronousCall) -> Response:
    submission.require_few(call.order, call.count)
    outcomes = submission.answer(call.order, list(call.items))
    if not call.item_errors:
        raise_item_errors(outcomes.errors)
    response = call.render(outcomes)
    response.headers["x-model-fingerprint"] = outcomes.fingerprint
    response.headers["x-truncated-items"] = str(np.count_nonzero(outcomes.truncated))
    return response


class _Route(NamedTuple):
    schema: type[BaseModel]
    describe: Callable[[Any, Services, Tenant], SynchronousCall]


class DirectCalls:
    """Answers plain calls of an app without Flask; whatever is not plain is left to Flask.

    Args:
        app: whose answers are compressed.
        live: what calls need.
        authenticator: finds their tenants.
        note: counts an answer: response, method, route, start by `time.perf_counter()`, name of the tenant.
    """

    def __init__(
        self,
        app: Api,
        live: Services,
        authenticator: Authenticator,
        note: Callable[[Response, str, str, float, str], None],
    ) -> None:
        self._app, self._live = app, live
        self._authenticator = authenticator
        self._note = note

    def add(
        self, path: str, schema: type[BaseModel], describe: Callable[[Any, Services, Tenant], SynchronousCall]
    ) -> None:
        """Answer calls of this path, whose bodies have this schema."""
        self._app.direct[path] = partial(self._enter, path, _Route(schema, describe))

    def _enter(
        self, path: str, route: _Route, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> list[bytes] | None:
        """Answer a request with a small body that has its place; None: it is none for here, and Flask may read it."""
        if environ["REQUEST_METHOD"] != "POST" or any(name in environ for name in _NOT_PLAIN):
            return None
        if environ.get("HTTP_ACCEPT", "") in BINARY_TYPES:
            return None
        if (fields := _read_plain(environ, self._live.settings.max_body_bytes)) is None:
            return None
        started_s = time.perf_counter()
        begin_request(environ.get("HTTP_X_REQUEST_ID", ""), environ.get("HTTP_TRACEPARENT", ""))
        tenant: Tenant | None = None
        try:
            self._authenticator.check_caller(environ)
            tenant = self._authenticator.resolve_tenant(
                environ.get("HTTP_AUTHORIZATION", ""), environ.get("HTTP_API_KEY", "")
            )
            with at_place(environ[PLACE]):
                check_rights(tenant, "POST", path)
                response = self._answer(route, tenant, fields)
        except Exception as error:  # noqa: BLE001 - the edge of this way: every failure is an answer
            response = render_failure(error)
        response = compress_whole(self._app, environ, response)
        if tenant is not None and self._live.limiter is not None:
            self._live.limiter.add_headers(tenant, response)
        finish_request(response, "POST", path, started_s)
        self._note(response, "POST", path, started_s, tenant.name if tenant is not None else "")
        pieces = list(response.iter_encoded())
        start_response(response.status, response.headers.to_wsgi_list())
        return pieces

    def _answer(self, route: _Route, tenant: Tenant, fields: dict[str, Any]) -> Response:
        live = self._live
        if live.limiter is not None:
            live.limiter.charge(tenant, "requests")
        body = route.schema.model_validate(fields)
        return _answer(SubmissionService(live, tenant), route.describe(body, live, tenant))


def _read_plain(environ: "WSGIEnvironment", limit_bytes: int) -> dict[str, Any] | None:
    """Return the body of a plain call; None: it is no such, and can be read again from the beginning."""
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > limit_bytes:
        return None
    body = environ["wsgi.input"].read(length)
    try:
        fields = parse_json(body) if len(body) == length else None
    except InvalidRequest:
        fields = None
    if fields is not None and not fields.get("stream"):
        return fields
    environ["wsgi.input"] = _Replayed(body, environ["wsgi.input"])
    return None


class _Replayed:
    """A body of which a part was read already."""

    def __init__(self, begun: bytes, rest: Any) -> None:
        self._begun, self._rest = begun, rest

    def read(self, size: int) -> bytes:
        """Return so many bytes or, at the end, fewer."""
        begun, self._begun = self._begun[:size], self._begun[size:]
        return begun or self._rest.read(size)


def _refuse_fields_of_calls(body: BaseModel) -> None:
    for name in _OF_CALLS_ONLY:
        if getattr(body, name, None) not in {None, "float", "float32"}:
            raise InvalidRequest(f"{name} shapes the answer of a call and has no place in a queued job", param=name)
