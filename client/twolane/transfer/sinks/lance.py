"""Vectors into LanceDB: `lancedb:folder#table`.

Owns the table and, beside it, the table `twolane_runs` with the checkpoints.
"""

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from twolane.errors import SinkError
from twolane.transfer.arrow import load
from twolane.transfer.sinks.store import StoreSink

__all__ = ["LanceSink"]

_RUNS = "twolane_runs"


class LanceSink(StoreSink):
    """One table.

    Raises:
        SinkError: no folder or no table is named.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._folder, self._table = unquote(parts.path), unquote(parts.fragment)
        if not self._folder or not self._table:
            raise SinkError("the address names no folder and table: lancedb:folder#table")
        # The library logs each new table as a warning.
        os.environ.setdefault("LANCE_LOG", "error")
        self._library = load("lancedb", "lancedb")
        super().__init__(f"table {self._table} in {self._folder}")
        self._database: Any = None

    def close(self) -> None:
        """See `Sink.close`."""
        self._database = None

    def _connect(self, dimension: int) -> None:  # noqa: ARG002 - the table is made of the first rows
        self._database = self._library.connect(self._folder)

    def _read_dimension(self) -> int | None:
        if not self._has(self._table):
            return None
        schema = self._database.open_table(self._table).schema
        return getattr(schema.field("embedding").type, "list_size", 0) if "embedding" in schema.names else 0

    def _read_runs(self) -> Mapping[str, str]:
        if not self._has(_RUNS):
            return {}
        rows = self._database.open_table(_RUNS).to_arrow().to_pylist()
        return {row["source"]: row["checkpoint"] for row in rows if row["target"] == self._table}

    def _keep_run(self, source: str, checkpoint: str) -> None:
        row = {"target": self._table, "source": source, "checkpoint": checkpoint}
        self._merge(_RUNS, load("pyarrow").Table.from_pylist([row]), ["target", "source"])

    def _upsert(self, table: Any) -> None:
        self._merge(self._table, table, ["id"])

    def _complete(self) -> None:
        # Each write made a version and a file; older versions are of no use.
        for name in (self._table, _RUNS):
            if self._has(name):
                self._database.open_table(name).optimize()

    def _merge(self, name: str, rows: Any, key: list[str]) -> None:
        if not self._has(name):
            self._database.create_table(name, schema=rows.schema)
        merging = self._database.open_table(name).merge_insert(key)
        merging.when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def _has(self, name: str) -> bool:
        page = self._database.list_tables()
        names = list(page.tables)
        while page.page_token:
            page = self._database.list_tables(page_token=page.page_token)
            names += page.tables
        return name in names
