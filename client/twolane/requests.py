"""What is sent to the server, as values: no connection is opened here.

Owns paths, parameters and headers of every call, for the client and its asynchronous twin alike. Names of fields are
those of the server's OpenAPI document, which a test compares.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import msgspec

from twolane.answers import Embeddings, Estimate, Job, JobPage, Model, ModelPage, Ranking, ResultPage

__all__ = [
    "Call",
    "EmbedBody",
    "Item",
    "JobOptions",
    "Kind",
    "LongText",
    "RerankBody",
    "Truncate",
    "Webhook",
    "change_job",
    "create_job",
    "download_results",
    "embed",
    "encode_items",
    "estimate_job",
    "follow_events",
    "follow_results",
    "get_job",
    "get_model",
    "list_jobs",
    "list_models",
    "page_results",
    "rerank",
]

T = TypeVar("T")
Truncate = Literal["end", "start", "none"]
Kind = Literal["dense", "sparse", "colbert"]
LongText = Literal["mean", "max", "chunks"]
Item = str | Mapping[str, Any]

_NDJSON = "application/x-ndjson"
_encode = msgspec.json.Encoder().encode


class Call(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One request.

    Attributes:
        answer: what the body of the answer is.
        wait_s: how long the server may hold the call beyond its usual time.
    """

    method: str
    path: str
    answer: type[T]
    params: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    content: bytes | None = None
    wait_s: float = 0.0


class EmbedBody(msgspec.Struct, omit_defaults=True, kw_only=True, rename={"returns": "return"}):
    """Body of `POST /v1/embeddings`."""

    model: str
    input: Sequence[str]
    encoding_format: Literal["base64"] | None = None
    dimensions: int | None = None
    input_type: Literal["query", "document"] | None = None
    instruction: str | None = None
    truncate: Truncate | None = None
    cache: bool | None = None
    returns: Sequence[Kind] | None = None
    long: LongText | None = None
    chunk_tokens: int | None = None
    overlap_tokens: int | None = None
    on_error: Literal["fail", "item"] | None = None
    priority: Literal["low", "normal", "high"] | None = None


