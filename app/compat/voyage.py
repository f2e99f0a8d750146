"""Voyage: its two routes under `/voyage/v1`, for clients that send nothing by which we could know them.

Owns the addresses. Voyage's words are read on `/v1/embeddings` and `/v1/rerank` too; only a rerank call without them
does not say that its answer will be read as Voyage's.
"""

from flask import Response

from app.compat.adapters import Adapter
from app.http.errors import documented
from app.inference.embeddings import create_embeddings
from app.inference.rerank import rerank
from app.inference.schemas import EmbeddingsRequest, EmbeddingsResponse, RerankRequest, RerankResponse
from app.jobs.schemas import JobObject

__all__ = ["adapter"]

adapter = Adapter("voyage", "Voyage's routes, for litellm and others that send no word of Voyage's own")


@adapter.post("/voyage/v1/embeddings", responses=documented(EmbeddingsResponse, accepted=JobObject, computing=True))
def embed_texts(body: EmbeddingsRequest) -> Response:
    """Embed as `/v1/embeddings` does."""
    answer: Response = create_embeddings(body)
    return answer


@adapter.post("/voyage/v1/rerank", responses=documented(RerankResponse, accepted=JobObject, computing=True))
def rank_documents(body: RerankRequest) -> Response:
    """Rank as `/v1/rerank` does, with the results as Voyage's `data` too."""
    return rerank(body, for_voyage=True)
