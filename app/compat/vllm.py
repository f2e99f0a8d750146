"""VLLM: `/v1/score`, `/score` and, for dense vectors, `/pooling`.

Owns vLLM's bodies and answers, as in the reference of its server. `/tokenize` and `/detokenize` are in
`app.compat.tokenizing`.
"""

import secrets
import time
from typing import Any, Literal

from flask import Response
from pydantic import BaseModel, Field

from app.compat.adapters import Adapter, VendorBody, Wanted, choose_card, embed, rank, refuse_field
from app.fields import ModelName
from app.http.errors import documented
from app.http.responses import json_response
from app.inference.schemas import Usage
from app.jobs.schemas import JobObject
from tasks.engine import Outcomes
from tasks.errors import InvalidRequest

__all__ = ["adapter"]

adapter = Adapter("vllm", "vLLM's routes besides those of OpenAI")


class _VllmBody(VendorBody):
    """What its calls have."""

    model: ModelName | None = Field(None, description="Name or alias of a model. Default: the first that can.")
    truncate_prompt_tokens: int | None = Field(None, description="Refused, but for -1: as many as the model reads.")
    use_activation: bool | None = Field(None, description="false is refused: scores are always in [0, 1].")

    def require_possible(self) -> None:
        """Refuse what cannot be obeyed."""
        if self.truncate_prompt_tokens not in {None, -1}:
            raise refuse_field("truncate_prompt_tokens", "texts are cut at what the model reads only")
        if self.use_activation is False:
            raise refuse_field("use_activation", "scores are always in [0, 1], and vectors as the model gives them")


class VllmScoreRequest(_VllmBody):
    """Body of `POST /v1/score`: one text with one or several, or as many with as many."""

    text_1: str | list[str]
    text_2: str | list[str]

    def pairs(self) -> list[tuple[str, str]]:
        """Return what is to be scored."""
        first = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        second = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        if not first or not second:
            raise InvalidRequest("must not be empty", param="text_2" if first else "text_1")
        if len(first) == 1:
            return [(first[0], text) for text in second]
        if len(first) != len(second):
            raise InvalidRequest("lengths must be 1 and 1, 1 and n, or n and n", param="text_2")
        return list(zip(first, second, strict=True))


class VllmPoolingRequest(_VllmBody):
    """Body of `POST /pooling`."""

    input: str | list[str]
    task: Literal["embed"] | None = None
    encoding_format: Literal["float"] | None = None
    dimensions: int | None = Field(None, ge=1, description="Cut embeddings to this length and normalize again.")


class VllmScore(BaseModel):
    """The score of one pair."""

    index: int
    object: Literal["score"]
    score: float


class VllmScoreResponse(BaseModel):
    """Answer of `POST /v1/score`, in input order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[VllmScore]
    usage: Usage


class VllmPooling(BaseModel):
    """The vector of one text."""

    index: int
    object: Literal["pooling"]
    data: list[float]


class VllmPoolingResponse(BaseModel):
    """Answer of `POST /pooling`, in input order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[VllmPooling]
    usage: Usage


@adapter.post("/v1/score", responses=documented(VllmScoreResponse, accepted=JobObject, computing=True))
@adapter.post("/score", responses=documented(VllmScoreResponse, accepted=JobObject, computing=True))
def score_pairs(body: VllmScoreRequest) -> Response:
    """Score pairs of texts, as vLLM does."""
    body.require_possible()
    card = choose_card(body.model, "rerank")

    def render(outcomes: Outcomes) -> Response:
        scores = outcomes.values.tolist()
        data = [{"index": i, "object": "score", "score": score} for i, score in enumerate(scores)]
        return _respond("score", body.model or card.name, data, outcomes)

    return rank(card, body.pairs(), Wanted(), body, render)


@adapter.post("/pooling", responses=documented(VllmPoolingResponse, accepted=JobObject, computing=True))
def pool_texts(body: VllmPoolingRequest) -> Response:
    """Embed texts as dense vectors, as vLLM's pooling route does for embedding models."""
    body.require_possible()
    card, texts = choose_card(body.model), [body.input] if isinstance(body.input, str) else body.input
    if not texts:
        raise InvalidRequest("must not be empty", param="input")

    def render(outcomes: Outcomes) -> Response:
        data = [{"index": i, "object": "pooling", "data": row} for i, row in enumerate(outcomes.values)]
        return _respond("pool", body.model or card.name, data, outcomes)

    return embed(card, texts, Wanted(dimensions=body.dimensions), body, render)


def _respond(prefix: str, model: str, data: list[dict[str, Any]], outcomes: Outcomes) -> Response:
    tokens = int(outcomes.tokens.sum())
    head = {"id": f"{prefix}-{secrets.token_hex(12)}", "object": "list", "created": int(time.time()), "model": model}
    return json_response({**head, "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
