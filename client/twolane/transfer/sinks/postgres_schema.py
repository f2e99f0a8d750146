"""Arrow columns as columns of Postgres.

Owns the types and the rows that COPY sends.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from twolane.transfer.arrow import load

__all__ = ["Column", "describe_columns", "read_dimension", "to_rows"]

_DIMENSION = """
SELECT (SELECT CASE WHEN t.typname = 'vector' AND a.atttypmod > 0 THEN a.atttypmod ELSE 0 END
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = c.oid AND a.attname = 'embedding' AND NOT a.attisdropped)
FROM pg_class c WHERE c.oid = to_regclass(%s)
"""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, its type, and how it is declared."""

    name: str
    type: str
    declared: str


def read_dimension(connection: Any, table: str) -> int | None:
    """Return the size of a table's embeddings; 0: it has none of a fixed size; None: there is no such table."""
    row = connection.execute(_DIMENSION, (".".join(f'"{name}"' for name in table.split(".")),)).fetchone()
    return None if row is None else int(row[0] or 0)


def describe_columns(schema: Any) -> list[Column]:
    """Return the columns for a table of results."""
    return [_describe(field) for field in schema]


def to_rows(table: Any, columns: list[Column]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table of results as Python values; vectors as float32 arrays."""
    values = [_values(table.column(column.name), column) for column in columns]
    yield from zip(*values, strict=True)


def _describe(field: Any) -> Column:
    if field.name == "embedding":
        return Column("embedding", "vector", f"vector({field.type.list_size})")
    kind = _type_of(field.type)
    return Column(field.name, kind, f"{kind} NOT NULL" if field.name == "id" else kind)


def _type_of(kind: Any) -> str:
    types = load("pyarrow.types")
    if types.is_dictionary(kind):
        return _type_of(kind.value_type)
    known = (
        (types.is_boolean, "bool"),
        (types.is_integer, "int8"),
        (types.is_floating, "float8"),
        (types.is_string, "text"),
        (types.is_large_string, "text"),
        (types.is_timestamp, "timestamptz"),
        (types.is_date, "date"),
        (types.is_binary, "bytea"),
    )
    return next((name for fits, name in known if fits(kind)), "jsonb")


def _values(column: Any, described: Column) -> list[Any]:
    if described.type == "vector":
        numpy = load("numpy")
        whole = column.combine_chunks()
        return [
            None if vector is None else numpy.asarray(vector, numpy.float32)
            for vector in whole.to_numpy(zero_copy_only=False)
        ]
    values = column.to_pylist()
    if described.type == "jsonb":
        dump = load("psycopg.types.json", "postgres").Jsonb
        encode = msgspec.json.Encoder(enc_hook=str).encode
        return [None if value is None else dump(value, dumps=lambda one: encode(one).decode()) for value in values]
    return list(values)
