"""Rerank on the paths that clients use: one handler, one shape.

Owns the one exception to it: under `/infinity`, documents that come back are strings, since clients of Infinity can
read nothing else and send exactly what Cohere's clients send, who read an object.
"""

from functools import partial
from typing import Literal

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from app.access.auth import find_card
from app.fields import document_text
from app.http.errors import documented
from app.inference.calls import answer_or_queue
from app.inference.rendering import render_ranking
from app.inference.schemas import RerankRequest, RerankResponse
from app.jobs.schemas import JobObject
from app.services import services
from app.submission.orders import make_order
from tasks.jobs.chunking import Item

__all__ = ["blueprint", "rerank"]

blueprint = APIBlueprint("rerank", __name__, abp_tags=[Tag(name="rerank", description="Documents by relevance")])

_RESPONSES = documented(RerankResponse, accepted=JobObject, computing=True)


def rerank(body: RerankRequest) -> Response:
    """Score documents against a query, best first.

    With the header `Prefer: respond-async` any number of documents is queued as a job.
    """
    card = find_card(services().catalog, body.model)
    order = make_order(card, "rerank", body)
    items = (Item(document_text(document), query=body.query) for document in body.documents)
    form: Literal["object", "text"] = "text" if request.path.startswith("/infinity/") else "object"
    with_documents = form if body.return_documents else None
    render = partial(
        render_ranking, model=body.model, documents=body.documents, top_n=body.top_n, with_documents=with_documents
    )
    return answer_or_queue(order, items, len(body.documents), body, render)


for _path in ("/v1/rerank", "/v2/rerank", "/infinity/rerank"):
    blueprint.post(_path, endpoint=_path.replace("/", "_"), responses=_RESPONSES)(rerank)
