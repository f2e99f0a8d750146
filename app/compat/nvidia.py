"""NVIDIA NIM: `/v1/ranking`, and the address of its hosted models. Its words on `/v1/embeddings` are read there.

Owns NIM's body and answer for reranking, as in its API reference. Its scores are logits: ours, in [0, 1], are turned
back, so that those nearer to 0 or 1 than 1e-7 come out alike.
"""

from functools import partial
from typing import Literal

import numpy as np
from flask import Response
from pydantic import BaseModel, Field

from app.compat.adapters import Adapter, VendorBody, Wanted, choose_card, rank
from app.fields import ModelName
from app.http.errors import documented
from app.http.responses import json_response
from app.inference.schemas import Usage
from app.jobs.schemas import JobObject
from tasks.engine import Outcomes

__all__ = ["adapter"]

adapter = Adapter("nvidia", "NVIDIA NIM's ranking route, for its client libraries")

_NEAREST = 1e-7


class _ModelInPath(BaseModel):
    model: str


class NvidiaText(VendorBody):
    """A query or a passage; one with an image has no `text` and is refused."""

    text: str


class NvidiaRankingRequest(VendorBody):
    """Body of `POST /v1/ranking`."""

    model: ModelName | None = Field(None, description="Name or alias of a model. Default: the first that reranks.")
    query: NvidiaText
    passages: list[NvidiaText] = Field(min_length=1)
    top_k: int | None = Field(None, ge=1, description="How many of the best. Default: all.")
    truncate: Literal["NONE", "END"] | None = Field(None, description="NONE refuses what is too long. Default: END.")


class NvidiaRank(BaseModel):
    """One passage and its score."""

    index: int
    logit: float


class NvidiaRankingResponse(BaseModel):
    """Answer of `POST /v1/ranking`: best first."""

    rankings: list[NvidiaRank]
    usage: Usage


@adapter.post("/v1/ranking", responses=documented(NvidiaRankingResponse, accepted=JobObject, computing=True))
def rank_passages(body: NvidiaRankingRequest) -> Response:
    """Score passages against a query, as NVIDIA's reranking microservice does."""
    pairs = [(body.query.text, passage.text) for passage in body.passages]
    wanted = Wanted(truncate="none" if body.truncate == "NONE" else "end")
    return rank(choose_card(body.model, "rerank"), pairs, wanted, body, partial(_render, most=body.top_k))


@adapter.post(
    "/v1/retrieval/<path:model>/reranking",
    responses=documented(NvidiaRankingResponse, accepted=JobObject, computing=True),
)
def rank_passages_of_model(path: _ModelInPath, body: NvidiaRankingRequest) -> Response:
    """Do the same at the address that NVIDIA's hosted models have."""
    answer: Response = rank_passages(body.model_copy(update={"model": path.model}))
    return answer


def _render(outcomes: Outcomes, most: int | None) -> Response:
    scores = np.clip(outcomes.values.astype(np.float64), _NEAREST, 1 - _NEAREST)
    logits = np.log(scores / (1 - scores))
    rankings = [{"index": i, "logit": float(logits[i])} for i in np.argsort(-scores, kind="stable")[:most].tolist()]
    tokens = int(outcomes.tokens.sum())
    return json_response({"rankings": rankings, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
