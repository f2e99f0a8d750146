"""Adapters for clients of other services: their paths and field names, over the same submission service.

Owns which adapter has which routes, and imports an adapter's module when the first call for it comes or when the
OpenAPI text is asked for: a process that serves none of them starts without them. One module is one vendor.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module

from flask import Response

from app.compat.adapters import Adapter
from app.http.openapi import Api

__all__ = ["ROUTES", "install_adapters", "load_adapter"]

ROUTES: Mapping[str, tuple[str, ...]] = {
    "azure": ("POST /openai/deployments/<path:model>/embeddings",),
    "cohere": ("POST /v1/embed", "POST /v2/embed"),
    "infinity": ("POST /embeddings", "POST /infinity/embeddings", "POST /infinity/rerank"),
    "nvidia": ("POST /v1/ranking", "POST /v1/retrieval/<path:model>/reranking"),
    "ollama": ("POST /api/embed", "POST /api/embeddings", "GET /api/tags"),
    "tei": ("POST /", "POST /embed", "POST /embed_sparse", "POST /rerank", "GET /info"),
    "tokenizing": ("POST /tokenize", "POST /detokenize"),
    "voyage": ("POST /voyage/v1/embeddings", "POST /voyage/v1/rerank"),
    "vllm": ("POST /v1/score", "POST /score", "POST /pooling"),
}


def install_adapters(app: Api) -> None:
    """Give the app every adapter's addresses. No adapter is loaded."""
    for name, routes in ROUTES.items():
        for route in routes:
            method, rule = route.split(" ")
            app.add_url_rule(rule, f"compat {route}", _entrance(name, route), methods=[method])
        app.describe_later(partial(load_adapter, name))


def load_adapter(name: str) -> Adapter:
    """Return a vendor's adapter, imported at its first use."""
    adapter: Adapter = import_module(f"{__name__}.{name}").adapter
    return adapter


def _entrance(name: str, route: str) -> Callable[..., Response]:
    def enter(**arguments: str) -> Response:
        return load_adapter(name).views[route](**arguments)

    return enter
