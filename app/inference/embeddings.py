"""`POST /v1/embeddings`: texts to vectors in the same call."""

from dataclasses import replace
from functools import partial

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from app.access.auth import Tenant, current_tenant, find_card
from app.http.errors import documented
from app.inference.binary import BINARY_TYPES, render_binary
from app.inference.calls import SynchronousCall, answer_or_queue
from app.inference.rendering import render_embeddings
from app.inference.schemas import EmbeddingsRequest, EmbeddingsResponse
from app.inference.token_ids import read_texts
from app.jobs.schemas import JobObject
from app.services import Services, services
from app.submission.orders import make_order
from app.submission.service import SubmissionService
from tasks.jobs.chunking import Item

__all__ = ["PATH", "blueprint", "create_embeddings", "describe_embeddings"]

PATH = "/v1/embeddings"
blueprint = APIBlueprint("embeddings", __name__, abp_tags=[Tag(name="embeddings", description="Texts to vectors")])


@blueprint.post(PATH, responses=documented(EmbeddingsResponse, accepted=JobObject, computing=True))
def create_embeddings(body: EmbeddingsRequest) -> Response:
    """Embed one text or several.

    With the header `Prefer: respond-async` any number of texts is queued as a job. With `Accept: application/x-npy`,
    `application/vnd.apache.arrow.stream` or `application/octet-stream` the vectors come as bytes.
    """
    call = describe_embeddings(body, services(), current_tenant())
    if (mimetype := request.headers.get("Accept", "")) in BINARY_TYPES:
        render = partial(render_binary, mimetype=mimetype, precision=body.output_dtype or "float")
        call = replace(call, render=render)
    return _stream(call, body) if body.stream else answer_or_queue(call)


def describe_embeddings(body: EmbeddingsRequest, live: Services, tenant: Tenant) -> SynchronousCall:
    """Return what a body asks for.

    Raises:
        tasks.errors.TwolaneError: the model cannot do it, or the tenant may not use it.
    """
    card = find_card(live.catalog, body.model, tenant)
    order = make_order(card, "embeddings", body)
    items = (Item(text) for text in read_texts(body.input, card))
    count = 1 if isinstance(body.input, str) else len(body.input)
    render = partial(
        render_embeddings,
        model=body.model,
        encoding=body.encoding_format or "float",
        precision=body.output_dtype or "float",
    )
    return SynchronousCall(order, items, count, body, render, item_errors=body.on_error == "item")


def _stream(call: SynchronousCall, body: EmbeddingsRequest) -> Response:
    from app.inference.streaming import stream_embeddings  # noqa: PLC0415 - few calls are streamed

    SubmissionService(services(), current_tenant()).require_few(call.order, call.count)
    return stream_embeddings(call.order, list(call.items), body)
