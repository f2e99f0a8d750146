"""What is asked of the submission service, and what it answers.

Owns the values between routes and service, and what of an order can be checked against the model's card alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from app.inference.schemas import EmbeddingsRequest, RerankRequest
from config.catalog import ModelCard
from config.settings import Settings
from tasks.engine import JobParams, Operation
from tasks.errors import InvalidRequest, WrongCapability
from tasks.jobs.chunking import ChunkLimits
from tasks.jobs.model import Job, Webhook
from tasks.lanes import Service
from tasks.vectors import DENSE_ONLY, Kind, estimate_bytes

__all__ = [
    "Estimate",
    "Order",
    "Priority",
    "Submission",
    "check_capability",
    "choose_kinds",
    "estimate_result_bytes",
    "limit_chunks",
    "order_embeddings",
    "order_ranking",
    "resolve_params",
]

# Sparse weights and token vectors of one chunk take about so much at most: a result is read and written whole.
_CHUNK_EXTRA_BYTES = 2**25

Truncate = Literal["end", "start", "none"]
Priority = Literal["low", "normal", "high"]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done with items, whoever brings them.

    Attributes:
        card: the model.
        operation: what to compute.
        params: how.
        extra: what the job record keeps of the request.
        items_field: name of the request's field that holds the items, for error messages.
        webhook: whom to tell of the job's end.
        new_secret: its secret, if it was made here and the caller does not know it yet.
    """

    card: ModelCard
    operation: Operation
    params: JobParams = field(default_factory=JobParams)
    priority: Priority = "normal"
    extra: Mapping[str, object] = field(default_factory=dict)
    items_field: str = "input"
    webhook: Webhook | None = None
    new_secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of a submitted job.

    Attributes:
        job: its record.
        frame: its result frame, when it was answered at once.
        created: False when the idempotency key stood for it already.
    """

    job: Job
    frame: bytes | None = None
    created: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job would cost."""

    items: int
    tokens: int
    chunks: int
    service: Service


def order_embeddings(body: EmbeddingsRequest, card: ModelCard) -> Order:
    """Return what a body of the embeddings route asks for, be it a call or a line of a batch.

    Raises:
        InvalidRequest, WrongCapability: the model cannot do it like that.
    """
    params = resolve_params(
        card,
        dimensions=body.dimensions,
        input_type=body.input_type,
        instruction=body.instruction,
        truncate=body.truncate,
    )
    return Order(card, "embeddings", replace(params, cache=body.cache, returns=choose_kinds(card, body.returns)))


def order_ranking(body: RerankRequest, card: ModelCard) -> Order:
    """Return what a body of the rerank routes asks for, be it a call or a line of a batch."""
    params = replace(resolve_params(card, instruction=body.instruction), cache=body.cache)
    return Order(card, "rerank", params, items_field="documents")


def choose_kinds(card: ModelCard, wanted: Sequence[Kind] | None) -> tuple[Kind, ...]:
    """Return the kinds of vectors that are asked for.

    Raises:
        WrongCapability: the card does not offer one of them.
    """
    missing = [kind for kind in wanted or () if kind != "dense" and kind not in card.capabilities]
    if missing:
        message = f"{card.name} gives no {' and no '.join(missing)} vectors; it offers {', '.join(card.capabilities)}"
        raise WrongCapability(message, param="return")
    return tuple(wanted or DENSE_ONLY)


def limit_chunks(settings: Settings, order: Order) -> ChunkLimits:
    """Return what a chunk of the order may hold: a vector per token fills a result far sooner than one per text."""
    limits = ChunkLimits.of(settings, order.card.max_tokens)
    token_bytes = estimate_bytes(order.params.returns, 1, order.card.dimension or 1, order.params.dtype)
    most = max(1, _CHUNK_EXTRA_BYTES // token_bytes) if token_bytes else limits.tokens
    return replace(limits, tokens=min(limits.tokens, most))


def estimate_result_bytes(order: Order, items: int, tokens: int) -> int:
    """Return about what the results of so many items with so many tokens take at rest."""
    params, width = order.params, order.card.dimension or 1
    dense = (params.dimensions or width) if "dense" in params.returns else 0
    values = items * np.dtype(params.dtype).itemsize * (dense if order.operation == "embeddings" else 1)
    return values + estimate_bytes(params.returns, tokens, width, params.dtype)


def resolve_params(
    card: ModelCard,
    *,
    dimensions: int | None = None,
    input_type: str | None = None,
    instruction: str | None = None,
    truncate: Truncate | None = None,
    dtype: Literal["float32", "float16"] | None = None,
) -> JobParams:
    """Return how items are computed, with the card's own values filled in.

    Raises:
        InvalidRequest: more dimensions than the model has.
    """
    if dimensions is not None and card.dimension is not None and dimensions > card.dimension:
        message = f"dimensions must be at most {card.dimension}, the size of {card.name}'s embeddings"
        raise InvalidRequest(message, param="dimensions")
    if instruction is None and input_type == "query":
        instruction = card.query_instruction or None
    elif instruction is None and input_type == "document":
        instruction = card.document_instruction or None
    return JobParams(
        instruction=instruction or None,
        dimensions=None if dimensions == card.dimension else dimensions,
        truncate=truncate or "end",
        dtype=dtype or "float32",
    )


def check_capability(order: Order) -> None:
    """Refuse an order that the model cannot do.

    Raises:
        WrongCapability: the card does not offer it.
    """
    needed = "dense" if order.operation == "embeddings" else "rerank"
    if needed not in order.card.capabilities:
        message = f"{order.card.name} does not offer {order.operation}; it offers {', '.join(order.card.capabilities)}"
        raise WrongCapability(message, param="model")
