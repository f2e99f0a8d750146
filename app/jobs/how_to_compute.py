"""How the items of a job are computed: the fields that its JSON body and its query parameters share.

Owns those fields alone; the bodies that have them are in `app.jobs.schemas`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from app.fields import (
    ChunkCount,
    ChunkTokens,
    CutoffLayer,
    LongText,
    Moment,
    OverlapTokens,
    Priority,
    Returns,
    Truncate,
)
from app.spellings import JOB_FIELDS, translate_job

__all__ = ["HowToCompute"]


class HowToCompute(BaseModel):
    """What both forms of a job have in common."""

    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="Cut embeddings to this length.")
    input_type: Literal["query", "document"] | None = Field(None, description="query: the model's own instruction.")
    instruction: str | None = Field(None, max_length=10_000, description="An instruction instead of the model's own.")
    cutoff_layers: CutoffLayer | None = Field(
        None,
        description="For rerank: the layer after which a layerwise reranker scores, also in a list. Default: the last.",
    )
    truncate: Truncate | None = Field(None, description="Where a text that is too long is cut; none fails the item.")
    dtype: Literal["float32", "float16"] | None = Field(None, description="Precision at rest. Default: float32.")
    priority: Priority | None = Field(None, description="Default: normal.")
    expires_in: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Seconds after which the job ends as expired; what was computed by then is kept."
    )
    not_before: Moment | None = Field(None, description="The job waits until then, for hours off the peak, say.")
    cache: bool | None = Field(
        None, description="Use cached values of your earlier work, and cache these. Default: no."
    )
    dedupe: bool | None = Field(None, description="Compute equal texts of the job once. Default: no.")
    returns: Returns | None = Field(
        None, alias="return", description="For embeddings: kinds of vectors that the model gives. Default: dense."
    )
    long: LongText | None = Field(None, description="For embeddings: see /v1/embeddings.")
    chunk_tokens: ChunkTokens | None = Field(None, description="With `long`: most tokens of a text in one window.")
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = Field(
        None, description="For rerank: documents are cut to so many tokens."
    )
    max_chunks_per_doc: ChunkCount | None = Field(None, description="For rerank: windows of a document. Default: 1.")
    overlap_tokens: OverlapTokens | None = Field(
        None, description="Of windows: about how many tokens the next one repeats. Default: an eighth."
    )

    spelled: ClassVar[frozenset[str]] = JOB_FIELDS

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, value: Any) -> Any:
        return translate_job(value)
