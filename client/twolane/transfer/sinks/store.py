"""What sinks have in common that write rows by ID into a store of vectors.

Owns the order of things: rows first, then the checkpoint, so that a kill in between has the same rows written again
over themselves. Also the checkpoints of all corpora in one collection. Rows that failed are left out.
"""

import abc
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from twolane.errors import SinkError, TwolaneError, first_line
from twolane.transfer.arrow import load
from twolane.transfer.checkpoint import Checkpoint, Plan

__all__ = ["StoreSink", "choose_run", "rows_of"]

T = TypeVar("T")


def choose_run(runs: Mapping[str, Checkpoint], plan: Plan, name: str, *, overwrite: bool) -> Checkpoint:
    """Return where the run of a plan stopped, or a new beginning.

    Args:
        runs: of all corpora that are in the sink, by their source.
        plan: what is to be done.
        name: of the sink.
        overwrite: begin anew.

    Raises:
        SinkError: what is there has other vectors, or was begun with other options.
    """
    fingerprint = ""
    for run in runs.values():
        if (run.model, run.dimension) != (plan.model, plan.dimension):
            raise SinkError(f"{name} has vectors of {run.model} with {run.dimension} dimensions; use another one")
        fingerprint = fingerprint or run.fingerprint
    mine = runs.get(plan.source)
    if mine is not None and not overwrite:
        mine.require_plan(plan, name)
        return mine
    return msgspec.structs.replace(Checkpoint.begin(plan), fingerprint=fingerprint)


def rows_of(table: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the rows of a table of results: the vector as an array, and everything else as JSON has it."""
    names = [name for name in table.schema.names if name != "embedding"]
    columns = [table.column(name).to_pylist() for name in names]
    vectors = table.column("embedding").combine_chunks().to_numpy(zero_copy_only=False)
    for vector, *values in zip(vectors, *columns, strict=True):
        yield vector, msgspec.to_builtins(dict(zip(names, values, strict=True)), enc_hook=str)


class StoreSink(abc.ABC):
    """One collection.

    Args:
        name: for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._source = ""

    def open(self, plan: Plan, *, overwrite: bool) -> Checkpoint:
        """See `Sink.open`."""
        if not plan.dimension:
            raise SinkError(f"{self.name} keeps vectors, and these are scores; write them into a file")
        self._source = plan.source
        return self._reporting(lambda: self._open(plan, overwrite=overwrite))

    def write(self, table: Any, after: Checkpoint) -> None:
        """See `Sink.write`."""
        self._reporting(lambda: self._write(table, after))

    def finish(self, after: Checkpoint) -> None:
        """See `Sink.finish`."""
        self._reporting(lambda: self._finish(after))

    @abc.abstractmethod
    def close(self) -> None:
        """See `Sink.close`."""

    @abc.abstractmethod
    def _connect(self, dimension: int) -> None:
        """Open the store, and make the collection where that takes no more than the vectors' length."""

    @abc.abstractmethod
    def _read_dimension(self) -> int | None:
        """Return the length of the collection's vectors; 0: it has none of one length; None: there is no collection."""

    @abc.abstractmethod
    def _read_runs(self) -> Mapping[str, str]:
        """Return the checkpoints that the store keeps, as JSON by their source."""

    @abc.abstractmethod
    def _keep_run(self, source: str, checkpoint: str) -> None:
        """Make a checkpoint durable."""

    @abc.abstractmethod
    def _upsert(self, table: Any) -> None:
        """Make rows durable; a row replaces the one with its ID."""

    def _complete(self) -> None:  # noqa: B027 - most stores want nothing
        """Do what a store wants at the end of many writes."""

    def _open(self, plan: Plan, *, overwrite: bool) -> Checkpoint:
        self._connect(plan.dimension)
        size = self._read_dimension()
        if size is not None and size != plan.dimension:
            what = f"vectors with {size} dimensions" if size else "no vectors of one length"
            raise SinkError(f"{self.name} has {what}, and {plan.model} gives {plan.dimension}; use another one")
        runs = {source: Checkpoint.read(text) for source, text in self._read_runs().items()}
        return choose_run(runs, plan, self.name, overwrite=overwrite)

    def _write(self, table: Any, after: Checkpoint) -> None:
        good = table.filter(load("pyarrow.compute").is_valid(table.column("embedding"))).drop_columns(["error"])
        if good.num_rows:
            self._upsert(good)
        self._keep_run(self._source, after.write().decode())

    def _finish(self, after: Checkpoint) -> None:
        self._complete()
        self._keep_run(self._source, msgspec.structs.replace(after, finished=True).write().decode())

    def _reporting(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except TwolaneError:
            raise
        except Exception as error:  # noqa: BLE001 - the edge to clients, which raise what their transports raise
            raise SinkError(f"{self.name}: {first_line(error)}") from None
