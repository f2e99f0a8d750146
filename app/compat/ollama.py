"""Ollama: `/api/embed`, `/api/embeddings` and `/api/tags`.

Owns Ollama's bodies and answers, as in its API reference. A name may end in `:latest`, as Ollama's own names do.
"""

import time
from collections.abc import Mapping
from typing import Any

from flask import Response
from pydantic import BaseModel, Field

from app.access.auth import visible_cards
from app.compat.adapters import Adapter, VendorBody, Wanted, choose_card, embed, refuse_field
from app.fields import ModelName, Truncate
from app.http.errors import documented
from app.http.responses import json_response
from app.jobs.schemas import JobObject
from app.services import services
from config.catalog import ModelCard
from tasks.engine import Outcomes
from tasks.errors import InvalidRequest

__all__ = ["adapter"]

adapter = Adapter("ollama", "Ollama's embedding routes, for its client libraries")

_LATEST = ":latest"
# Models have no date of their own; Ollama's clients parse one.
_MODIFIED = "2025-01-01T00:00:00Z"


class _OllamaBody(VendorBody):
    """What both calls have."""

    model: ModelName = Field(description="Name or alias of a model, with or without `:latest`.")
    options: dict[str, Any] | None = Field(None, description="`num_ctx` below what the model reads is refused.")
    keep_alive: float | str | None = Field(None, description="Accepted and ignored: models stay loaded.")

    def card(self) -> ModelCard:
        """Return the model; refuse what `options` ask for that would change its vectors."""
        card = choose_card(self.model.removesuffix(_LATEST))
        context = (self.options or {}).get("num_ctx")
        if context is not None and (not isinstance(context, int) or context < card.max_tokens):
            raise refuse_field("options.num_ctx", f"{card.name} reads {card.max_tokens} tokens, not fewer")
        return card


class OllamaEmbedRequest(_OllamaBody):
    """Body of `POST /api/embed`."""

    input: str | list[str]
    truncate: bool | None = Field(None, description="false refuses a text that is too long. Default: true.")
    dimensions: int | None = Field(None, ge=1, description="Cut embeddings to this length and normalize again.")


class OllamaEmbeddingsRequest(_OllamaBody):
    """Body of `POST /api/embeddings`."""

    prompt: str


class OllamaEmbedResponse(BaseModel):
    """Answer of `POST /api/embed`; durations in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbeddingsResponse(BaseModel):
    """Answer of `POST /api/embeddings`."""

    embedding: list[float]


class OllamaModel(BaseModel):
    """One served model."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: dict[str, Any]


class OllamaTags(BaseModel):
    """Answer of `GET /api/tags`."""

    models: list[OllamaModel]


@adapter.post("/api/embed", responses=documented(OllamaEmbedResponse, accepted=JobObject, computing=True))
def embed_input(body: OllamaEmbedRequest) -> Response:
    """Embed one text or several, as Ollama does."""
    started_ns = time.perf_counter_ns()
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not texts:
        raise InvalidRequest("must not be empty", param="input")

    def render(outcomes: Outcomes) -> Response:
        answer = {"model": body.model, "embeddings": outcomes.values, "load_duration": 0}
        answer["total_duration"] = time.perf_counter_ns() - started_ns
        return json_response({**answer, "prompt_eval_count": int(outcomes.tokens.sum())})

    cut: Truncate = "none" if body.truncate is False else "end"
    return embed(body.card(), texts, Wanted(dimensions=body.dimensions, truncate=cut), body, render)


@adapter.post("/api/embeddings", responses=documented(OllamaEmbeddingsResponse, accepted=JobObject, computing=True))
def embed_prompt(body: OllamaEmbeddingsRequest) -> Response:
    """Embed one text, as older clients of Ollama ask for it."""
    return embed(body.card(), [body.prompt], Wanted(), body, lambda got: json_response({"embedding": got.values[0]}))


@adapter.get("/api/tags", responses=documented(OllamaTags))
def list_tags() -> Response:
    """List the served models, as Ollama does."""
    served = {card.name for card in services().catalog.served}
    return json_response(
        {"models": [_describe(card) for card in visible_cards(services().catalog) if card.name in served]}
    )


def _describe(card: ModelCard) -> Mapping[str, Any]:
    details = {"format": "", "family": card.family, "families": [card.family], "parameter_size": card.parameters}
    return {
        "name": card.name,
        "model": card.name,
        "modified_at": _MODIFIED,
        "size": 0,
        "digest": card.revision,
        "details": {"parent_model": "", "quantization_level": card.dtype, **details},
    }