class RerankBody(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Body of `POST /v1/rerank`."""

    model: str
    query: str
    documents: Sequence[Item]
    top_n: int | None = None
    return_documents: bool | None = None
    instruction: str | None = None
    cutoff_layers: int | None = None
    truncate: Truncate | None = None
    cache: bool | None = None
    max_tokens_per_doc: int | None = None
    max_chunks_per_doc: int | None = None
    overlap_tokens: int | None = None
    priority: Literal["low", "normal", "high"] | None = None


class JobOptions(msgspec.Struct, omit_defaults=True, kw_only=True, frozen=True, rename={"returns": "return"}):
    """How the items of a job are computed: the query parameters of an upload."""

    model: str
    type: Literal["embeddings", "rerank"] = "embeddings"
    query: str | None = None
    dimensions: int | None = None
    input_type: Literal["query", "document"] | None = None
    instruction: str | None = None
    cutoff_layers: int | None = None
    truncate: Truncate | None = None
    dtype: Literal["float32", "float16"] | None = None
    priority: Literal["low", "normal", "high"] | None = None
    cache: bool | None = None
    dedupe: bool | None = None
    expires_in: float | None = None
    not_before: float | str | None = None
    returns: Sequence[Kind] | None = None
    long: LongText | None = None
    chunk_tokens: int | None = None
    max_tokens_per_doc: int | None = None
    max_chunks_per_doc: int | None = None
    overlap_tokens: int | None = None
    name: str | None = None
    metadata: Mapping[str, str] | None = None

    def as_query(self) -> dict[str, str]:
        """Return the query parameters."""
        return {name: _as_text(value) for name, value in msgspec.to_builtins(self).items()}


class Webhook(msgspec.Struct, frozen=True):
    """Where a job's end is announced. Without a secret the server makes one and shows it once."""

    url: str
    secret: str | None = None


def embed(body: EmbedBody) -> Call[Embeddings]:
    """Return the call that embeds a few texts at once."""
    return _post("/v1/embeddings", Embeddings, body)


def rerank(body: RerankBody) -> Call[Ranking]:
    """Return the call that orders documents by a query."""
    return _post("/v1/rerank", Ranking, body)


def list_models() -> Call[ModelPage]:
    """Return the call for all models."""
    return Call(method="GET", path="/v1/models", answer=ModelPage)


def get_model(name: str) -> Call[Model]:
    """Return the call for one model, by name or alias."""
    return Call(method="GET", path=f"/v1/models/{quote(name, safe='')}", answer=Model)


def encode_items(items: Iterable[Item]) -> bytes:
    """Return the lines of an upload: texts, or objects with `text`, `id` and, for rerank, `query`."""
    return b"".join(_encode(item) + b"\n" for item in items)


def create_job(
    lines: bytes, options: JobOptions, *, key: str | None = None, webhook: Webhook | None = None
) -> Call[Job]:
    """Return the call that makes a job of encoded items.

    Without a key it gets a random one, so that the call can be repeated.
    """
    headers = {"Content-Type": _NDJSON, "Prefer": "respond-async", "Idempotency-Key": key or uuid.uuid4().hex}
    if webhook is not None:
        headers["Webhook-Url"] = webhook.url
        if webhook.secret is not None:
            headers["Webhook-Secret"] = webhook.secret
    return Call(method="POST", path="/v1/jobs", answer=Job, params=options.as_query(), headers=headers, content=lines)


def estimate_job(lines: bytes, options: JobOptions) -> Call[Estimate]:
    """Return the call that asks what a job would cost."""
    params = {**options.as_query(), "dry_run": "true"}
    headers = {"Content-Type": _NDJSON}
    return Call(method="POST", path="/v1/jobs", answer=Estimate, params=params, headers=headers, content=lines)


def get_job(job_id: str, *, wait_s: int = 0, unless: str = "") -> Call[Job]:
    """Return the call for a job's state.

    Args:
        job_id: the job.
        wait_s: hold the answer until the job has ended, or changed where `unless` is given; 60 at most.
        unless: entity tag of the state that is known already; while it holds the answer is 304.
    """
    headers = {"Prefer": f"wait={wait_s}"} if wait_s else {}
    if unless:
        headers["If-None-Match"] = unless
    return Call(method="GET", path=_job_path(job_id), answer=Job, headers=headers, wait_s=float(wait_s))


def list_jobs(*, status: str | None = None, limit: int = 100, after: str | None = None) -> Call[JobPage]:
    """Return the call for one page of jobs, newest first; `status`: names with commas between."""
    asked = {"status": status, "limit": str(limit), "after": after}
    params = {name: value for name, value in asked.items() if value is not None}
    return Call(method="GET", path="/v1/jobs", answer=JobPage, params=params)


def change_job(job_id: str, verb: Literal["cancel", "pause", "resume", "retry"]) -> Call[Job]:
    """Return the call that changes a job's state; each may be repeated."""
    return Call(method="POST", path=f"{_job_path(job_id)}/{verb}", answer=Job)


def delete_job(job_id: str) -> Call[Job]:
    """Return the call that cancels a job which has not ended, and deletes one that has."""
    return Call(method="DELETE", path=_job_path(job_id), answer=Job)


def page_results(job_id: str, *, after: int = -1, limit: int = 1000) -> Call[ResultPage]:
    """Return the call for the results behind an index."""
    params = {"format": "json", "encoding_format": "base64", "after": str(after), "limit": str(limit)}
    return Call(method="GET", path=f"{_job_path(job_id)}/results", answer=ResultPage, params=params)


def download_results(job_id: str, form: Literal["ndjson", "npy", "arrow", "arrows", "parquet"]) -> Call[bytes]:
    """Return the call for a whole result file."""
    return Call(method="GET", path=f"{_job_path(job_id)}/results", answer=bytes, params={"format": form})


def follow_results(job_id: str, after: int = -1) -> Call[bytes]:
    """Return the call for the results behind an index as NDJSON, each as soon as it and all before it are there."""
    params = {"format": "ndjson", "encoding_format": "base64", "follow": "true", "after": str(after)}
    return Call(method="GET", path=f"{_job_path(job_id)}/results", answer=bytes, params=params)


def follow_events(job_id: str, last_event_id: str = "") -> Call[bytes]:
    """Return the call for a job's changes as server-sent events, behind the one that was seen last."""
    headers = {"Accept": "text/event-stream"}
    if last_event_id:
        headers["Last-Event-ID"] = last_event_id
    return Call(method="GET", path=f"{_job_path(job_id)}/events", answer=bytes, headers=headers)


def _post(path: str, answer: type[T], body: msgspec.Struct) -> Call[T]:
    headers = {"Content-Type": "application/json"}
    return Call(method="POST", path=path, answer=answer, headers=headers, content=_encode(body))


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode()
    return ",".join(value) if isinstance(value, list | tuple) else str(value)
