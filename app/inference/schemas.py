"""Bodies of the embeddings, rerank and models routes, as pydantic models; the OpenAPI text is made from them.

Owns shapes and types. Limits that are settings are checked where the settings are, in `app.submission.service`. Unknown
fields are ignored, and null means absent, since clients send both.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from app.fields import (
    ChunkCount,
    ChunkTokens,
    ChunkVector,
    CutoffLayer,
    Documents,
    LongText,
    ModelName,
    OverlapTokens,
    Priority,
    Returns,
    SparseWeights,
    Truncate,
    Vector,
    refuse,
)
from app.spellings import EMBEDDING_FIELDS, RANKING_FIELDS, translate_embeddings, translate_ranking
from app.vector_formats import Precision

__all__ = [
    "EmbeddingsRequest",
    "EmbeddingsResponse",
    "ModelList",
    "ModelObject",
    "RerankRequest",
    "RerankResponse",
    "TextInput",
    "Usage",
]

TokenIds = list[int]


def _check_input(value: Any) -> str | list[str] | list[TokenIds]:
    """Return the input, a list of token ids as a list of one list.

    Written out because pydantic would answer a wrong item of a union with one complaint per member and item.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise refuse("must be a string, a list of strings or a list of token ids")
    if not value:
        raise refuse("must not be empty")
    if type(value[0]) is int:
        return [_check_ids(value, 0)]
    if isinstance(value[0], list):
        return [_check_ids(ids, position) for position, ids in enumerate(value)]
    return _check_strings(value)


def _check_strings(value: list[Any]) -> list[str]:
    for position, item in enumerate(value):
        if not isinstance(item, str):
            raise refuse("must not be mixed: item {position} is not a string", position=position)
    return value


def _check_ids(ids: Any, position: int) -> TokenIds:
    if not isinstance(ids, list) or not ids:
        raise refuse("item {position} must be a list of token ids and not be empty", position=position)
    for value in ids:
        if type(value) is not int or value < 0:  # a bool is not an int
            raise refuse("item {position} has a token id that is not a whole number from 0", position=position)
    return ids


_STRINGS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_INPUT_SCHEMA = {
    "description": "One text, several, or token ids (cl100k) of one or several texts.",
    "anyOf": [{"type": "string"}, _STRINGS, _IDS, {"type": "array", "items": _IDS, "minItems": 1}],
}

TextInput = Annotated[str | list[str] | list[TokenIds], PlainValidator(_check_input), WithJsonSchema(_INPUT_SCHEMA)]


_PRIORITY = "high: before other calls, with a key of that priority. low: as large calls, behind all small ones."


class _Body(BaseModel):
    """A request body: a bool is no int, a number no string."""

    model_config = ConfigDict(strict=True, extra="ignore")


class EmbeddingsRequest(_Body):
    """Body of `POST /v1/embeddings`."""

    model: ModelName = Field(description="Name or alias of a model, see /v1/models.")
    input: TextInput
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: little-endian float32. Default: float."
    )
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Cut embeddings to this length and normalize again. Also `output_dimension`."
    )
    output_dtype: Precision | None = Field(
        None, description="Precision of dense vectors; the last step of all. Default: float. Also `embedding_type`."
    )
    on_error: Literal["fail", "item"] | None = Field(
        None, description="item: a text that fails has an `error` in place of its vector. Default: it fails the call."
    )
    stream: bool | None = Field(
        None, description="Answer item by item as texts are computed, as NDJSON or, by `Accept`, server-sent events."
    )
    user: Any = Field(None, description="Accepted and ignored.")
    input_type: Literal["query", "document"] | None = Field(
        None,
        description="query: the model's own instruction is put before the text. Also passage, search_query and "
        "search_document, and Jina's `task`.",
    )
    instruction: str | None = Field(None, max_length=10_000, description="An instruction instead of the model's own.")
    cache: bool | None = Field(
        None, description="Use cached values of your earlier work, and cache these. Default: no."
    )
    truncate: Truncate | None = Field(
        None, description="Where a text that is too long is cut; none refuses it. Also `truncation`: true or false."
    )
    returns: Returns | None = Field(
        None, alias="return", description="Kinds of vectors that the model's capabilities name. Default: dense."
    )
    long: LongText | None = Field(
        None,
        description="Read texts that are too long in windows that overlap: mean or max of their vectors, or chunks, "
        "each with its vector. Default: they are truncated.",
    )
    chunk_tokens: ChunkTokens | None = Field(
        None, description="With `long`: most tokens of a text in one window. Default: what the model has room for."
    )
    overlap_tokens: OverlapTokens | None = Field(
        None, description="With `long`: about how many tokens of a window the next one repeats. Default: an eighth."
    )
    priority: Priority | None = Field(None, description=_PRIORITY)

    spelled: ClassVar[frozenset[str]] = EMBEDDING_FIELDS

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, value: Any) -> Any:
        return translate_embeddings(value)


