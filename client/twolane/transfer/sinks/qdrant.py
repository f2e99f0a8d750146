"""Vectors into Qdrant: `qdrant://host:6333/collection`, or `qdrant+file:/folder#collection` without a server.

Owns the collection and the checkpoints among its metadata. A point's ID follows from the row's, and a point replaces
the one with its ID: a part that is written again changes nothing. Rows that failed have no point.
"""

import os
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from twolane.errors import SinkError
from twolane.transfer.arrow import load
from twolane.transfer.checkpoint import Checkpoint, Plan

__all__ = ["QdrantSink", "point_id"]

_POINTS = 512
_NAMESPACE = uuid.UUID("6f0b1f0e-6a0c-5b8e-9b0a-2d1f5a7c3e41")
_METADATA = "twolane"
_PORTS = {"qdrant": 6333, "qdrants": 443}


def point_id(row_id: int | str) -> int | str:
    """Return the ID of a row's point: a number as it is; others as the UUID (version 5) that follows from them."""
    if isinstance(row_id, int) and row_id >= 0:
        return row_id
    return str(uuid.uuid5(_NAMESPACE, str(row_id)))


class QdrantSink:
    """One collection.

    Args:
        address: `qdrant://host:port/collection`, with TLS `qdrants://`, or `qdrant+file:/folder#collection`; a key is
            taken from the address (`qdrants://:KEY@host/..`) or the variable QDRANT_API_KEY.

    Raises:
        SinkError: no collection is named.
    """

    def __init__(self, address: str) -> None:
        self._library = load("qdrant_client", "qdrant")
        self._models = load("qdrant_client.models", "qdrant")
        parts = urlsplit(address)
        local = parts.scheme == "qdrant+file"
        self._collection = unquote(parts.fragment if local else parts.path.strip("/"))
        if not self._collection or (local and not parts.path):
            raise SinkError("the address names no collection: qdrant://host:6333/collection")
        if local:
            self._options: dict[str, Any] = {"path": unquote(parts.path)}
        else:
            scheme = "https" if parts.scheme == "qdrants" else "http"
            url = f"{scheme}://{parts.hostname}:{parts.port or _PORTS[parts.scheme]}"
            key = unquote(parts.password or "") or os.environ.get("QDRANT_API_KEY")
            self._options = {"url": url, "api_key": key or None, "timeout": 60}
        self.name = f"collection {self._collection} at {parts.path if local else parts.hostname}"
        self._client: Any = None
        self._plan: Plan | None = None

    def open(self, plan: Plan, *, overwrite: bool) -> Checkpoint:
        """See `Sink.open`."""
        if not plan.dimension:
            raise SinkError("Qdrant keeps vectors, and these are scores; write them into a file")
        self._plan = plan
        begun: Checkpoint = self._reporting(self._open, plan, overwrite)
        return begun

    def write(self, table: Any, after: Checkpoint) -> None:
        """See `Sink.write`."""
        self._reporting(self._write, table, after)

    def finish(self, after: Checkpoint) -> None:
        """See `Sink.finish`."""
        self._reporting(self._keep, msgspec.structs.replace(after, finished=True))

    def close(self) -> None:
        """See `Sink.close`."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _open(self, plan: Plan, overwrite: bool) -> Checkpoint:  # noqa: FBT001 - passed on as it came
        self._client = self._library.QdrantClient(**self._options)
        if not self._client.collection_exists(self._collection):
            size = self._models.VectorParams(size=plan.dimension, distance=self._models.Distance.COSINE)
            self._client.create_collection(self._collection, vectors_config=size)
        config = self._client.get_collection(self._collection).config
        size = getattr(config.params.vectors, "size", None)
        if size != plan.dimension:
            what = f"vectors with {size} dimensions" if size else "named vectors"
            raise SinkError(f"{self.name} has {what}, and {plan.model} gives {plan.dimension}; take another collection")
        kept = (config.metadata or {}).get(_METADATA, {})
        runs = {source: Checkpoint.read(text) for source, text in kept.items()}
        fingerprint = ""
        for run in runs.values():
            if run.model != plan.model:
                raise SinkError(f"{self.name} has vectors of {run.model}; take another collection")
            fingerprint = fingerprint or run.fingerprint
        mine = runs.get(plan.source)
        if mine is not None and not overwrite:
            mine.require_plan(plan, self.name)
            return mine
        return msgspec.structs.replace(Checkpoint.begin(plan), fingerprint=fingerprint)

    def _write(self, table: Any, after: Checkpoint) -> None:
        for batch in table.to_batches(max_chunksize=_POINTS):
            points = list(self._points(batch))
            if points:
                self._client.upsert(self._collection, points, wait=True)
        self._keep(after)

    def _points(self, batch: Any) -> Iterator[Any]:
        names = [name for name in batch.schema.names if name not in {"embedding", "error"}]
        columns = [batch.column(name).to_pylist() for name in names]
        vectors = batch.column("embedding").to_numpy(zero_copy_only=False)
        for vector, *values in zip(vectors, *columns, strict=True):
            if vector is not None:
                payload = msgspec.to_builtins(dict(zip(names, values, strict=True)), enc_hook=str)
                yield self._models.PointStruct(id=point_id(payload["id"]), vector=vector.tolist(), payload=payload)

    def _keep(self, after: Checkpoint) -> None:
        config = self._client.get_collection(self._collection).config
        kept = dict((config.metadata or {}).get(_METADATA, {}))
        kept[self._plan.source if self._plan is not None else ""] = after.write().decode()
        self._client.update_collection(self._collection, metadata={_METADATA: kept})

    def _reporting(self, work: Any, *arguments: Any) -> Any:
        try:
            return work(*arguments)
        except SinkError:
            raise
        except Exception as error:  # noqa: BLE001 - the edge to a client that raises what each of its transports raises
            raise SinkError(f"{self.name}: {_sentence(error)}") from None


def _sentence(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
