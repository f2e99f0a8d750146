"""`POST /v1/embeddings`: texts to vectors in the same call."""

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from app.auth import current_tenant, find_card
from app.dispatch import Desk
from app.encodings import render_embeddings
from app.errors import documented, raise_item_errors
from app.job_schemas import JobObject
from app.job_views import render_submission
from app.orders import order_embeddings
from app.schemas import EmbeddingsRequest, EmbeddingsResponse
from app.services import services
from app.token_ids import read_texts
from app.uploads import PayloadHash
from app.waiting import parse_prefer
from tasks.chunking import Item

__all__ = ["blueprint"]

blueprint = APIBlueprint("embeddings", __name__, abp_tags=[Tag(name="embeddings", description="Texts to vectors")])


@blueprint.post("/v1/embeddings", responses=documented(EmbeddingsResponse, accepted=JobObject, computing=True))
def create_embeddings(body: EmbeddingsRequest) -> Response:
    """Embed one text or several.

    With the header `Prefer: respond-async` any number of texts is queued as a job.
    """
    live = services()
    card = find_card(live.catalog, body.model)
    items = [Item(text) for text in read_texts(body.input, card)]
    order = order_embeddings(body, card)
    desk = Desk(live, current_tenant())
    preferences = parse_prefer(request.headers.get("Prefer", ""))
    if preferences.respond_async:
        payload = PayloadHash.of_json(request.headers.get("Idempotency-Key"), body)
        return render_submission(live, desk.submit(order, items, payload.settle, queue=True), preferences)
    outcomes = desk.answer(order, items)
    raise_item_errors(outcomes.errors)
    return render_embeddings(outcomes, body.model, body.encoding_format or "float")