class RerankRequest(_Body):
    """Body of the rerank routes."""

    model: ModelName = Field(description="Name or alias of a model, see /v1/models.")
    query: str
    documents: Documents
    top_n: Annotated[int, Field(ge=1)] | None = Field(None, description="How many of the best. Default: all.")
    top_k: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Voyage's word for `top_n`. With it, or `truncation`, the answer has Voyage's `data` too."
    )
    return_documents: bool | None = Field(None, description="Whether documents come back. Default: false.")
    instruction: str | None = Field(None, max_length=10_000, description="An instruction instead of the model's own.")
    cutoff_layers: CutoffLayer | None = Field(
        None, description="The layer after which a layerwise reranker scores, also in a list. Default: the last."
    )
    cache: bool | None = Field(
        None, description="Use cached values of your earlier work, and cache these. Default: no."
    )
    truncate: Truncate | None = Field(None, description="Where a document is cut that is too long; none refuses it.")
    priority: Priority | None = Field(None, description=_PRIORITY)
    truncation: bool | None = Field(None, description="Voyage's word for `truncate`: true cuts, false refuses.")
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Documents are cut to so many tokens. Default: what the model has room for."
    )
    max_chunks_per_doc: ChunkCount | None = Field(
        None,
        description="Read a document in up to so many windows; its score is that of the best. Default: 1.",
    )
    overlap_tokens: OverlapTokens | None = Field(
        None, description="About how many tokens of a window the next one repeats. Default: an eighth."
    )

    spelled: ClassVar[frozenset[str]] = RANKING_FIELDS

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, value: Any) -> Any:
        return translate_ranking(value)

    @property
    def for_voyage(self) -> bool:
        """Whether Voyage's client asks, which reads the results as `data`."""
        return not self.model_fields_set.isdisjoint({"top_k", "truncation"})


class Usage(BaseModel):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int
    cached_items: int | None = Field(None, description="With `cache`: items whose value came from the cache.")


class EmbeddingError(BaseModel):
    """Why one text has no embedding."""

    code: str
    message: str


class EmbeddingObject(BaseModel):
    """One embedding."""

    object: Literal["embedding"]
    index: int
    embedding: Vector | None = Field(None, description="Not there when only other kinds were asked for.")
    sparse: SparseWeights | None = Field(None, description="Weights by token id.")
    colbert: list[Vector] | None = Field(None, description="A vector for each token behind the first.")
    chunks: list[ChunkVector] | None = Field(None, description="With `long: chunks`, in place of the embedding.")
    tokens: int = Field(description="How many the model read.")
    truncated: bool = Field(description="Whether text was cut off.")
    error: EmbeddingError | None = Field(None, description="With `on_error: item`, in place of the vectors.")


class EmbeddingsResponse(BaseModel):
    """Answer of `POST /v1/embeddings`."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: Usage


class RankedDocument(BaseModel):
    """One document and its score."""

    index: int = Field(description="Position in the request.")
    relevance_score: float = Field(ge=0, le=1)
    document: dict[str, Any] | str | None = Field(
        None, description="Only when asked for: an object with a `text`; on /infinity/rerank the text itself."
    )


class RerankResponse(BaseModel):
    """Answer of the rerank routes."""

    id: str
    object: Literal["list", "rerank"]
    model: str
    results: list[RankedDocument] = Field(description="By score, descending; ties by index.")
    data: list[RankedDocument] | None = Field(None, description="The same, where Voyage's words were used.")
    usage: Usage
    meta: dict[str, Any]


class ModelWorker(BaseModel):
    """What one worker says of a model that it is set up for."""

    worker: str = Field(description="Its ID, new at each start.")
    name: str = Field(description="The name that it keeps: device and machine. Orders to one worker use it.")
    state: Literal["unloaded", "loading", "ready", "failed"]
    reason: str = Field(description="Why it failed or was unloaded, or why it could not be reloaded.")
    step: str = Field(description="What is done with the model now; empty: nothing.")
    progress: float | None = Field(description="How much of the step is done, from 0 to 1; null: not known.")
    order: int = Field(description="The last order to load, unload or reload that was followed; 0: none.")
    memory_bytes: int = Field(description="What it takes there, as measured when it was loaded.")
    pinned: bool = Field(description="Whether it is unloaded on an order only.")
    idle_s: float = Field(description="How long no work has come for it.")
    load_s: float = Field(description="How long it took to load last; 0: not known.")
    since_s: float = Field(description="How long it has been in this state.")
    fingerprint: str | None = Field(description="What decides the numbers, while it is ready.")


class ModelObject(BaseModel):
    """One model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    description: str
    aliases: list[str]
    capabilities: list[str]
    dimension: int | None
    max_tokens: int
    rerank_by: str | None
    matryoshka: list[int] = Field(description="Lengths to which its vectors may be cut with `dimensions`.")
    matryoshka_from: int = Field(description="They may be cut to any length from here on; 0: to no others.")
    job_input_type: str | None = Field(description="What texts of a job are taken for where it says no `input_type`.")
    cutoff_layers: list[int] = Field(description="Layers after which it can score, of a layerwise reranker.")
    similarity: str | None
    licence: str
    parameters: str
    query_instruction: str
    document_instruction: str
    fingerprints: list[str] = Field(description="What decides the numbers, of each ready worker; equal ones compare.")
    ready: bool = Field(description="Whether a worker is ready for it now.")
    workers: list[ModelWorker] = Field(description="Workers that are set up for it.")


class ModelList(BaseModel):
    """All models that this server offers."""

    object: Literal["list"]
    data: list[ModelObject]
