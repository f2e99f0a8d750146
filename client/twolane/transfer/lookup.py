"""Search in a file of vectors: every vector is compared, a batch at a time.

Owns the reading of a file that `twolane embed` wrote, and the order by similarity. Exact, with a few vectors in memory.
"""

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from twolane.client import Twolane
from twolane.errors import InputError
from twolane.requests import JobOptions
from twolane.transfer.arrow import load
from twolane.transfer.checkpoint import Checkpoint
from twolane.transfer.sinks.formats import read_checkpoint

__all__ = ["Found", "look_up", "rerank_found"]

_ROWS = 4096


class Found(msgspec.Struct, frozen=True):
    """A row and its score."""

    score: float
    id: int | str
    text: str | None = None


def look_up(client: Twolane, path: str, question: str, top: int) -> tuple[list[Found], str]:
    """Return the rows whose vectors are most like the question's, best first, and the model that made them.

    Args:
        client: of a server with the file's model.
        path: a Parquet or Arrow file of `twolane embed`.
        question: embedded as a query.
        top: how many.

    Raises:
        InputError: it is no such file.
    """
    numpy = load("numpy")
    made_by = _made_by(path)
    size = made_by.dimension
    options = JobOptions(model=made_by.model, dimensions=size or None, input_type="query")
    asked = client.embed(question, model=options.model, dimensions=options.dimensions, input_type="query")
    query = asked.numpy()[0]
    best: list[tuple[float, int, Found]] = []
    row = 0
    for batch in _batches(path):
        vectors = _vectors(batch.column("embedding"), size)
        lengths = numpy.linalg.norm(vectors, axis=1)
        scores = numpy.nan_to_num(vectors @ query / numpy.where(lengths == 0, 1, lengths), nan=-1.0)
        for position in numpy.argsort(-scores, kind="stable")[:top].tolist():
            text = batch.column("text")[position].as_py() if "text" in batch.schema.names else None
            found = Found(float(scores[position]), batch.column("id")[position].as_py(), text)
            # Of equal scores the earlier row wins.
            heapq.heappush(best, (found.score, -(row + position), found))
            if len(best) > top:
                heapq.heappop(best)
        row += batch.num_rows
    return [found for _, _, found in sorted(best, reverse=True)], made_by.model


def rerank_found(client: Twolane, found: list[Found], question: str, model: str) -> list[Found]:
    """Return the rows in the order of a model that reads question and text together.

    Raises:
        InputError: the file has no texts.
    """
    texts = [row.text for row in found if row.text is not None]
    if len(texts) < len(found):
        raise InputError("the file has no texts to rerank by; embed without --no-text")
    if not texts:
        return found
    ranking = client.rerank(question, texts, model=model)
    return [
        Found(ranked.relevance_score, found[ranked.index].id, found[ranked.index].text) for ranked in ranking.results
    ]


def _made_by(path: str) -> Checkpoint:
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")
    made_by = read_checkpoint(Path(path))
    if made_by is None or not made_by.dimension:
        raise InputError(f"{path} is no Parquet or Arrow file of `twolane embed`")
    return made_by


def _batches(path: str) -> Iterator[Any]:
    arrow = load("pyarrow")
    if Path(path).suffix.lower() == ".parquet":
        with load("pyarrow.parquet").ParquetFile(path) as file:
            names = [name for name in ("id", "text", "embedding") if name in file.schema_arrow.names]
            yield from file.iter_batches(_ROWS, columns=names)
        return
    with arrow.memory_map(path) as data:
        reader = arrow.ipc.open_file(data)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _vectors(column: Any, size: int) -> Any:
    numpy = load("numpy")
    filled = column if column.null_count == 0 else column.fill_null([0.0] * size)
    return numpy.stack(filled.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)).astype(numpy.float32)
