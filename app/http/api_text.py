"""What makes the OpenAPI text usable as it stands: short operation IDs, keys, headers and examples that work.

Owns what is the same for all operations, laid over what flask-openapi3 reads off the routes.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["complete_api_text"]

_Json = dict[str, Any]

# Answered without a key, and outside of any contract with a client.
_PROBES = ("/livez", "/readyz", "/health")
# Answered in the call or, by this header, as a job.
_CALLS = ("/v1/embeddings", "/v1/rerank", "/v2/rerank")
_EXAMPLES: dict[str, _Json] = {
    "EmbeddingsRequest": {"input": ["The tide follows the moon.", "Yeast makes bread rise."]},
    "RerankRequest": {
        "query": "What makes the sea rise?",
        "documents": ["Yeast makes bread rise.", "The tide follows the moon."],
        "return_documents": True,
    },
    "JobRequest": {"type": "embeddings", "input": [{"id": "note-1", "text": "The tide follows the moon."}, "Yeast."]},
}
_TEXT: _Json = {"type": "string"}
_PARAMETERS: list[_Json] = [
    {
        "name": "Prefer",
        "in": "header",
        "description": "respond-async: queue the call as a job and answer 202 (RFC 7240).",
        "schema": _TEXT,
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "With respond-async: the same key and payload give the same job.",
        "schema": {"type": "string", "maxLength": 255},
    },
]
_HEADERS: dict[str, _Json] = {
    "RequestId": {"description": "Names the request in the log.", "schema": _TEXT},
    "RetryAfter": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}},
    "Fingerprint": {"description": "What decided the values: weights, tokenizer, prompts, precision.", "schema": _TEXT},
    "TruncatedItems": {"description": "How many items were cut.", "schema": {"type": "integer"}},
}
_OF_CALLS = {"x-model-fingerprint": "Fingerprint", "x-truncated-items": "TruncatedItems"}


def complete_api_text(document: _Json, sources: Iterable[str], *, model: str, with_keys: bool) -> None:
    """Complete the OpenAPI text of the whole API, in place.

    Args:
        document: as flask-openapi3 makes it.
        sources: names of the blueprints, which its operation IDs begin with.
        model: a model that is served, for the examples.
        with_keys: whether a key is required; else it is taken and means nothing.
    """
    # An empty requirement beside another one makes that optional.
    document["security"] = [{"key": []}] if with_keys else [{}, {"key": []}]
    document["servers"] = [{"url": "/"}]
    document["info"]["license"] = {"name": "MIT", "identifier": "MIT"}
    components = document["components"]
    components["headers"] = _HEADERS
    for name, example in _EXAMPLES.items():
        components["schemas"][name]["examples"] = [{"model": model, **example}]
    taken: set[str] = set()
    prefixes = sorted((re.sub(r"\W", "_", source) for source in sources), key=len, reverse=True)
    # Paths of versions first, so that these have the plain names.
    for path, method, operation in sorted(_operations(document), key=lambda found: not found[0].startswith("/v1/")):
        operation["operationId"] = _choose_id(path, method, _function_name(path, method, operation, prefixes), taken)
        if path in _PROBES:
            operation["security"] = []
        if path in _CALLS:
            operation.setdefault("parameters", []).extend(_PARAMETERS)
        for status, answer in operation["responses"].items():
            answer.setdefault("headers", {}).update(_headers(status, of_call=path in _CALLS))


def _operations(document: _Json) -> Iterator[tuple[str, str, _Json]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation


def _function_name(path: str, method: str, operation: _Json, prefixes: Iterable[str]) -> str:
    """Return the view's name out of flask-openapi3's `{blueprint}_{view}_{path}_{method}`."""
    # A parameter may have a converter's name before its own: `<path:model>`.
    steps = (re.sub(r"\W", "_", step) for step in re.split(r"\{\w+\}", path))
    names = (rf"_(?:\w+_)?{name}_" for name in re.findall(r"\{(\w+)\}", path))
    end = "".join(part for pair in itertools.zip_longest(steps, names, fillvalue="") for part in pair)
    name = re.sub(rf"{end}_{method}$", "", str(operation["operationId"]))
    return next((name.removeprefix(f"{prefix}_") for prefix in prefixes if name.startswith(f"{prefix}_")), name)


def _choose_id(path: str, method: str, name: str, taken: set[str]) -> str:
    """Return the name, with the path's first step or the method where another operation has it."""
    first = re.sub(r"\W", "_", path.split("/")[1]) or "root"
    found = next(wish for wish in (name, f"{name}_{first}", f"{name}_{first}_{method}") if wish not in taken)
    taken.add(found)
    return found


def _headers(status: str, *, of_call: bool) -> _Json:
    names = {"x-request-id": "RequestId"}
    if status in {"202", "429", "503"}:
        names["Retry-After"] = "RetryAfter"
    if of_call and status == "200":
        names |= _OF_CALLS
    return {header: {"$ref": f"#/components/headers/{name}"} for header, name in names.items()}
