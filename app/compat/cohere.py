"""Cohere: `/v2/embed` and `/v1/embed`; `/v2/rerank` has the shape of `/v1/rerank` and is in `app.inference`.

Owns Cohere's bodies and answers for texts, as in its API reference. Images are refused. All types of one answer come
from one vector, as `app.quantization` has it.
"""

import base64
import secrets
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from flask import Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from app.compat.adapters import Adapter, VendorBody, Wanted, choose_card, embed, refuse_field
from app.fields import ModelName, Truncate
from app.http.errors import documented
from app.http.responses import json_response
from app.jobs.schemas import JobObject
from app.vector_formats import quantize
from config.catalog import ModelCard
from tasks.engine import Outcomes
from tasks.errors import InvalidRequest

__all__ = ["adapter"]

adapter = Adapter("cohere", "Cohere's embed routes, for its client libraries")

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
_ROLES = {"search_query": "query", "search_document": "document", "classification": None, "clustering": None}
_TRUNCATE: dict[str, Truncate] = {"END": "end", "START": "start", "NONE": "none"}


class CohereContent(VendorBody):
    """A part of an input: text, or what is refused."""

    type: str
    text: str | None = None


class CohereInput(VendorBody):
    """One input of several parts; its texts are joined by line ends."""

    content: list[CohereContent] = Field(min_length=1)

    def text(self, position: int) -> str:
        """Return its text."""
        if any(part.type != "text" or part.text is None for part in self.content):
            raise InvalidRequest("only texts are embedded, no images", param=f"inputs.{position}.content")
        return "\n".join(part.text or "" for part in self.content)


class CohereEmbedRequest(VendorBody):
    """Body of `POST /v2/embed` and `POST /v1/embed`."""

    model: ModelName | None = Field(None, description="Name or alias of a model. Default: the first that embeds.")
    texts: list[str] | None = Field(None, min_length=1)
    inputs: list[CohereInput] | None = Field(None, min_length=1)
    images: list[str] | None = Field(None, description="Refused.")
    input_type: str | None = Field(None, description="search_query or search_document: the model's instruction for it.")
    embedding_types: list[EmbeddingType] | None = Field(None, min_length=1, description="Default: float.")
    output_dimension: int | None = Field(None, ge=1, description="Cut embeddings to this length and normalize again.")
    max_tokens: int | None = Field(None, ge=1, description="Refused below what the model reads.")
    truncate: str | None = Field(None, description="NONE, START or END. Default: END.")

    def read_texts(self) -> list[str]:
        """Return what is to be embedded.

        Raises:
            InvalidRequest: there is nothing, or something else than texts.
        """
        if self.images:
            raise InvalidRequest("only texts are embedded, no images", param="images")
        texts = [*(self.texts or ()), *(part.text(i) for i, part in enumerate(self.inputs or ()))]
        if not texts:
            raise InvalidRequest("texts: at least one is needed", param="texts")
        return texts

    def wanted(self, card: ModelCard) -> Wanted:
        """Return how they are to be computed.

        Raises:
            InvalidRequest: a field cannot be obeyed.
        """
        if self.input_type is not None and self.input_type not in _ROLES:
            raise refuse_field("input_type", f"must be one of {', '.join(_ROLES)}")
        if (cut := _TRUNCATE.get((self.truncate or "END").upper())) is None:
            raise refuse_field("truncate", "must be NONE, START or END")
        if self.max_tokens is not None and self.max_tokens < card.max_tokens:
            raise refuse_field("max_tokens", f"texts are cut at what {card.name} reads, {card.max_tokens} tokens, only")
        return Wanted(input_type=_ROLES.get(self.input_type or ""), dimensions=self.output_dimension, truncate=cut)


class CohereEmbeddings(BaseModel):
    """Vectors in input order, by the types that were asked for."""

    floats: list[list[float]] | None = Field(None, alias="float")
    int8: list[list[int]] | None = None
    uint8: list[list[int]] | None = None
    binary: list[list[int]] | None = None
    ubinary: list[list[int]] | None = None
    base64: list[str] | None = Field(None, description="Little-endian float32.")


class CohereEmbedResponse(BaseModel):
    """Answer of `POST /v2/embed`, and of `POST /v1/embed` with `embedding_types`."""

    id: str
    response_type: Literal["embeddings_by_type"]
    embeddings: CohereEmbeddings
    texts: list[str]
    meta: dict[str, Any]


class CohereEmbedResponseV1(BaseModel):
    """Answer of `POST /v1/embed`: without `embedding_types` the vectors are a bare list."""

    id: str
    response_type: Literal["embeddings_floats", "embeddings_by_type"]
    embeddings: list[list[float]] | CohereEmbeddings
    texts: list[str]
    meta: dict[str, Any]


@adapter.post("/v2/embed", responses=documented(CohereEmbedResponse, accepted=JobObject, computing=True))
def embed_v2(body: CohereEmbedRequest) -> Response:
    """Embed texts as Cohere's API v2 does."""
    return _embed(body, body.embedding_types or ["float"], "2")


@adapter.post("/v1/embed", responses=documented(CohereEmbedResponseV1, accepted=JobObject, computing=True))
def embed_v1(body: CohereEmbedRequest) -> Response:
    """Embed texts as Cohere's API v1 does."""
    return _embed(body, body.embedding_types, "1")


def _embed(body: CohereEmbedRequest, types: Sequence[EmbeddingType] | None, version: str) -> Response:
    card, texts = choose_card(body.model), body.read_texts()
    return embed(card, texts, body.wanted(card), body, partial(_render, texts=texts, types=types, version=version))


def _render(outcomes: Outcomes, texts: list[str], types: Sequence[EmbeddingType] | None, version: str) -> Response:
    vectors = outcomes.values
    by_type = {kind: _vectors_of(vectors, kind) for kind in types or ()}
    meta = {"api_version": {"version": version}, "billed_units": {"input_tokens": int(outcomes.tokens.sum())}}
    return json_response(
        {
            "id": secrets.token_hex(16),
            "response_type": "embeddings_by_type" if types else "embeddings_floats",
            "embeddings": by_type if types else vectors,
            "texts": texts,
            "meta": meta,
        }
    )


def _vectors_of(vectors: NDArray[np.float32], kind: EmbeddingType) -> NDArray[Any] | list[str]:
    if kind == "base64":
        return [base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode("ascii") for row in vectors]
    return quantize(vectors, kind)
