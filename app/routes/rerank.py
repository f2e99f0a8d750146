"""Rerank on the paths that clients use: one handler, one shape.

Owns the one exception to it: under `/infinity`, documents that come back are strings, since clients of Infinity can
read nothing else and send exactly what Cohere's clients send, who read an object.
"""

from typing import Literal

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from app.auth import current_tenant, find_card
from app.dispatch import Desk
from app.encodings import render_ranking
from app.errors import documented, raise_item_errors
from app.job_schemas import JobObject
from app.job_views import render_submission
from app.orders import order_ranking
from app.schemas import RerankRequest, RerankResponse, document_text
from app.services import services
from app.uploads import PayloadHash
from app.waiting import parse_prefer
from tasks.chunking import Item

__all__ = ["blueprint"]

blueprint = APIBlueprint("rerank", __name__, abp_tags=[Tag(name="rerank", description="Documents by relevance")])

_RESPONSES = documented(RerankResponse, accepted=JobObject, computing=True)


def rerank(body: RerankRequest) -> Response:
    """Score documents against a query, best first.

    With the header `Prefer: respond-async` any number of documents is queued as a job.
    """
    live = services()
    card = find_card(live.catalog, body.model)
    order = order_ranking(body, card)
    items = [Item(document_text(document), query=body.query) for document in body.documents]
    desk = Desk(live, current_tenant())
    preferences = parse_prefer(request.headers.get("Prefer", ""))
    if preferences.respond_async:
        payload = PayloadHash.of_json(request.headers.get("Idempotency-Key"), body)
        return render_submission(live, desk.submit(order, items, payload.settle, queue=True), preferences)
    outcomes = desk.answer(order, items)
    raise_item_errors(outcomes.errors)
    form: Literal["object", "text"] = "text" if request.path.startswith("/infinity/") else "object"
    with_documents = form if body.return_documents else None
    return render_ranking(outcomes, body.model, body.documents, top_n=body.top_n, with_documents=with_documents)


for _path in ("/v1/rerank", "/v2/rerank", "/rerank", "/infinity/rerank"):
    blueprint.post(_path, endpoint=_path.replace("/", "_"), responses=_RESPONSES)(rerank)
