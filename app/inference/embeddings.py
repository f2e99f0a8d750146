"""`POST /v1/embeddings`: texts to vectors in the same call."""

from collections.abc import Iterable
from functools import partial

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from app.access.auth import current_tenant, find_card
from app.http.errors import documented
from app.inference.calls import answer_or_queue
from app.inference.rendering import render_embeddings
from app.inference.schemas import EmbeddingsRequest, EmbeddingsResponse
from app.inference.token_ids import read_texts
from app.jobs.schemas import JobObject
from app.services import services
from app.submission.orders import Order, make_order
from app.submission.service import SubmissionService
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
    if body.stream:
        return _stream(order, items, count, body)
    render = partial(
        render_embeddings,
        model=body.model,
        encoding=body.encoding_format or "float",
        precision=body.output_dtype or "float",
    )
    return answer_or_queue(order, items, count, body, render, item_errors=body.on_error == "item")


def _stream(order: Order, items: Iterable[Item], count: int, body: EmbeddingsRequest) -> Response:
    from app.inference.streaming import stream_embeddings  # noqa: PLC0415 - few calls are streamed

    SubmissionService(services(), current_tenant()).require_few(order, count)
    return stream_embeddings(order, list(items), body)
