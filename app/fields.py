"""Types of fields that several request and answer bodies share, with their OpenAPI text.

Owns their shapes and checks. Limits that are settings are checked where the settings are, in `app.submission.service`.
"""

import contextlib
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from tasks.vectors import KINDS, Kind

__all__ = [
    "ChunkCount",
    "ChunkTokens",
    "ChunkVector",
    "CutoffLayer",
    "Document",
    "Documents",
    "LongText",
    "Metadata",
    "ModelName",
    "Moment",
    "OverlapTokens",
    "Priority",
    "QueryParameters",
    "Returns",
    "SparseWeights",
    "Truncate",
    "Vector",
    "document_text",
    "refuse",
]

Truncate = Literal["end", "start", "none"]
LongText = Literal["mean", "max", "chunks"]
# Tokens of a window: shorter ones would make more rows of a text than it has sentences.
ChunkTokens = Annotated[int, Field(ge=16)]
OverlapTokens = Annotated[int, Field(ge=0)]
ChunkCount = Annotated[int, Field(ge=1)]


def _read_priority(value: Any) -> Any:
    """Return vLLM's numbers in our words: 0 is the usual, less comes earlier."""
    if isinstance(value, int) and not isinstance(value, bool):
        return "normal" if value == 0 else "high" if value < 0 else "low"
    return value


Priority = Annotated[Literal["low", "normal", "high"], BeforeValidator(_read_priority)]


def _read_moment(value: Any) -> float:
    """Return a time in seconds since the epoch."""
    with contextlib.suppress(ValueError, OverflowError):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str) and value.replace(".", "", 1).isdecimal():
            return float(value)
        if isinstance(value, str) and (moment := datetime.fromisoformat(value)).tzinfo is not None:
            return moment.timestamp()
    raise refuse("must be a time with its zone, as 2026-12-01T22:00:00+01:00, or seconds since 1970")


_MOMENT_SCHEMA = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}]}
Moment = Annotated[float, PlainValidator(_read_moment), WithJsonSchema(_MOMENT_SCHEMA)]

_MAX_METADATA = 16
Document = str | dict[str, Any]


class QueryParameters(BaseModel):
    """Parameters in an address. One that we do not know is refused: it would have changed the answer."""

    model_config = ConfigDict(extra="forbid")


def refuse(message: str, **context: Any) -> PydanticCustomError:
    """Return the complaint of a validator; `context` fills the message's braces."""
    return PydanticCustomError("invalid_value", message, context)


def _check_documents(value: Any) -> list[Document]:
    if not isinstance(value, list):
        raise refuse("must be a list of strings or of objects with a text")
    if not value:
        raise refuse("must not be empty")
    for position, item in enumerate(value):
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise refuse("item {position} must be a string or an object with a text", position=position)
    return value


def _check_returns(value: Any) -> list[Kind]:
    """Return the kinds in one order, each once; a query string may bring them with commas between."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts or any(not isinstance(part, str) for part in parts):
        raise refuse("must be a list of dense, sparse and colbert")
    names = {name.strip() for part in parts for name in part.split(",")}
    if not names <= set(KINDS):
        raise refuse("must be a list of dense, sparse and colbert")
    return [kind for kind in KINDS if kind in names]


def _check_layer(value: Any) -> Any:
    """Return the one layer of a list; FlagEmbedding takes several, and gives a list of scores for each."""
    if not isinstance(value, list):
        return int(value) if isinstance(value, str) and value.isdecimal() else value
    if len(value) != 1:
        raise refuse("must name one layer, since each document gets one score")
    return value[0]


def _check_few(value: Any) -> Any:
    """Refuse too many entries before each of them is looked at."""
    if isinstance(value, dict) and len(value) > _MAX_METADATA:
        raise refuse("has {entries} entries; at most {most} are taken", entries=len(value), most=_MAX_METADATA)
    return value


def document_text(document: Document) -> str:
    """Return the text of a document, whichever form it has."""
    return document if isinstance(document, str) else str(document["text"])


_TEXT_OBJECT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


_DOCUMENTS_SCHEMA = {
    "description": "Texts, or objects with a text; both may be mixed.",
    "type": "array",
    "minItems": 1,
    "items": {"anyOf": [{"type": "string"}, _TEXT_OBJECT]},
}


_RETURNS_SCHEMA = {"type": "array", "items": {"enum": list(KINDS)}, "minItems": 1}


Documents = Annotated[list[Document], PlainValidator(_check_documents), WithJsonSchema(_DOCUMENTS_SCHEMA)]


Returns = Annotated[list[Kind], PlainValidator(_check_returns), WithJsonSchema(_RETURNS_SCHEMA)]


CutoffLayer = Annotated[int, Field(ge=0), BeforeValidator(_check_layer)]


Metadata = Annotated[
    dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=_MAX_METADATA), BeforeValidator(_check_few)
]


ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200)]


Vector = list[float] | str


class ChunkVector(BaseModel):
    """A part of a text, and its vector."""

    start: int = Field(description="Where it begins in the text, in characters (Unicode code points).")
    end: int = Field(description="Where it ends, this character not included.")
    embedding: Vector


SparseWeights = dict[str, float]
