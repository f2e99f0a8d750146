"""Infinity: `/embeddings`, bare and under `/infinity`, and `/infinity/rerank`.

Owns what differs from our own routes: a model need not be named, and documents that come back with a ranking are
strings, since clients of Infinity can read nothing else. They send exactly what Cohere's clients send, who read an
object: hence an address of its own for rerank.
"""

from functools import partial
from typing import Any

from flask import Response
from pydantic import Field

from app.compat.adapters import Adapter, UnnamedEmbeddingsRequest, VendorBody, Wanted, choose_card, rank, refuse_field
from app.fields import Documents, ModelName, document_text
from app.http.errors import documented
from app.inference.embeddings import create_embeddings
from app.inference.rendering import render_ranking
from app.inference.schemas import EmbeddingsResponse, RerankResponse
from app.jobs.schemas import JobObject

__all__ = ["adapter"]

adapter = Adapter("infinity", "Infinity's routes, for its client libraries")

# What Infinity's own client sends where its caller names no model.
_UNNAMED = "default/not-specified"


class InfinityEmbeddingsRequest(UnnamedEmbeddingsRequest):
    """Body of `POST /embeddings`: that of `/v1/embeddings`, but for `modality`."""

    modality: str | None = Field(None, description="Only text is embedded.")


class InfinityRerankRequest(VendorBody):
    """Body of `POST /infinity/rerank`."""

    model: ModelName | None = Field(None, description="Name or alias of a model. Default: the first that reranks.")
    query: str
    documents: Documents
    top_n: int | None = Field(None, ge=1, description="How many of the best. Default: all.")
    return_documents: bool | None = Field(None, description="Whether documents come back, as strings. Default: false.")
    raw_scores: bool | None = Field(None, description="true is refused: scores are always in [0, 1].")


@adapter.post("/embeddings", responses=documented(EmbeddingsResponse, accepted=JobObject, computing=True))
@adapter.post("/infinity/embeddings", responses=documented(EmbeddingsResponse, accepted=JobObject, computing=True))
def embed_unnamed(body: InfinityEmbeddingsRequest) -> Response:
    """Embed as `/v1/embeddings` does; a model need not be named."""
    if body.modality not in {None, "text"}:
        raise refuse_field("modality", "only text is embedded")
    named = body.model if body.model not in {None, _UNNAMED} else choose_card(None).name
    answer: Response = create_embeddings(body.model_copy(update={"model": named}))
    return answer


@adapter.post("/infinity/rerank", responses=documented(RerankResponse, accepted=JobObject, computing=True))
def rank_documents(body: InfinityRerankRequest) -> Response:
    """Score documents against a query, best first; documents come back as strings."""
    if body.raw_scores:
        raise refuse_field("raw_scores", "scores are always in [0, 1]")
    card = choose_card(None if body.model == _UNNAMED else body.model, "rerank")
    asked: dict[str, Any] = {"documents": body.documents, "top_n": body.top_n}
    render = partial(
        render_ranking,
        model=body.model or card.name,
        with_documents="text" if body.return_documents else None,
        kind="rerank",
        **asked,
    )
    pairs = [(body.query, document_text(document)) for document in body.documents]
    return rank(card, pairs, Wanted(), body, render)
