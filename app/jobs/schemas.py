"""Bodies and parameters of the job routes, as pydantic models.

Owns shapes and types; limits that are settings are checked in `app.submission.service`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Json, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from app.fields import (
    ChunkVector,
    Documents,
    Metadata,
    ModelName,
    QueryParameters,
    SparseWeights,
    Truncate,
    Vector,
    document_text,
)
from app.jobs.how_to_compute import HowToCompute
from app.jobs.items import MAX_ID_BYTES, BadItemError, read_id, read_item
from app.vector_formats import Precision
from tasks.errors import InvalidRequest
from tasks.jobs.chunking import Item

__all__ = [
    "EventHeaders",
    "JobEstimate",
    "JobFilter",
    "JobId",
    "JobList",
    "JobObject",
    "JobRequest",
    "ReadHeaders",
    "ResultPage",
    "ResultView",
    "RetryOptions",
    "SubmitHeaders",
    "SubmitOptions",
    "WebhookRequest",
]

_MAX_QUERIES = 10_000


def _check_items(value: Any) -> list[Item]:
    """Return items of strings and `{"id", "text"}` objects."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise PydanticCustomError("invalid_value", "must be a string or a list")
    if not values:
        raise PydanticCustomError("invalid_value", "must not be empty")
    return [_check_item(item, position) for position, item in enumerate(values)]


def _check_item(item: Any, position: int) -> Item:
    try:
        return read_item(item)
    except BadItemError as error:
        raise PydanticCustomError(
            "invalid_value", "item {position} {problem}", {"position": position, "problem": str(error)}
        ) from None


_ITEM_OBJECT = {
    "type": "object",
    "properties": {
        "id": {"anyOf": [{"type": "string", "maxLength": MAX_ID_BYTES}, {"type": "integer"}]},
        "text": {"type": "string"},
    },
    "required": ["text"],
}
_ITEMS_SCHEMA = {
    "description": "Texts, or objects with a text and an id of yours.",
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "string"}, _ITEM_OBJECT]}},
    ],
}
Items = Annotated[list[Item], PlainValidator(_check_items), WithJsonSchema(_ITEMS_SCHEMA)]
WebhookUrl = Annotated[str, Field(max_length=2048)]
WebhookSecret = Annotated[str, Field(max_length=200)]


class WebhookRequest(BaseModel):
    """Whom to tell of a job's end (Standard Webhooks)."""

    model_config = ConfigDict(strict=True)

    url: WebhookUrl = Field(description="http or https; leads to a public address.")
    secret: WebhookSecret | None = Field(
        None, description="whsec_ and base64. Left out, one is made and shown in the answer, once."
    )


class QueryGroup(BaseModel):
    """One query and its documents."""

    model_config = ConfigDict(strict=True)

    query: str
    documents: Documents


