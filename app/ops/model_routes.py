"""`POST /v1/models/{model}/load`, `/unload`, `/reload`: an admin changes what workers have loaded, while they serve.

Owns the three routes. Workers follow the record in Redis (`tasks.presence.model_orders`), and `GET /v1/models/{model}`
shows how far each of them is.
"""

from typing import Any

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, ConfigDict, Field

from app.access.auth import current_tenant, look_up_card
from app.http.bodies import read_model
from app.http.errors import documented
from app.http.responses import json_response
from app.services import services
from tasks.errors import ModelNotFound, NotFound, PermissionDenied
from tasks.presence.model_orders import Action, ModelOrders

__all__ = ["blueprint"]

blueprint = APIBlueprint("model orders", __name__, abp_tags=[Tag(name="operations", description="For operators")])
_MOST_BYTES = 10_000


class _ModelPath(BaseModel):
    model: str


class ModelOrderRequest(BaseModel):
    """For whom an order is."""

    model_config = ConfigDict(extra="forbid")

    worker: str | None = Field(None, description="Name of one worker, as `GET /v1/models` shows it; null: all workers.")


class ModelOrderObject(BaseModel):
    """An order that was recorded. A worker has followed it when it reports this `id` as its `order`, or a later one."""

    id: int
    object: str
    model: str
    action: Action
    worker: str | None
    workers: list[str] = Field(description="Names of the workers that are there now and will follow it.")


_ERRORS = documented(ModelOrderObject, ModelNotFound, NotFound, PermissionDenied)
_ANSWERS = {202: _ERRORS.pop(200), **_ERRORS}


@blueprint.post("/v1/models/<path:model>/load", responses=_ANSWERS)
def load_model(path: _ModelPath) -> Response:
    """Let workers load a model: one of the catalogue or of the settings. It stays so when they start again."""
    return _give(path.model, "load")


@blueprint.post("/v1/models/<path:model>/unload", responses=_ANSWERS)
def unload_model(path: _ModelPath) -> Response:
    """Let workers finish what they have for a model, and free its memory. It stays so when they start again."""
    return _give(path.model, "unload")


@blueprint.post("/v1/models/<path:model>/reload", responses=_ANSWERS)
def reload_model(path: _ModelPath) -> Response:
    """Let workers that have a model read it again, and swap it while they serve."""
    return _give(path.model, "reload")


def _give(model: str, action: Action) -> Response:
    current_tenant().require_admin()
    live = services()
    body = read_model(request, _MOST_BYTES, ModelOrderRequest) if request.content_length else ModelOrderRequest()
    card = look_up_card(live.catalog, model)
    there = sorted({report.worker for reports in live.reports.all().values() for report in reports})
    if body.worker is not None and body.worker not in there:
        raise NotFound(f"there is no worker {body.worker!r}; there are {', '.join(there) or 'none'}")
    order = ModelOrders(live.redis).give(card.name, action, body.worker or "")
    shown: dict[str, Any] = {"id": order.id, "object": "model.order", "model": card.name, "action": action}
    return json_response(shown | {"worker": body.worker, "workers": [body.worker] if body.worker else there}, 202)
