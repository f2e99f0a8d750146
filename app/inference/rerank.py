"""Rerank on the paths of Cohere's and Jina's clients: one handler, one shape. Those of others are in `app.compat`."""

from functools import partial

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from app.access.auth import Tenant, current_tenant, find_card
from app.fields import document_text
from app.http.errors import documented
from app.inference.calls import SynchronousCall, answer_or_queue
from app.inference.rendering import render_ranking
from app.inference.schemas import RerankRequest, RerankResponse
from app.jobs.schemas import JobObject
from app.services import Services, services
from app.submission.orders import make_order
from tasks.jobs.chunking import Item

__all__ = ["PATHS", "blueprint", "describe_rerank", "rerank"]

PATHS = ("/v1/rerank", "/v2/rerank")
blueprint = APIBlueprint("rerank", __name__, abp_tags=[Tag(name="rerank", description="Documents by relevance")])

_RESPONSES = documented(RerankResponse, accepted=JobObject, computing=True)


def rerank(body: RerankRequest, *, for_voyage: bool = False) -> Response:
    """Score documents against a query, best first.

    With the header `Prefer: respond-async` any number of documents is queued as a job.
    """
    return answer_or_queue(describe_rerank(body, services(), current_tenant(), for_voyage=for_voyage))


def describe_rerank(
    body: RerankRequest, live: Services, tenant: Tenant, *, for_voyage: bool = False
) -> SynchronousCall:
    """Return what a body asks for.

    Raises:
        tasks.errors.TwolaneError: the model cannot do it, or the tenant may not use it.
    """
    card = find_card(live.catalog, body.model, tenant)
    order = make_order(card, "rerank", body)
    items = (Item(document_text(document), query=body.query) for document in body.documents)
    render = partial(
        render_ranking,
        model=body.model,
        documents=body.documents,
        top_n=body.top_n,
        with_documents="object" if body.return_documents else None,
        kind="voyage" if for_voyage or body.for_voyage else "list",
    )
    return SynchronousCall(order, items, len(body.documents), body, render)


for _path in PATHS:
    blueprint.post(_path, endpoint=_path.replace("/", "_"), responses=_RESPONSES)(rerank)
