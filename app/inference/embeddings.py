"""`POST /v1/embeddings`: texts to vectors in the same call."""

from functools import partial

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from app.access.auth import find_card
from app.http.errors import documented
from app.inference.calls import answer_or_queue
from app.inference.rendering import render_embeddings
from app.inference.schemas import EmbeddingsRequest, EmbeddingsResponse
from app.inference.token_ids import read_texts
from app.jobs.schemas import JobObject
from app.services import services
from app.submission.orders import make_order
from tasks.jobs.chunking import Item

__all__ = ["blueprint"]

blueprint = APIBlueprint("embeddings", __name__, abp_tags=[Tag(name="embeddings", description="Texts to vectors")])


@blueprint.post("/v1/embeddings", responses=documented(EmbeddingsResponse, accepted=JobObject, computing=True))
def create_embeddings(body: EmbeddingsRequest) -> Response:
    """Embed one text or several.

    With the header `Prefer: respond-async` any number of texts is queued as a job.
    """
    card = find_card(services().catalog, body.model)
    order = make_order(card, "embeddings", body)
    items = (Item(text) for text in read_texts(body.input, card))
    count = 1 if isinstance(body.input, str) else len(body.input)
    render = partial(
        render_embeddings,
        model=body.model,
        encoding=body.encoding_format or "float",
        precision=body.output_dtype or "float",
    )
    return answer_or_queue(order, items, count, body, render, item_errors=body.on_error == "item")