class JobRequest(HowToCompute):
    """JSON body of `POST /v1/jobs`."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["embeddings", "rerank"]
    model: ModelName = Field(description="Name or alias of a model, see /v1/models.")
    input: Items | None = Field(None, description="For embeddings: texts, or objects with a text and an id of yours.")
    input_file_id: str | None = Field(
        None, max_length=200, description="Instead: an uploaded file of yours, one item a line as in an NDJSON body."
    )
    query: str | None = Field(None, description="For rerank, with documents or a file.")
    documents: Documents | None = None
    queries: Annotated[list[QueryGroup], Field(min_length=1, max_length=_MAX_QUERIES)] | None = Field(
        None, description="For rerank: several queries, each with its documents."
    )
    webhook: WebhookRequest | None = Field(None, description="Whom to tell of the job's end.")
    metadata: Metadata | None = Field(None, description="At most 16 strings of yours; they come back with the job.")

    @model_validator(mode="after")
    def _require_items(self) -> Self:
        if self.input_file_id is not None:
            if self.input is not None or self.documents is not None or self.queries is not None:
                raise PydanticCustomError("invalid_value", "a job with `input_file_id` has all its items in the file")
            return self
        if self.type == "embeddings" and self.input is None:
            raise PydanticCustomError("missing", "`input` or `input_file_id` is required for a job of type embeddings")
        if self.type == "rerank" and self.queries is None and (self.query is None or self.documents is None):
            raise PydanticCustomError(
                "missing", "a job of type rerank needs `query` and `documents`, `queries` or `input_file_id`"
            )
        return self

    def groups(self) -> list[QueryGroup]:
        """Return the queries of a rerank job with their documents."""
        if self.queries is not None:
            return self.queries
        return [QueryGroup(query=self.query or "", documents=self.documents or [])]

    def items(self) -> list[Item]:
        """Return what is to be computed, in order."""
        if self.type == "embeddings":
            return self.input or []
        return [
            Item(document_text(document), query=group.query, id=_document_id(document, position))
            for group in self.groups()
            for position, document in enumerate(group.documents)
        ]


def _document_id(document: Any, position: int) -> str | None:
    try:
        return read_id(document) if isinstance(document, dict) else None
    except BadItemError as error:
        raise InvalidRequest(f"document {position} {error}", param="documents") from None


class SubmitOptions(HowToCompute):
    """Query parameters of `POST /v1/jobs`. All but `dry_run` are for an NDJSON body, which has no place for them."""

    model_config = ConfigDict(extra="forbid")

    dry_run: bool | None = Field(None, description="Only tell tokens, chunks, lane and estimated seconds.")
    type: Literal["embeddings", "rerank"] | None = Field(None, description="Default: embeddings.")
    model: ModelName | None = Field(None, description="Name or alias of a model; an NDJSON body needs it.")
    query: str | None = Field(None, description="For rerank: the query of every line that brings none of its own.")
    name: Annotated[str, Field(min_length=1, max_length=512)] | None = Field(
        None, description="What you call the job: short for `name` in `metadata`."
    )
    metadata: Json[Metadata] | None = Field(None, description="As in a JSON body: an object with strings, as JSON.")

    def labels(self) -> dict[str, str]:
        """Return the metadata of the job, its name included."""
        return {**(self.metadata or {}), **({"name": self.name} if self.name else {})}


class SubmitHeaders(BaseModel):
    """Headers of `POST /v1/jobs`."""

    prefer: str | None = Field(None, alias="Prefer", description="respond-async, wait=N (RFC 7240).")
    idempotency_key: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        None, alias="Idempotency-Key", description="The same key and payload give the same job."
    )
    webhook_url: WebhookUrl | None = Field(
        None, alias="Webhook-Url", description="For NDJSON: whom to tell of the end."
    )
    webhook_secret: WebhookSecret | None = Field(
        None, alias="Webhook-Secret", description="For NDJSON: whsec_ and base64."
    )

    def webhook(self) -> WebhookRequest | None:
        """Return what the headers say of a webhook."""
        return WebhookRequest(url=self.webhook_url, secret=self.webhook_secret) if self.webhook_url else None


class ReadHeaders(BaseModel):
    """Headers of `GET /v1/jobs/{job_id}`."""

    prefer: str | None = Field(None, alias="Prefer", description="wait=N: answer when the job changed or ended.")
    if_none_match: str | None = Field(None, alias="If-None-Match")


class EventHeaders(BaseModel):
    """Headers of `GET /v1/jobs/{job_id}/events`."""

    last_event_id: Annotated[str, Field(max_length=20)] | None = Field(None, alias="Last-Event-ID")


class JobId(BaseModel):
    """Path parameter."""

    job_id: str = Field(max_length=100)


class JobFilter(QueryParameters):
    """Query parameters of the list of jobs."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: str | None = Field(None, max_length=100, description="The last id of the page before.")
    status: str | None = Field(None, max_length=100, description="Only these states, comma-separated.")


class RetryOptions(BaseModel):
    """Query parameters of a retry."""

    truncate: Truncate | None = Field(None, description="Cut texts that were too long, from now on.")


