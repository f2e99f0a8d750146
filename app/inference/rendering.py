"""The answers of the synchronous routes: embeddings and rankings, in the shapes that clients of other services read."""

import secrets
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from flask import Response

from app.fields import Document, document_text
from app.http.responses import json_response
from app.vector_formats import Precision, VectorFormat, quantize, quantize_chunks, split_extras, vector_values
from tasks.engine import Outcomes

__all__ = ["count_usage", "embedding_entries", "render_embeddings", "render_ranking"]

_SCORE_DECIMALS = 7


def render_embeddings(
    outcomes: Outcomes, model: str, encoding: VectorFormat, precision: Precision = "float"
) -> Response:
    """Return the answer of the embeddings route, in input order.

    Args:
        outcomes: values of shape (n, d); a failed item has its error in place of vectors. Other kinds than dense go
            under keys of their own.
        model: the name as the caller spelled it, since some clients compare.
        encoding: how vectors are written.
        precision: of dense vectors.
    """
    data = embedding_entries(outcomes, encoding, precision)
    return json_response({"object": "list", "data": data, "model": model, "usage": count_usage(outcomes)})


def embedding_entries(outcomes: Outcomes, encoding: VectorFormat, precision: Precision) -> list[dict[str, Any]]:
    """Return the items of the answer of the embeddings route, see `render_embeddings`."""
    vectors = quantize(outcomes.values, precision)
    extras_of = split_extras(quantize_chunks(outcomes.extras, precision), len(vectors))
    items = zip(vectors, extras_of, strict=True)
    data: list[dict[str, Any]] = [
        {"object": "embedding", "index": index, **vector_values(row, extras, encoding, vectors.dtype)}
        for index, (row, extras) in enumerate(items)
    ]
    for entry, tokens, truncated in zip(data, outcomes.tokens.tolist(), outcomes.truncated.tolist(), strict=True):
        entry["tokens"], entry["truncated"] = tokens, truncated
    for index, error in outcomes.errors.items():
        kept = {name: data[index][name] for name in ("object", "index", "tokens", "truncated")}
        data[index] = {**kept, "error": {"code": error.code, "message": error.message}}
    return data


def render_ranking(
    outcomes: Outcomes,
    model: str,
    documents: Sequence[Document],
    *,
    top_n: int | None,
    with_documents: Literal["object", "text"] | None,
    kind: Literal["list", "rerank", "voyage"] = "list",
) -> Response:
    """Return the answer of the rerank routes: by score, descending, ties by index.

    The shape is the union of what the clients of Cohere, Jina, TEI's OpenAI style and litellm read. Documents that come
    back are objects; those of Infinity read a string in the same place
    and want the answer's `object` to be "rerank", those of Voyage read `data`.
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
    usage = count_usage(outcomes)
    meta = {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": usage["prompt_tokens"], "output_tokens": 0},
    }
    body = {"id": f"rerank-{secrets.token_hex(12)}", "object": kind, "model": model}
    answer = {**body, "results": results, "usage": usage, "meta": meta}
    return json_response(answer if kind != "voyage" else {**answer, "object": "list", "data": results})


def count_usage(outcomes: Outcomes) -> dict[str, int]:
    """Return the `usage` of an answer: tokens that the model read, and cache hits where a cache was asked."""
    tokens = sum(outcomes.tokens.tolist())
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return usage if outcomes.cached is None else {**usage, "cached_items": outcomes.cached}
