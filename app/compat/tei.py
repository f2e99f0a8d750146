"""Text-embeddings-inference (TEI): `/embed`, `/embed_sparse`, `/rerank` with `texts`, `/info`, and `/` for its clients.

Owns TEI's bodies and answers, as in its OpenAPI text 1.8. A body names no model, so the first served one that can do it
is taken; `model` is taken too where a client sends it. `/tokenize` is in `app.compat.tokenizing`.
"""

from typing import Annotated, Any, Literal

import numpy as np
from flask import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, RootModel

from app.access.auth import current_tenant
from app.compat.adapters import Adapter, VendorBody, Wanted, choose_card, embed, rank, refuse_field, reread
from app.fields import Documents, ModelName, Truncate, document_text
from app.http.errors import documented
from app.http.responses import json_response
from app.inference.rerank import rerank
from app.inference.schemas import RerankRequest, RerankResponse
from app.jobs.schemas import JobObject
from app.services import services
from config.catalog import ModelCard
from tasks.engine import Outcomes
from tasks.errors import InvalidRequest

__all__ = ["adapter"]

adapter = Adapter("text-embeddings-inference", "TEI's own routes, for huggingface_hub and what rests on it")

_PROMPTS = {"query": "query", "search_query": "query", "document": "document", "passage": "document"}


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class _TeiTruncation(VendorBody):
    """How a text that is too long is treated."""

    truncate: bool | None = Field(None, description="false refuses a text that is too long. Default: it is cut.")
    truncation_direction: Annotated[Literal["left", "right"], BeforeValidator(_lower)] | None = Field(
        None, description="left cuts at the start of the text. Default: right. Case does not matter."
    )
    model: ModelName | None = Field(None, description="Ours: name or alias of a model. Default: the first that can.")

    def cut(self) -> Truncate:
        """Return it in our words."""
        if self.truncate is False:
            return "none"
        return "start" if self.truncation_direction == "left" else "end"


class TeiInputs(_TeiTruncation):
    """Body of `POST /embed_sparse`."""

    inputs: str | list[str]
    prompt_name: str | None = Field(None, description="query or document: the model's own instruction for these.")

    def texts(self) -> list[str]:
        """Return the texts, one or several."""
        if not self.inputs and isinstance(self.inputs, list):
            raise InvalidRequest("must not be empty", param="inputs")
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs

    def wanted(self, **fields: Any) -> Wanted:
        """Return how the texts are to be computed."""
        if self.prompt_name is not None and self.prompt_name not in _PROMPTS:
            raise refuse_field("prompt_name", f"must be one of {', '.join(_PROMPTS)}")
        return Wanted(input_type=_PROMPTS.get(self.prompt_name or ""), truncate=self.cut(), **fields)


class TeiEmbedRequest(TeiInputs):
    """Body of `POST /embed`."""

    normalize: bool | None = Field(None, description="false is refused where the model's vectors have length 1.")
    dimensions: int | None = Field(None, ge=1, description="Cut embeddings to this length and normalize again.")


class TeiRerankRequest(_TeiTruncation):
    """Body of `POST /rerank`: TEI's, with `texts`, or the one of `/v1/rerank`, with `documents`."""

    model_config = ConfigDict(strict=True, extra="allow")

    query: str
    # TEI itself takes strings only; litellm passes the objects of its caller on.
    texts: Documents | None = None
    documents: Documents | None = None
    raw_scores: bool | None = Field(None, description="true is refused: scores are always in [0, 1].")
    return_text: bool | None = None
    truncate: Any = Field(None, description="With `texts`: false refuses a text that is too long.")


class TeiVectors(RootModel[list[list[float]]]):
    """Vectors in input order."""


class TeiSparseWeight(BaseModel):
    """One token's weight."""

    index: int
    value: float


class TeiSparseVectors(RootModel[list[list[TeiSparseWeight]]]):
    """Sparse vectors in input order."""


