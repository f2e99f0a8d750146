"""Vectors into Milvus: `milvus://host:19530/collection`, or `milvus+file:store.db#collection` without a server.

Owns the collection and the checkpoints among its properties. Everything beside ID and vector is in dynamic fields.
"""

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from twolane.errors import SinkError
from twolane.transfer.arrow import load
from twolane.transfer.sinks.store import StoreSink, rows_of

__all__ = ["MilvusSink"]

_ROWS = 512
_ID_BYTES = 512
_PROPERTY = "twolane."


class MilvusSink(StoreSink):
    """One collection.

    Args:
        address: with TLS `milvuss://`; a token is taken from the address (`milvus://:TOKEN@host/..`) or the variable
            MILVUS_TOKEN.

    Raises:
        SinkError: no collection is named.
    """

    def __init__(self, address: str) -> None:
        self._library = load("pymilvus", "milvus")
        parts = urlsplit(address)
        local = parts.scheme == "milvus+file"
        self._collection = unquote(parts.fragment if local else parts.path.strip("/"))
        if not self._collection or (local and not parts.path):
            raise SinkError("the address names no collection: milvus://host:19530/collection")
        if local:
            load("milvus_lite", "milvus")
            self._options = {"uri": os.path.abspath(unquote(parts.path))}  # noqa: PTH100 - as the library names it
        else:
            scheme = "https" if parts.scheme == "milvuss" else "http"
            token = unquote(parts.password or "") or os.environ.get("MILVUS_TOKEN", "")
            self._options = {"uri": f"{scheme}://{parts.hostname}:{parts.port or 19530}", "token": token}
        super().__init__(f"collection {self._collection} at {parts.path if local else parts.hostname}")
        self._client: Any = None
        self._dimension = 0

    def close(self) -> None:
        """See `Sink.close`."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connect(self, dimension: int) -> None:
        self._client = self._library.MilvusClient(**self._options)
        self._dimension = dimension

    def _read_dimension(self) -> int | None:
        if not self._client.has_collection(self._collection):
            return None
        fields = self._client.describe_collection(self._collection)["fields"]
        found = [field["params"].get("dim") for field in fields if field["name"] == "embedding"]
        return int(found[0] or 0) if found else 0

    def _read_runs(self) -> Mapping[str, str]:
        if not self._client.has_collection(self._collection):
            return {}
        properties = self._client.describe_collection(self._collection).get("properties", {})
        return {name.removeprefix(_PROPERTY): text for name, text in properties.items() if name.startswith(_PROPERTY)}

    def _keep_run(self, source: str, checkpoint: str) -> None:
        # Without one, no row had a vector yet, and there is nothing to pass over in a second run.
        if self._client.has_collection(self._collection):
            self._client.alter_collection_properties(self._collection, {f"{_PROPERTY}{source}": checkpoint})

    def _upsert(self, table: Any) -> None:
        if not self._client.has_collection(self._collection):
            self._create(table.schema.field("id").type)
        for start in range(0, table.num_rows, _ROWS):
            rows = [{**others, "embedding": vector.tolist()} for vector, others in rows_of(table.slice(start, _ROWS))]
            self._client.upsert(self._collection, rows)

    def _create(self, id_type: Any) -> None:
        kinds, numbers = self._library.DataType, load("pyarrow.types").is_integer(id_type)
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=True)
        if numbers:
            schema.add_field("id", kinds.INT64, is_primary=True)
        else:
            schema.add_field("id", kinds.VARCHAR, is_primary=True, max_length=_ID_BYTES)
        schema.add_field("embedding", kinds.FLOAT_VECTOR, dim=self._dimension)
        index = self._client.prepare_index_params()
        index.add_index("embedding", index_type="AUTOINDEX", metric_type="COSINE")
        self._client.create_collection(self._collection, schema=schema, index_params=index)
