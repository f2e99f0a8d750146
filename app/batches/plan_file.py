"""The plan of a batch: for each line of its file, which items of which job answer it, and how the answer is written.

Owns the form of the hidden plan file: one JSON array a line, in the order of the batch's lines. It is written once,
when the batch is validated, and holds all that is needed when the jobs have ended: by then the input file may be
deleted and the catalogue another one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import orjson
from flask import Response

from app.fields import Document
from app.inference.rendering import render_embeddings, render_ranking
from app.vector_formats import Precision, VectorFormat
from tasks.engine import Outcomes

__all__ = ["Answer", "EmbeddingsAnswer", "PlannedCall", "PlannedRefusal", "RankingAnswer", "read_plan", "write_step"]


@dataclass(frozen=True, slots=True)
class EmbeddingsAnswer:
    """How the answer to an embeddings line is written; with `item_errors` it has a place for failed items."""

    kind: ClassVar[Literal["embeddings"]] = "embeddings"
    model: str
    encoding: VectorFormat
    precision: Precision = "float"
    item_errors: bool = False

    def render(self, outcomes: Outcomes) -> Response:
        """Return what the embeddings route answers."""
        return render_embeddings(outcomes, self.model, self.encoding, self.precision)


@dataclass(frozen=True, slots=True)
class RankingAnswer:
    """How the answer to a rerank line is written. `documents` are kept only where they come back."""

    kind: ClassVar[Literal["rerank"]] = "rerank"
    item_errors: ClassVar[bool] = False
    model: str
    top_n: int | None
    documents: Sequence[Document] | None

    def render(self, outcomes: Outcomes) -> Response:
        """Return what the rerank routes answer."""
        form: Literal["object"] | None = None if self.documents is None else "object"
        return render_ranking(outcomes, self.model, self.documents or (), top_n=self.top_n, with_documents=form)


Answer = EmbeddingsAnswer | RankingAnswer
_ANSWERS: dict[str, type[Answer]] = {kind.kind: kind for kind in (EmbeddingsAnswer, RankingAnswer)}


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A line that is computed: the next so many items of a group's job."""

    custom_id: str
    group: int
    items: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class PlannedRefusal:
    """A line that failed when it was read."""

    custom_id: str
    status: int
    body: dict[str, Any]


def write_step(step: PlannedCall | PlannedRefusal) -> bytes:
    """Return one line of a plan."""
    if isinstance(step, PlannedRefusal):
        return orjson.dumps([step.custom_id, step.status, step.body]) + b"\n"
    values = [step.custom_id, step.group, step.items, step.answer.kind, asdict(step.answer)]
    return orjson.dumps(values) + b"\n"


def read_plan(lines: Iterator[bytes]) -> Iterator[PlannedCall | PlannedRefusal]:
    """Yield the steps of a plan."""
    for line in lines:
        values = orjson.loads(line)
        if len(values) == 3:
            yield PlannedRefusal(*values)
        else:
            custom_id, group, items, kind, fields = values
            yield PlannedCall(custom_id, group, items, _ANSWERS[kind](**fields))
