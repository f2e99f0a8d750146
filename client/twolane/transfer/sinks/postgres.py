"""Vectors into Postgres with pgvector: `postgresql://user@host/database#table`.

Owns the table, its HNSW index, and the table `twolane_runs` with the checkpoints. A part and the checkpoint behind it
are one transaction, and rows replace those with their ID: a part that is written again changes nothing.
"""

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec

from twolane.errors import SinkError, first_line
from twolane.transfer.arrow import load
from twolane.transfer.checkpoint import Checkpoint, Plan
from twolane.transfer.sinks.postgres_schema import Column, describe_columns, read_dimension, to_rows
from twolane.transfer.sinks.store import choose_run

__all__ = ["PostgresSink"]

_RUNS = """
CREATE TABLE IF NOT EXISTS twolane_runs (
    target text, source text, checkpoint jsonb NOT NULL, changed timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (target, source))
"""
_KEEP = """
INSERT INTO twolane_runs (target, source, checkpoint) VALUES (%s, %s, %s)
ON CONFLICT (target, source) DO UPDATE SET checkpoint = excluded.checkpoint, changed = now()
"""
# pgvector indexes no longer vectors of this type.
_MOST_INDEXED = 2000
_LOCK_S = 15.0
_RECONNECT_S = 120.0


class PostgresSink:
    """One table.

    Args:
        address: of the database, and behind `#` the table, with a schema if need be.

    Raises:
        SinkError: no table is named.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        names = [name for name in unquote(parts.fragment).split(".") if name]
        if not 1 <= len(names) <= 2:
            raise SinkError("the address of a database ends with the table: postgresql://host/database#table")
        self._psycopg = load("psycopg", "postgres")
        self._pgvector = load("pgvector.psycopg", "postgres")
        self._sql = load("psycopg.sql", "postgres")
        self._address = urlunsplit(parts._replace(fragment=""))
        self._target = ".".join(names)
        self._table = self._sql.Identifier(*names)
        self.name = f"table {self._target} at {parts.hostname or 'this machine'}"
        self._connection: Any = None
        self._plan: Plan | None = None

    def open(self, plan: Plan, *, overwrite: bool) -> Checkpoint:
        """See `Sink.open`."""
        self._plan = plan
        begun: Checkpoint = self._trying(lambda: self._open(plan, overwrite=overwrite), 0)
        return begun

    def write(self, table: Any, after: Checkpoint) -> None:
        """See `Sink.write`. A database that went away is waited for."""
        self._trying(lambda: self._write(table, after), _RECONNECT_S)

    def finish(self, after: Checkpoint) -> None:
        """See `Sink.finish`."""
        self._trying(lambda: self._finish(after), _RECONNECT_S)

    def close(self) -> None:
        """See `Sink.close`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> Any:
        if self._connection is None or self._connection.closed:
            self._connection = self._psycopg.connect(self._address, application_name="twolane", connect_timeout=10)
            self._connection.autocommit = True
            self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            self._pgvector.register_vector(self._connection)
            self._lock()
        return self._connection

    def _lock(self) -> None:
        """Keep other commands from this table; the server lets go of it when the connection ends."""
        until_s = time.monotonic() + _LOCK_S
        asked = ("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (f"twolane:{self._target}",))
        # A client that was killed holds it until the server notices.
        while not self._connection.execute(*asked).fetchone()[0]:
            if time.monotonic() > until_s:
                raise SinkError(f"another command is writing {self.name}")
            time.sleep(0.2)

    def _open(self, plan: Plan, *, overwrite: bool) -> Checkpoint:
        connection = self._connect()
        connection.execute(_RUNS)
        found = connection.execute(
            "SELECT source, checkpoint::text FROM twolane_runs WHERE target = %s", (self._target,)
        ).fetchall()
        runs = {source: Checkpoint.read(text) for source, text in found}
        self._check_table(plan, known=bool(runs))
        return choose_run(runs, plan, self.name, overwrite=overwrite)

    def _check_table(self, plan: Plan, *, known: bool) -> None:
        dimension = read_dimension(self._connection, self._target)
        if dimension is None or (dimension == 0 and known):
            return
        if dimension != plan.dimension:
            what = f"vectors with {dimension} dimensions" if dimension else "no column embedding with a fixed size"
            raise SinkError(f"{self.name} has {what}, and {plan.model} gives {plan.dimension}; take another table")

    def _write(self, table: Any, after: Checkpoint) -> None:
        connection, columns = self._connect(), describe_columns(table.schema)
        with connection.transaction():
            self._create(connection, columns)
            self._copy(connection, columns, table)
            self._keep(connection, after)

    def _create(self, connection: Any, columns: list[Column]) -> None:
        sql = self._sql
        parts = [sql.SQL("{} {}").format(sql.Identifier(column.name), sql.SQL(column.declared)) for column in columns]
        body = sql.SQL(", ").join([*parts, sql.SQL("PRIMARY KEY (id)")])
        connection.execute(sql.SQL("CREATE TABLE IF NOT EXISTS {} ({})").format(self._table, body))

    def _copy(self, connection: Any, columns: list[Column], table: Any) -> None:
        sql, incoming = self._sql, self._sql.Identifier("twolane_incoming")
        names = sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)
        make = "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA"
        connection.execute(sql.SQL(make).format(incoming, names, self._table))
        command = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(incoming, names)
        with connection.cursor() as cursor, cursor.copy(command) as copy:
            copy.set_types([column.type for column in columns])
            for row in to_rows(table, columns):
                copy.write_row(row)
        sets = sql.SQL(", ").join(
            sql.SQL("{0} = excluded.{0}").format(sql.Identifier(column.name))
            for column in columns
            if column.name != "id"
        )
        merge = "INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT (id) DO UPDATE SET {}"
        connection.execute(sql.SQL(merge).format(self._table, names, names, incoming, sets))

    def _keep(self, connection: Any, after: Checkpoint) -> None:
        source = self._plan.source if self._plan is not None else ""
        connection.execute(_KEEP, (self._target, source, after.write().decode()))

    def _finish(self, after: Checkpoint) -> None:
        connection, sql = self._connect(), self._sql
        if 0 < after.dimension <= _MOST_INDEXED:
            name = sql.Identifier(f"{self._target.rpartition('.')[2]}_embedding_hnsw"[:63])
            command = "CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw (embedding vector_cosine_ops)"
            connection.execute(sql.SQL(command).format(name, self._table))
        connection.execute(sql.SQL("ANALYZE {}").format(self._table))
        self._keep(connection, msgspec.structs.replace(after, finished=True))

    def _trying(self, work: Callable[[], Any], for_s: float) -> Any:
        """Do what is one transaction; again on a new connection while the database is away."""
        until_s = time.monotonic() + for_s
        while True:
            try:
                return work()
            except self._psycopg.Error as error:
                away = isinstance(error, self._psycopg.OperationalError | self._psycopg.InterfaceError)
                if not away or time.monotonic() > until_s:
                    # libpq writes no password into its messages.
                    raise SinkError(f"{self.name}: {first_line(error)}") from None
                self.close()
                time.sleep(0.5)