class TeiRank(BaseModel):
    """One text and its score."""

    index: int
    score: float
    text: str | None = None


class TeiRanking(RootModel[list[TeiRank] | RerankResponse]):
    """For `texts` the list of TEI, best first; for `documents` the answer of `/v1/rerank`."""


class TeiInfo(BaseModel):
    """What is served, in TEI's words."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_input_length: int
    max_client_batch_size: int
    auto_truncate: bool
    version: str


@adapter.post("/", responses=documented(TeiVectors, accepted=JobObject, computing=True))
@adapter.post("/embed", responses=documented(TeiVectors, accepted=JobObject, computing=True))
def embed_inputs(body: TeiEmbedRequest) -> Response:
    """Embed one text or several, as text-embeddings-inference does."""
    card, texts = choose_card(body.model), body.texts()
    if body.normalize is False and card.normalized:
        raise refuse_field("normalize", f"{card.name} gives vectors of length 1 only")

    def render(outcomes: Outcomes) -> Response:
        vectors = outcomes.values
        if body.normalize and not card.normalized:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        return json_response(vectors)

    return embed(card, texts, body.wanted(dimensions=body.dimensions), body, render)


@adapter.post("/embed_sparse", responses=documented(TeiSparseVectors, accepted=JobObject, computing=True))
def embed_sparse(body: TeiInputs) -> Response:
    """Embed texts as sparse vectors, with a model that gives them."""
    card, texts = choose_card(body.model, "sparse"), body.texts()
    return embed(card, texts, body.wanted(returns=["sparse"]), body, _render_sparse)


@adapter.post("/rerank", responses=documented(TeiRanking, accepted=JobObject, computing=True))
def rank_texts(body: TeiRerankRequest) -> Response:
    """Score `texts` against a query as text-embeddings-inference does, or `documents` as `/v1/rerank` does."""
    if body.texts is None:
        return rerank(reread(RerankRequest, body.model_dump(exclude_unset=True)))
    if body.raw_scores:
        raise refuse_field("raw_scores", "scores are always in [0, 1]")
    if body.truncate is not None and not isinstance(body.truncate, bool):
        raise refuse_field("truncate", "must be true or false")
    card, texts = choose_card(body.model, "rerank"), [document_text(text) for text in body.texts]

    def render(outcomes: Outcomes) -> Response:
        scores = outcomes.values
        order = np.argsort(-scores, kind="stable").tolist()
        ranks = [{"index": i, "score": float(scores[i])} for i in order]
        return json_response([{**rank, "text": texts[rank["index"]]} for rank in ranks] if body.return_text else ranks)

    return rank(card, [(body.query, text) for text in texts], Wanted(truncate=body.cut()), body, render)


@adapter.get("/info", responses=documented(TeiInfo))
def show_info() -> Response:
    """Describe the model that a call without a name gets, as text-embeddings-inference does."""
    live = services()
    tenant = current_tenant()
    card = next((card for card in live.catalog.served if tenant.may_use(card)), None) or choose_card(None)
    workers = live.presence.ready_models().get(card.slug, [])
    return json_response(
        {
            "model_id": card.name,
            "model_sha": card.revision or None,
            "model_dtype": workers[0].dtype if workers else card.dtype,
            "model_type": _describe_type(card),
            "max_input_length": card.max_tokens,
            "max_client_batch_size": live.settings.max_inputs,
            "auto_truncate": True,
            "version": "twolane",
        }
    )


def _describe_type(card: ModelCard) -> dict[str, Any]:
    if card.rerank_by == "cross-encoder":
        return {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    return {"embedding": {"pooling": card.pooling or "mean"}}


def _render_sparse(outcomes: Outcomes) -> Response:
    vectors = [
        [{"index": token, "value": weight} for token, weight in zip(ids.tolist(), weights.tolist(), strict=True)]
        for ids, weights in outcomes.extras["sparse"]
    ]
    return json_response(vectors)
