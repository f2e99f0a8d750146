"""Headers and body of the upload route, as pydantic models."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

__all__ = ["UploadHeaders", "UploadObject"]


class UploadHeaders(BaseModel):
    """Headers of `GET /v1/uploads`."""

    idempotency_key: Annotated[str, Field(min_length=1, max_length=255)] = Field(
        alias="Idempotency-Key", description="The key under which the upload was sent."
    )


class UploadObject(BaseModel):
    """How far an upload has come."""

    object: Literal["upload"]
    complete: bool = Field(description="Whether the key stands for a job.")
    job_id: str | None = Field(description="That job.")
    offset: int | None = Field(description="Bytes that need not be sent again.")
    items: int | None = Field(description="Items in these bytes.")
    expires_in_s: int | None = Field(description="How long they are kept if nothing more comes.")
