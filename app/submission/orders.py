"""What is asked of the submission service, and what it answers.

Owns the values between routes and service, and what of an order can be checked against the model's card alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import orjson
from pydantic import BaseModel

from app.submission.windows import choose_windows
from config.catalog import ModelCard
from config.settings import Settings
from tasks.engine import JobParams, Operation, TokenOperation
from tasks.errors import InvalidRequest, WrongCapability
from tasks.jobs.chunking import ChunkLimits
from tasks.jobs.job import ChunkInput, Job, Webhook
from tasks.lanes import Service
from tasks.vectors import DENSE_ONLY, Kind, estimate_bytes

__all__ = [
    "Estimate",
    "Order",
    "Priority",
    "Submission",
    "check_capability",
    "count_chunks",
    "count_id_bytes",
    "estimate_result_bytes",
    "limit_chunks",
    "make_order",
]

# Sparse weights and token vectors of one chunk take about so much at most: a result is read and written whole.
_CHUNK_EXTRA_BYTES = 2**25
_CHUNK_BOUNDS_BYTES = 8

# Windows of a text whose number is not limited: the length of texts limits them.
_ENDLESS = 2**31

Priority = Literal["low", "normal", "high"]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done with items, of a call, a job or a batch.

    Attributes:
        card: the model.
        operation: what to compute.
        params: how.
        extra: what the job record keeps of the request.
        items_field: name of the request's field that holds the items, for error messages.
        webhook: whom to tell of the job's end.
        new_secret: its secret, if it was made here and the caller does not know it yet.
        expires_in_s: after so many seconds the job ends as it is; None never.
        not_before: seconds since the epoch before which none of it is computed; None: at once.
    """

    card: ModelCard
    operation: Operation | TokenOperation
    params: JobParams = field(default_factory=JobParams)
    priority: Priority = "normal"
    extra: Mapping[str, object] = field(default_factory=dict)
    items_field: str = "input"
    webhook: Webhook | None = None
    new_secret: str = field(default="", repr=False)
    expires_in_s: float | None = None
    not_before: float | None = None

    @property
    def is_timed(self) -> bool:
        """Whether it says when it is computed: such a job is queued, however small it is."""
        return self.expires_in_s is not None or self.not_before is not None

    @property
    def max_tokens(self) -> int:
        """The most that the model reads of one item, all windows together."""
        windows = self.params.long
        if windows is None:
            return self.card.max_tokens
        size = min(windows.tokens or self.card.max_tokens, self.card.max_tokens)
        return size * (windows.most or _ENDLESS)


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


def make_order(
    card: ModelCard,
    operation: Operation,
    request: BaseModel,
    extra: Mapping[str, object] | None = None,
    *,
    job: bool = False,
) -> Order:
    """Return what a request asks for, be it a call, a job or a line of a batch.

    Args:
        card: the model.
        operation: what to compute.
        request: its body or its query parameters; a field that its schema does not have is as good as null.
        extra: what the job record keeps of it.
        job: whether it is a job of its own, whose texts the card may take for documents.

    Raises:
        InvalidRequest, WrongCapability: the model cannot do it like that.
    """
    # The fields themselves: asking the model for one that it does not have takes it longer than all the others.
    asked = vars(request).get
    if operation == "rerank" and asked("returns") is not None:
        raise InvalidRequest("rerank gives scores, and no vectors", param="return")
    input_type = asked("input_type")
    if job and operation == "embeddings" and input_type is None:
        input_type = card.job_input_type
    params = JobParams(
        instruction=_choose_instruction(card, asked("instruction"), input_type),
        dimensions=_choose_dimensions(card, asked("dimensions")),
        truncate=asked("truncate") or "end",
        dtype=asked("dtype") or "float32",
        cache=asked("cache"),
        dedupe=asked("dedupe"),
        returns=_choose_kinds(card, asked("returns")),
        role=input_type if card.family == "colbert" else None,
        cutoff_layer=_choose_layer(card, operation, asked("cutoff_layers")),
        long=choose_windows(card, operation, asked),
    )
    items_field = "input" if operation == "embeddings" else "documents"
    order = Order(card, operation, params, asked("priority") or "normal", extra or {}, items_field)
    return replace(order, expires_in_s=asked("expires_in"), not_before=asked("not_before")) if job else order


