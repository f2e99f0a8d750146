"""Rows of Postgres as a corpus: a table in the order of its primary key, or a query with an order of its own.

Owns the cursor and the types. All rows come from one snapshot, by a cursor of the server: the corpus is never whole in
memory. The order must be the same in each run, since parts and their keys follow from it.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from twolane.errors import InputError, first_line
from twolane.transfer.arrow import load
from twolane.transfer.remote import public_name

__all__ = ["Query", "is_database"]

_ROWS = 4096
_KEY = """
SELECT a.attname FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(attnum, place)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = to_regclass(%s) AND i.indisprimary ORDER BY k.place
"""
# Names in pg_type; what is not here comes as the text that Postgres writes.
_TYPES = {
    "bool": "bool_",
    "int2": "int64",
    "int4": "int64",
    "int8": "int64",
    "float4": "float64",
    "float8": "float64",
    "bytea": "binary",
    "date": "date32",
}


def is_database(name: str) -> bool:
    """Return whether a name is the address of a database."""
    return urlsplit(name).scheme in {"postgresql", "postgres"}


class Query:
    """The rows of a table or of a query.

    Args:
        address: `postgresql://host/database#table`; for a query without the table.
        sql: a query with ORDER BY; None: the whole table.

    Raises:
        InputError: neither is named, or the query has no order.
    """

    def __init__(self, address: str, sql: str | None) -> None:
        parts = urlsplit(address)
        self._address = parts._replace(fragment="").geturl()
        self._table, self._sql = unquote(parts.fragment), sql
        place = public_name(address)
        self.name = f"{place}#{self._table}" if sql is None else f"{place} {sql}"
        if (sql is None) == (not self._table):
            raise InputError("name a table behind the address, as postgresql://host/database#table, or give --sql")
        if sql is not None and not re.search(r"\border\s+by\b", sql, re.IGNORECASE):
            raise InputError("the query needs ORDER BY a unique column: a second run must see the same rows first")

    def batches(self, columns: Sequence[str] | None) -> Iterator[Any]:
        """Yield record batches; `columns`: those that are needed, None: all.

        Raises:
            InputError: the database is away, or refuses.
        """
        psycopg = load("psycopg", "postgres")
        try:
            with psycopg.connect(self._address) as connection:
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                connection.read_only = True
                yield from self._read(connection, columns)
        except psycopg.Error as error:
            # libpq writes no password into its messages.
            raise InputError(f"{self.name}: {first_line(error)}") from None

    def _read(self, connection: Any, columns: Sequence[str] | None) -> Iterator[Any]:
        sql, arrow = load("psycopg.sql", "postgres"), load("pyarrow")
        inner = sql.SQL(self._sql.rstrip().rstrip(";")) if self._sql is not None else self._of_table(connection)
        with connection.cursor() as cursor:
            found = cursor.execute(sql.SQL("SELECT * FROM ({}) AS rows LIMIT 0").format(inner)).description
            types = [connection.adapters.types.get(column.type_code) for column in found]
        known = {
            column.name: _TYPES.get(kind.name if kind else "", "") for column, kind in zip(found, types, strict=True)
        }
        missing = [name for name in columns or () if name not in known]
        if missing:
            raise InputError(f"{self.name} has no column {missing[0]}; it has {', '.join(sorted(known))}")
        names = list(columns) if columns is not None else list(known)
        schema = arrow.schema(
            [(name, getattr(arrow, known[name])() if known[name] else arrow.string()) for name in names]
        )
        chosen = [sql.SQL("{}" if known[name] else "{}::text").format(sql.Identifier(name)) for name in names]
        query = sql.SQL("SELECT {} FROM ({}) AS rows").format(sql.SQL(", ").join(chosen), inner)
        with connection.cursor(name="twolane") as cursor:
            cursor.execute(query)
            while rows := cursor.fetchmany(_ROWS):
                values = [
                    arrow.array(column, field.type)
                    for column, field in zip(zip(*rows, strict=True), schema, strict=True)
                ]
                yield arrow.RecordBatch.from_arrays(values, schema=schema)

    def _of_table(self, connection: Any) -> Any:
        sql = load("psycopg.sql", "postgres")
        quoted = ".".join(f'"{name}"' for name in self._table.split("."))
        if connection.execute("SELECT to_regclass(%s)", (quoted,)).fetchone()[0] is None:
            raise InputError(f"there is no table {self._table}")
        key = [name for (name,) in connection.execute(_KEY, (quoted,))]
        if not key:
            raise InputError(f"the table {self._table} has no primary key to order it by; give --sql with ORDER BY")
        order = sql.SQL(", ").join(map(sql.Identifier, key))
        return sql.SQL("SELECT * FROM {} ORDER BY {}").format(sql.Identifier(*self._table.split(".")), order)