class ResultView(QueryParameters):
    """Query parameters of a job's results."""

    format: Literal["json", "ndjson", "npy", "arrow", "arrows", "parquet"] | None = Field(
        None, description="Instead of the Accept header. arrows: an Arrow stream. Default: json."
    )
    encoding_format: Literal["float", "base64"] | None = Field(None, description="For json and ndjson. Default: float.")
    output_dtype: Precision | None = Field(None, description="Numbers of dense vectors. Default: as they are kept.")
    after: Annotated[int, Field(ge=-1)] | None = Field(
        None, description="For json, ndjson, arrow and arrows: only items behind this index."
    )
    limit: Annotated[int, Field(ge=1, le=1000)] | None = Field(None, description="For json: items. Default: 100.")
    status: Literal["failed"] | None = Field(None, description="For json and ndjson: only items that failed.")
    follow: bool | None = Field(None, description="For ndjson and arrows: send chunks as they end while the job runs.")

    def require_form(self) -> None:
        """Refuse what the chosen format cannot do; it would be ignored.

        Raises:
            InvalidRequest: a parameter that goes with other formats.
        """
        forms = {
            "status": ("json", "ndjson"),
            "follow": ("ndjson", "arrows"),
            "after": ("json", "ndjson", "arrow", "arrows"),
        }
        for name, possible in forms.items():
            if getattr(self, name) is not None and self.format not in possible:
                raise InvalidRequest(f"{name} goes with the formats {', '.join(possible)}", param=name)


class JobCounts(BaseModel):
    """Items by outcome."""

    total: int
    completed: int
    failed: int
    truncated: int
    cached: int = Field(description="Items whose value came from the cache.")


class ItemFailure(BaseModel):
    """Why one item has no result."""

    code: str
    message: str


class ResultItem(BaseModel):
    """What became of one item."""

    index: int
    id: str | None = None
    embedding: Vector | None = None
    sparse: SparseWeights | None = Field(None, description="Weights by token id, if asked for.")
    colbert: list[Vector] | None = Field(None, description="A vector for each token behind the first, if asked for.")
    chunks: list[ChunkVector] | None = Field(None, description="With `long: chunks`, in place of the embedding.")
    query: int | None = Field(None, description="For rerank: which query, from 0.")
    document: int | None = Field(None, description="For rerank: which of that query's documents, from 0.")
    relevance_score: float | None = None
    tokens: int
    truncated: bool
    error: ItemFailure | None = None


class WebhookObject(BaseModel):
    """Where the end of a job is delivered, and the state of that delivery."""

    url: str
    status: Literal["waiting", "pending", "retrying", "delivered", "failed"]
    attempts: int
    last_attempt_at: float | None
    next_attempt_at: float | None
    answer: int | None = Field(description="HTTP status of the last attempt; null: there was no answer.")
    error: str | None
    secret: str | None = Field(None, description="Only in the answer to the call that made it.")


class JobObject(BaseModel):
    """A job."""

    id: str
    object: Literal["job"]
    type: Literal["embeddings", "rerank"]
    model: str
    status: str
    created_at: float
    started_at: float | None
    ended_at: float | None
    expires_at: float
    deadline_at: float | None = Field(description="When the job ends as expired, if it has not ended by itself.")
    not_before: float | None = Field(description="Until when it waits.")
    counts: JobCounts
    chunks: dict[str, int]
    tokens: int
    estimated_tokens: int
    tokens_per_s: float | None
    eta_s: float | None
    position: int | None = Field(description="Jobs ahead in the lane.")
    priority: str
    params: dict[str, Any]
    fingerprint: str
    metadata: dict[str, str]
    webhook: WebhookObject | None
    error: str | None
    links: dict[str, str]
    results: list[ResultItem] | None = Field(None, description="Only when the job was answered at once.")


class JobEstimate(BaseModel):
    """What a job would cost."""

    object: Literal["job.estimate"]
    model: str
    items: int
    tokens: int
    chunks: int
    lane: Literal["interactive", "bulk"]
    estimated_s: float | None


class JobList(BaseModel):
    """Jobs, newest first."""

    object: Literal["list"]
    data: list[JobObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResultPage(BaseModel):
    """Items of a job's results in input order."""

    object: Literal["list"]
    data: list[ResultItem]
    has_more: bool
    last_id: int | None = Field(description="Index of the last item: `after` of the next page.")
    after: int
    limit: int
