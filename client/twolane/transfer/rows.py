"""What a corpus's columns mean: the text that is embedded, the ID, and what is kept beside the vector.

Owns the checks of every row before it is sent: a value that is missing or no text, an ID that came before.
"""

import hashlib
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from twolane.errors import InputError
from twolane.transfer.arrow import load

__all__ = ["RESERVED", "Columns", "SeenIds", "prepare"]

# What the results bring; a column that is kept cannot have one of these names.
RESERVED = ("id", "text", "embedding", "relevance_score", "tokens", "truncated", "error")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns are used for what.

    Attributes:
        text: the column to embed.
        template: instead: a text with columns in braces, as `{title}: {body}`.
        query: for rerank: the column with the query.
        id: the column with the ID; None: the number of the row, from 0.
        keep: columns that are written beside the vector under their names.
        keep_text: whether the text is written too.
        skip_null: rows without a text are left out; else they are an error.
    """

    text: str = "text"
    template: str | None = None
    query: str | None = None
    id: str | None = None
    keep: tuple[str, ...] = ()
    keep_text: bool = True
    skip_null: bool = False
    _fields: tuple[str, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        taken = [name for name in self.keep if name in RESERVED]
        if taken:
            raise InputError(f"the column {taken[0]} cannot be kept: the results have one of that name")
        object.__setattr__(self, "_fields", self._read_template())

    def _read_template(self) -> tuple[str, ...]:
        if self.template is None:
            return (self.text,)
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None]
        except ValueError as error:
            raise InputError(f"the template cannot be read: {error}") from None
        if not names or "" in names:
            raise InputError("the template must name columns in braces, as {title}: {body}")
        return tuple(dict.fromkeys(names))

    @property
    def needed(self) -> tuple[str, ...]:
        """All columns that are read."""
        others = [name for name in (self.query, self.id) if name is not None]
        return tuple(dict.fromkeys([*self._fields, *others, *self.keep]))

    @property
    def texts(self) -> tuple[str, ...]:
        """Those that make the text."""
        return self._fields


class SeenIds:
    """All IDs that came so far, 8 bytes each: numbers as they are, others by a digest.

    Two of ten million texts have the same digest of 64 bits once in some 400,000 corpora.
    """

    def __init__(self) -> None:
        self._numpy = load("numpy")
        # Sorted runs of growing size, as a log-structured merge tree has them: each ID is merged a few times only.
        self._runs: list[Any] = []

    def add(self, ids: list[Any], first_row: int) -> None:
        """Take the IDs of neighbouring rows.

        Raises:
            InputError: one of them came before.
        """
        numpy = self._numpy
        values = numpy.array([_digest(value) for value in ids], numpy.uint64)
        order = numpy.argsort(values, kind="stable")
        ranked = values[order]
        again = {int(order[n + 1]) for n in numpy.flatnonzero(ranked[1:] == ranked[:-1])}
        for run in self._runs:
            places = numpy.minimum(numpy.searchsorted(run, ranked), len(run) - 1)
            again |= {int(order[n]) for n in numpy.flatnonzero(run[places] == ranked)}
        if again:
            position = min(again)
            raise InputError(f"row {first_row + position} has the ID {ids[position]!r}, which an earlier row has too")
        while self._runs and len(self._runs[-1]) <= len(ranked):
            ranked = numpy.concatenate([self._runs.pop(), ranked])
            ranked.sort(kind="stable")
        if len(ranked):
            self._runs.append(ranked)


def prepare(batches: Iterable[Any], columns: Columns, limit: int | None = None) -> Iterator[Any]:
    """Yield checked batches with the columns `id`, `text`, `query` for rerank, and those that are kept.

    Raises:
        InputError: a row cannot be used; its number counts from 0.
    """
    row, seen, schema = 0, SeenIds(), None
    for batch in batches:
        if limit is not None and row >= limit:
            return
        piece = batch if limit is None else batch.slice(0, limit - row)
        ready = _prepare_batch(piece, columns, row)
        schema = schema or ready.schema
        ready = _like_the_first(ready, schema, row)
        if columns.id is not None:
            seen.add(ready.column("id").to_pylist(), row)
        row += piece.num_rows
        if ready.num_rows:
            yield ready


def _like_the_first(batch: Any, schema: Any, row: int) -> Any:
    """Return a batch with the types of the first one: files of one corpus may have been written by several programs."""
    arrow = load("pyarrow")
    for old, new in zip(schema, batch.schema, strict=True):
        # A text is not made a number, nor the other way: 007 is not 7.
        if (old.type == arrow.string()) != (new.type == arrow.string()):
            raise InputError(f"row {row}: the column {new.name} holds {new.type}, and {old.type} before")
    try:
        return batch if batch.schema.equals(schema) else batch.cast(schema)
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError) as error:
        raise InputError(f"row {row}: a column changes its type: {error}") from None


def _prepare_batch(batch: Any, columns: Columns, row: int) -> Any:
    arrow, compute = load("pyarrow"), load("pyarrow.compute")
    if columns.id is None:
        ids = arrow.array(range(row, row + batch.num_rows), arrow.int64())
    else:
        ids = _ids(batch.column(columns.id), columns.id, row)
    made = {"id": ids, "text": _text(batch, columns, row)}
    if columns.query is not None:
        made["query"] = _strings(batch.column(columns.query), columns.query)
        _refuse_null(made["query"], columns.query, row)
    kept = {name: batch.column(name) for name in columns.keep}
    ready = arrow.RecordBatch.from_pydict({**made, **kept})
    return ready.filter(compute.is_valid(ready.column("text"))) if columns.skip_null else ready


def _text(batch: Any, columns: Columns, row: int) -> Any:
    arrow = load("pyarrow")
    parts = {name: batch.column(name) for name in columns.texts}
    if not columns.skip_null:
        for name, values in parts.items():
            _refuse_null(values, name, row, "; --skip-null leaves such rows out")
    if columns.template is None:
        return _strings(parts[columns.text], columns.text)
    rows = zip(*(values.to_pylist() for values in parts.values()), strict=True)
    texts = [
        None if None in values else columns.template.format_map(dict(zip(parts, values, strict=True)))
        for values in rows
    ]
    return arrow.array(texts, arrow.string())


def _strings(values: Any, name: str) -> Any:
    types, arrow = load("pyarrow.types"), load("pyarrow")
    kind = values.type.value_type if types.is_dictionary(values.type) else values.type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind) or kind == arrow.string_view()):
        raise InputError(
            f"the column {name} holds {kind}, and only texts can be sent; a template makes texts of numbers"
        )
    return values.cast(arrow.string())


def _ids(values: Any, name: str, row: int) -> Any:
    types, arrow = load("pyarrow.types"), load("pyarrow")
    _refuse_null(values, name, row)
    if types.is_integer(values.type):
        return values.cast(arrow.int64())
    kind = values.type.value_type if types.is_dictionary(values.type) else values.type
    if types.is_string(kind) or types.is_large_string(kind):
        return values.cast(arrow.string())
    raise InputError(f"the ID column {name} holds {values.type}; IDs are whole numbers or texts")


def _refuse_null(values: Any, name: str, row: int, hint: str = "") -> None:
    if values.null_count:
        position = values.is_null().to_pylist().index(True)
        raise InputError(f"row {row + position} has no value in the column {name}{hint}")


def _digest(value: Any) -> int:
    if isinstance(value, int):
        return value % 2**64
    return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=8).digest(), "little")
