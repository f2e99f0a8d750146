"""Answers as bytes: JSON by orjson straight from numpy rows, vectors as float lists or base64.

Owns the bytes of synchronous answers and of one item of a job's results. Whole result sets as npy, Arrow or Parquet are
in `app.jobs.npy` and `app.jobs.arrow`.
"""

import base64
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import orjson
from flask import Response
from numpy.typing import NDArray

from app.inference.schemas import Document, document_text
from tasks.engine import Outcomes
from tasks.vectors import Extra, ExtraParts, Ragged

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = [
    "VectorFormat",
    "WholeResponse",
    "encode_json",
    "json_response",
    "render_embeddings",
    "render_ranking",
    "split_extras",
    "vector_values",
]

VectorFormat = Literal["float", "base64"]
_SCORE_DECIMALS = 7


def encode_json(value: Any) -> bytes:
    """Return JSON; numpy arrays are written without a detour over Python numbers."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


class WholeResponse(Response):
    """An answer that goes to the web server in one piece, unless it is a stream."""

    def get_app_iter(self, environ: "WSGIEnvironment") -> Iterable[bytes]:
        """Return a list where the body is there: granian sends it with the head; what it iterates, piece by piece."""
        if not self.is_sequence or self.direct_passthrough or environ["REQUEST_METHOD"] == "HEAD":
            return super().get_app_iter(environ)
        pieces = list(self.iter_encoded())
        self.close()
        return pieces


def json_response(value: Any, status: int = 200) -> Response:
    """Return a JSON answer."""
    return WholeResponse(encode_json(value), status, mimetype="application/json")


def vector_values(row: NDArray[Any], extras: ExtraParts, encoding: VectorFormat) -> dict[str, Any]:
    """Return what one text got, each kind under its key, as orjson takes it; a dense vector of no length is left out.

    Vectors are numbers, or base64 of little-endian float32; sparse weights always are an object, from token id.
    """
    values: dict[str, Any] = {"embedding": _vector_value(row, encoding)} if len(row) else {}
    if "sparse" in extras:
        ids, weights = extras["sparse"]
        values["sparse"] = dict(zip(map(str, ids.tolist()), weights, strict=True))
    if "colbert" in extras:
        values["colbert"] = [_vector_value(vector, encoding) for vector in extras["colbert"][0]]
    return values


def split_extras(extras: Mapping[Extra, Ragged], items: int) -> Iterator[ExtraParts]:
    """Yield what each item has besides its dense vector."""
    if not extras:
        return ({} for _ in range(items))
    return (dict(zip(extras, parts, strict=True)) for parts in zip(*extras.values(), strict=True))


def _vector_value(row: NDArray[Any], encoding: VectorFormat) -> NDArray[np.float32] | str:
    if encoding == "base64":
        return base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode("ascii")
    return np.ascontiguousarray(row, np.float32)


def render_embeddings(outcomes: Outcomes, model: str, encoding: VectorFormat) -> Response:
    """Return the answer of the embeddings route, in input order.

    Args:
        outcomes: values of shape (n, d), without errors; other kinds than dense go under keys of their own.
        model: the name as the caller spelled it, since some clients compare.
        encoding: how vectors are written.
    """
    items = zip(outcomes.values, split_extras(outcomes.extras, len(outcomes.values)), strict=True)
    data = [
        {"object": "embedding", "index": index, **vector_values(row, extras, encoding)}
        for index, (row, extras) in enumerate(items)
    ]
    return json_response({"object": "list", "data": data, "model": model, "usage": _usage(outcomes)})


def render_ranking(
    outcomes: Outcomes,
    model: str,
    documents: Sequence[Document],
    *,
    top_n: int | None,
    with_documents: Literal["object", "text"] | None,
) -> Response:
    """Return the answer of the rerank routes: by score, descending, ties by index.

    The shape is the union of what the clients of Cohere, Jina, TEI's OpenAI style and litellm read. Documents that come
    back are objects; those of Infinity read a string in the same place.
    """
    scores = np.round(outcomes.values.astype(np.float64), _SCORE_DECIMALS)
    order = np.argsort(-scores, kind="stable")[:top_n]
    results: list[dict[str, Any]] = [{"index": int(i), "relevance_score": float(scores[i])} for i in order]
    for result in results if with_documents else ():
        document = documents[result["index"]]
        if with_documents == "text":
            result["document"] = document_text(document)
        else:
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
