"""Where results go: one module for each kind of sink.

Owns the choice by the form of the address, and what a sink has to be able to do.
"""

from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from twolane.errors import SinkError
from twolane.transfer.checkpoint import Checkpoint, Plan
from twolane.transfer.sinks.files import FileSink
from twolane.transfer.sinks.lance import LanceSink
from twolane.transfer.sinks.milvus import MilvusSink
from twolane.transfer.sinks.postgres import PostgresSink
from twolane.transfer.sinks.qdrant import QdrantSink

__all__ = ["Sink", "open_sink"]


class Sink(Protocol):
    """A place for tables, that keeps a checkpoint with them."""

    name: str

    def open(self, plan: Plan, *, overwrite: bool) -> Checkpoint:
        """Return where an earlier run of the same plan stopped, or a new beginning.

        Raises:
            SinkError: what lies there belongs to something else.
        """
        ...

    def write(self, table: Any, after: Checkpoint) -> None:
        """Make a table durable together with the checkpoint behind it: both or none; again after a kill."""
        ...

    def finish(self, after: Checkpoint) -> None:
        """Make the whole visible; repeatable."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


def open_sink(address: str) -> Sink:
    """Return the sink that an address names.

    Raises:
        SinkError: nobody knows what it is.
        MissingExtra: its library is not installed.
    """
    scheme = urlsplit(address).scheme
    if scheme in {"", "file"} or len(scheme) == 1:
        return FileSink(address.removeprefix("file://"))
    kind = _STORES.get(scheme.removesuffix("+file"))
    if kind is not None:
        return kind(address)
    raise SinkError(f"there is no sink for addresses that begin with {scheme}://")


_STORES: dict[str, Callable[[str], Sink]] = {
    "postgresql": PostgresSink,
    "postgres": PostgresSink,
    "qdrant": QdrantSink,
    "qdrants": QdrantSink,
    "lancedb": LanceSink,
    "milvus": MilvusSink,
    "milvuss": MilvusSink,
}
