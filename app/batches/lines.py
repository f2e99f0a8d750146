"""One line of a batch file: what it asks for.

Owns the reading of a line and of its body, by the same schemas and limits as the routes. A line that is no request at
all is a problem of the whole batch; a request that a route would refuse fails alone, with the route's own answer.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from pydantic import ValidationError

from app.access.auth import Tenant, find_card
from app.batches.plan_file import Answer, EmbeddingsAnswer, RankingAnswer
from app.fields import document_text
from app.http.bodies import explain_invalid, is_broken, load_json, load_json_with_surrogates
from app.http.errors import render_error
from app.inference.schemas import EmbeddingsRequest, RerankRequest
from app.inference.token_ids import read_texts
from app.services import Services
from app.submission.orders import Order, make_order
from app.submission.service import SubmissionService
from tasks.errors import InvalidRequest, TwolaneError
from tasks.files.batches import BatchProblem, Endpoint
from tasks.jobs.chunking import Item

__all__ = ["Call", "Line", "Refusal", "read_call", "read_line"]

_MAX_CUSTOM_ID_CHARS = 512


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is a request. `body` was not looked at yet.

    Attributes:
        broken: what a route would say of its JSON; empty: it is good.
    """

    custom_id: str
    body: dict[str, Any]
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """What a line wants: items for a model, and how its answer is written."""

    order: Order
    items: Sequence[Item]
    answer: Answer


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer that a route gives to such a body: status and envelope."""

    status: int
    body: dict[str, Any]


def read_line(raw: bytes, number: int, endpoint: Endpoint) -> Line | BatchProblem:
    """Return the request of a line, or what is wrong with it."""
    value, broken = _load(raw)
    if not isinstance(value, dict):
        return BatchProblem("invalid_json_line", "This line is not a JSON object in UTF-8.", number)
    custom_id, body = value.get("custom_id"), value.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_CUSTOM_ID_CHARS or is_broken(custom_id):
        complaint = ("custom_id", f"must be a string of 1 to {_MAX_CUSTOM_ID_CHARS} characters.")
    elif value.get("method") != "POST":
        complaint = ("method", "must be POST.")
    elif value.get("url") != endpoint:
        complaint = ("url", f"must be the endpoint of the batch, {endpoint}.")
    elif not isinstance(body, dict):
        complaint = ("body", "must be a JSON object.")
    else:
        return Line(custom_id, body, broken)
    param, message = complaint
    return BatchProblem(f"invalid_{param}", f"{param} {message}", number, param)


def _load(raw: bytes) -> tuple[Any, str]:
    """Return the value of a line, and what is wrong with it though it can be read: half of a surrogate pair."""
    try:
        return load_json(raw), ""
    except orjson.JSONDecodeError as error:
        with contextlib.suppress(ValueError):
            return load_json_with_surrogates(raw), f"the body is not valid JSON in UTF-8: {error.msg}"
    return None, ""


def read_call(line: Line, endpoint: Endpoint, live: Services, tenant: Tenant) -> Call | Refusal:
    """Return what a line asks for, or the answer of a route that refuses it."""
    try:
        if line.broken:
            raise InvalidRequest(line.broken)
        if endpoint == "/v1/rerank":
            call = _read_ranking(RerankRequest.model_validate(line.body), live, tenant)
        else:
            call = _read_embeddings(EmbeddingsRequest.model_validate(line.body), live, tenant)
        items = SubmissionService(live, tenant).inspect(call.order, call.items, queued=True)
    except ValidationError as error:
        response = render_error(explain_invalid(error))
    except TwolaneError as error:
        response = render_error(error)
    else:
        return Call(call.order, items, call.answer)
    return Refusal(response.status_code, orjson.loads(response.data))


def _read_embeddings(body: EmbeddingsRequest, live: Services, tenant: Tenant) -> Call:
    if body.stream:
        raise InvalidRequest("stream is for calls; a line of a batch has its answer in the output file", param="stream")
    card = find_card(live.catalog, body.model, tenant)
    items = [Item(text) for text in read_texts(body.input, card)]
    order = replace(make_order(card, "embeddings", body), priority=tenant.priority)
    encoding, item_errors = body.encoding_format or "float", body.on_error == "item"
    answer = EmbeddingsAnswer(body.model, encoding, body.output_dtype or "float", item_errors)
    return Call(order, items, answer)


def _read_ranking(body: RerankRequest, live: Services, tenant: Tenant) -> Call:
    card = find_card(live.catalog, body.model, tenant)
    items = [Item(document_text(document), query=body.query) for document in body.documents]
    order = replace(make_order(card, "rerank", body), priority=tenant.priority)
    documents = body.documents if body.return_documents else None
    return Call(order, items, RankingAnswer(body.model, body.top_n, documents))