def _choose_instruction(card: ModelCard, instruction: str | None, input_type: str | None) -> str | None:
    if instruction is None:
        own = {"query": card.query_instruction, "document": card.document_instruction}
        instruction = own.get(input_type or "")
    return instruction or None


def _choose_dimensions(card: ModelCard, dimensions: int | None) -> int | None:
    if dimensions is not None and card.complete and "dense" not in card.capabilities:
        raise InvalidRequest(f"{card.name} gives no dense vectors, which dimensions are of", param="dimensions")
    if dimensions is not None and (problem := card.explain_dimensions(dimensions)):
        raise InvalidRequest(problem, param="dimensions")
    return None if dimensions == card.dimension else dimensions


def _choose_layer(card: ModelCard, operation: Operation, layer: int | None) -> int | None:
    if layer is None:
        return None
    if operation != "rerank":
        raise InvalidRequest("cutoff_layers is for rerank, and no vectors", param="cutoff_layers")
    if card.complete and (problem := card.explain_layer(layer)):
        raise InvalidRequest(problem, param="cutoff_layers")
    # What the model does anyway is one with what nobody asked for: so the cache knows it.
    return None if card.cutoff_layers and layer == card.cutoff_layers[-1] else layer


def _choose_kinds(card: ModelCard, wanted: Sequence[Kind] | None) -> tuple[Kind, ...]:
    missing = [kind for kind in wanted or () if kind not in card.kinds]
    if missing and (card.complete or missing != ["dense"]):
        message = f"{card.name} gives no {' and no '.join(missing)} vectors; it offers {', '.join(card.capabilities)}"
        raise WrongCapability(message, param="return")
    return tuple(wanted or card.kinds[:1] or DENSE_ONLY)


def limit_chunks(settings: Settings, order: Order) -> ChunkLimits:
    """Return what a chunk of the order may hold: a vector per token fills a result far sooner than one per text."""
    limits = ChunkLimits.of(settings, order.max_tokens)
    token_bytes = _extra_bytes(order, 1024) / 1024
    most = max(1, int(_CHUNK_EXTRA_BYTES / token_bytes)) if token_bytes else limits.tokens
    return replace(limits, tokens=min(limits.tokens, most))


def estimate_result_bytes(order: Order, items: int, tokens: int) -> int:
    """Return about what the results of so many items with so many tokens take at rest."""
    params, width = order.params, order.card.dimension or 1
    dense = (params.dimensions or width) if params.dense else 0
    values = items * np.dtype(params.dtype).itemsize * (dense if order.operation == "embeddings" else 1)
    return values + _extra_bytes(order, tokens)


def count_chunks(order: Order, tokens: int) -> int:
    """Return about how many parts with a vector of their own texts with so many tokens have."""
    windows = order.params.long
    if windows is None or not order.params.in_chunks:
        return 0
    size, overlap = windows.fit(order.card.max_tokens)
    return -(-tokens // (size - overlap))


def _extra_bytes(order: Order, tokens: int) -> int:
    params, width = order.params, order.card.dimension or 1
    chunk_bytes = np.dtype(params.dtype).itemsize * (params.dimensions or width) + _CHUNK_BOUNDS_BYTES
    return estimate_bytes(params.returns, tokens, width, params.dtype) + count_chunks(order, tokens) * chunk_bytes


def count_id_bytes(chunk: ChunkInput) -> int:
    """Return what the callers' ids of a chunk take in its result."""
    return len(orjson.dumps(chunk.ids)) if chunk.ids is not None else 0


def check_capability(order: Order) -> None:
    """Refuse an order that the model cannot do.

    Raises:
        WrongCapability: the card does not offer it.
    """
    if order.operation in {"tokenize", "detokenize"}:
        return
    needed = set(order.params.returns) if order.operation == "embeddings" else {"rerank"}
    if not needed <= set(order.card.capabilities):
        message = f"{order.card.name} does not offer {order.operation}; it offers {', '.join(order.card.capabilities)}"
        raise WrongCapability(message, param="model")
