"""Rerank on the three paths that clients use; one handler, one shape."""

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
    return render_ranking(
        outcomes, body.model, body.documents, top_n=body.top_n, with_documents=bool(body.return_documents)
    )


for _path in ("/v1/rerank", "/v2/rerank", "/rerank"):
    blueprint.post(_path, endpoint=_path.replace("/", "_"), responses=_RESPONSES)(rerank)
