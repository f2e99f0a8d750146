"""Answers as bytes: JSON by orjson straight from numpy rows, vectors as float lists or base64.

Owns the bytes of synchronous answers and of one item of a job's results. Whole result sets as npy, Arrow or Parquet are
in `app.arrays` and `app.tables`.
"""

import base64
import secrets
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import orjson
from flask import Response
from numpy.typing import NDArray

from app.schemas import Document
from tasks.engine import Outcomes

__all__ = ["VectorFormat", "encode_json", "json_response", "render_embeddings", "render_ranking", "vector_value"]

VectorFormat = Literal["float", "base64"]
_SCORE_DECIMALS = 7


def encode_json(value: Any) -> bytes:
    """Return JSON; numpy arrays are written without a detour over Python numbers."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def json_response(value: Any, status: int = 200) -> Response:
    """Return a JSON answer."""
    return Response(encode_json(value), status, mimetype="application/json")


def vector_value(row: NDArray[Any], encoding: VectorFormat) -> NDArray[np.float32] | str:
    """Return one vector as orjson takes it, or as base64 of little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode("ascii")
    return np.ascontiguousarray(row, np.float32)


def render_embeddings(outcomes: Outcomes, model: str, encoding: VectorFormat) -> Response:
    """Return the answer of the embeddings route, in input order.

    Args:
        outcomes: values of shape (n, d), without errors.
        model: the name as the caller spelled it, since some clients compare.
        encoding: how vectors are written.
    """
    data = [
        {"object": "embedding", "index": index, "embedding": vector_value(row, encoding)}
        for index, row in enumerate(outcomes.values)
    ]
    return json_response({"object": "list", "data": data, "model": model, "usage": _usage(outcomes)})


def render_ranking(
    outcomes: Outcomes, model: str, documents: Sequence[Document], *, top_n: int | None, with_documents: bool
) -> Response:
    """Return the answer of the rerank routes: by score, descending, ties by index.

    The shape is the union of what the clients of Cohere, Jina, TEI's OpenAI style and litellm read.
    """
    scores = np.round(outcomes.values.astype(np.float64), _SCORE_DECIMALS)
    order = np.argsort(-scores, kind="stable")[:top_n]
    results: list[dict[str, Any]] = [{"index": int(i), "relevance_score": float(scores[i])} for i in order]
    if with_documents:
        for result in results:
            document = documents[result["index"]]
            result["document"] = {"text": document} if isinstance(document, str) else document
    usage = _usage(outcomes)
    meta = {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": usage["prompt_tokens"], "output_tokens": 0},
    }
    body = {"id": f"rerank-{secrets.token_hex(12)}", "object": "list", "model": model}
    return json_response({**body, "results": results, "usage": usage, "meta": meta})


def _usage(outcomes: Outcomes) -> dict[str, int]:
    tokens = int(outcomes.tokens.sum())
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return usage if outcomes.cached is None else {**usage, "cached_items": outcomes.cached}
