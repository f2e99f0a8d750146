"""Bodies and parameters of the file and batch routes, as pydantic models, after OpenAI's specification.

Owns shapes and types; limits that are settings are checked in the routes.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "BatchId",
    "BatchList",
    "BatchObject",
    "BatchPage",
    "BatchRequest",
    "DeletedFile",
    "FileFilter",
    "FileId",
    "FileList",
    "FileObject",
    "UploadFields",
]

_Id = Annotated[str, Field(max_length=100)]
_KeepSeconds = Annotated[int, Field(ge=3600, le=2_592_000)]


class UploadFields(BaseModel):
    """The fields of `POST /v1/files` besides the file. Their values are text, as forms have it."""

    model_config = ConfigDict(extra="ignore")

    purpose: Literal["batch"]
    anchor: Literal["created_at"] | None = Field(None, alias="expires_after[anchor]")
    seconds: _KeepSeconds | None = Field(None, alias="expires_after[seconds]")


class FileId(BaseModel):
    """Path parameter."""

    file_id: _Id


class FileFilter(BaseModel):
    """Query parameters of the list of files."""

    purpose: Annotated[str, Field(max_length=64)] | None = Field(None, description="Only files of this purpose.")
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = Field("desc", description="By time of creation.")
    after: _Id | None = Field(None, description="The last id of the page before.")


class FileObject(BaseModel):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]


class FileList(BaseModel):
    """Files of one page."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(BaseModel):
    """Answer to a deletion."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class ExpiresAfter(BaseModel):
    """How long output files are kept."""

    model_config = ConfigDict(strict=True, extra="ignore")

    anchor: Literal["created_at"]
    seconds: _KeepSeconds


class BatchRequest(BaseModel):
    """Body of `POST /v1/batches`."""

    model_config = ConfigDict(strict=True, extra="ignore")

    input_file_id: _Id = Field(description="A file of purpose batch: one request a line.")
    endpoint: Literal["/v1/embeddings", "/v1/rerank"] = Field(description="The url of every line.")
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = Field(None, description="Up to 16 strings of yours; they come back.")
    output_expires_after: ExpiresAfter | None = Field(None, description="Default: as long as uploaded files.")


class BatchHeaders(BaseModel):
    """Headers of `POST /v1/batches`."""

    idempotency_key: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        None, alias="Idempotency-Key", description="The same key and payload give the same batch."
    )


class BatchId(BaseModel):
    """Path parameter."""

    batch_id: _Id


class BatchPage(BaseModel):
    """Query parameters of the list of batches."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20
    after: _Id | None = Field(None, description="The last id of the page before.")


class BatchErrorObject(BaseModel):
    """Why a batch failed."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrorList(BaseModel):
    """The first problems of a batch's file."""

    object: Literal["list"]
    data: list[BatchErrorObject]


class RequestCounts(BaseModel):
    """Lines by outcome."""

    total: int
    completed: int
    failed: int


class BatchUsage(BaseModel):
    """Tokens of a batch, in OpenAI's shape."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class BatchObject(BaseModel):
    """A batch. Times are unix seconds."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrorList | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    model: str | None = Field(
        description="The model of its lines; several are joined by commas; null before any is known."
    )
    usage: BatchUsage = Field(description="Tokens that the model read so far.")
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    """Batches, newest first."""

    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
