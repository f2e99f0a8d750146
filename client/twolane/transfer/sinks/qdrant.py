"""Vectors into Qdrant: `qdrant://host:6333/collection`, or `qdrant+file:/folder#collection` without a server.

Owns the collection and the checkpoints among its metadata. A point's ID follows from the row's, and a point replaces
the one with its ID: a part that is written again changes nothing.
"""

import os
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from twolane.errors import SinkError
from twolane.transfer.arrow import load
from twolane.transfer.sinks.store import StoreSink, rows_of

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


class QdrantSink(StoreSink):
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
        super().__init__(f"collection {self._collection} at {parts.path if local else parts.hostname}")
        self._client: Any = None

    def close(self) -> None:
        """See `Sink.close`."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connect(self, dimension: int) -> None:
        self._client = self._library.QdrantClient(**self._options)
        if not self._client.collection_exists(self._collection):
            size = self._models.VectorParams(size=dimension, distance=self._models.Distance.COSINE)
            self._client.create_collection(self._collection, vectors_config=size)

    def _read_dimension(self) -> int | None:
        # Named vectors are a dictionary, without a size of their own.
        size = getattr(self._client.get_collection(self._collection).config.params.vectors, "size", None)
        return size or 0

    def _read_runs(self) -> Mapping[str, str]:
        return dict((self._client.get_collection(self._collection).config.metadata or {}).get(_METADATA, {}))

    def _keep_run(self, source: str, checkpoint: str) -> None:
        kept = {**self._read_runs(), source: checkpoint}
        self._client.update_collection(self._collection, metadata={_METADATA: kept})

    def _upsert(self, table: Any) -> None:
        for start in range(0, table.num_rows, _POINTS):
            points = [
                self._models.PointStruct(id=point_id(payload["id"]), vector=vector.tolist(), payload=payload)
                for vector, payload in rows_of(table.slice(start, _POINTS))
            ]
            self._client.upsert(self._collection, points, wait=True)
