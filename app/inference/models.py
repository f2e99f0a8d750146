"""`GET /v1/models`: what this server offers, and whether a worker is ready for it."""

from collections.abc import Mapping, Sequence
from typing import Any

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel

from app.access.auth import look_up_card, visible_cards
from app.http.errors import documented
from app.http.responses import json_response
from app.inference.schemas import ModelList, ModelObject
from app.services import Services, services
from config.catalog import ModelCard
from tasks.errors import ModelNotFound
from tasks.presence.model_states import ModelReport
from tasks.presence.worker_registry import WorkerInfo

__all__ = ["blueprint"]

blueprint = APIBlueprint("models", __name__, abp_tags=[Tag(name="models", description="The catalogue")])

# A card has no birthday, and clients insist on a number: the first of January 2025.
_CREATED = 1_735_689_600


class _ModelPath(BaseModel):
    model: str


@blueprint.get("/v1/models", responses=documented(ModelList))
def list_models() -> Response:
    """List the models that this server is set up for or has a worker for."""
    live = services()
    ready, reported = live.presence.ready_models(), live.reports.all()
    offered = {card.slug for card in live.catalog.served} | ready.keys() | reported.keys()
    cards = [card for card in visible_cards(live.catalog) if card.slug in offered]
    return json_response({"object": "list", "data": [_view(live, card, ready) for card in cards]})


@blueprint.get("/v1/models/<path:model>", responses=documented(ModelObject, ModelNotFound))
def get_model(path: _ModelPath) -> Response:
    """Describe one model of the catalogue, by name or alias."""
    live: Services = services()
    return json_response(_view(live, look_up_card(live.catalog, path.model), live.presence.ready_models()))


def _view(live: Services, card: ModelCard, ready: Mapping[str, Sequence[WorkerInfo]]) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": _CREATED,
        "owned_by": card.owner,
        "description": card.description,
        "aliases": list(card.aliases),
        "capabilities": list(card.capabilities),
        "dimension": card.dimension,
        "max_tokens": card.max_tokens,
        "rerank_by": card.rerank_by,
        "matryoshka": list(card.matryoshka),
        "matryoshka_from": card.matryoshka_from,
        "job_input_type": card.job_input_type,
        "cutoff_layers": list(card.cutoff_layers),
        "similarity": card.similarity,
        "licence": card.licence,
        "parameters": card.parameters,
        "query_instruction": card.query_instruction,
        "document_instruction": card.document_instruction,
        "fingerprints": sorted({worker.fingerprint for worker in ready.get(card.slug, ())}),
        "ready": card.slug in ready,
        "workers": [_view_worker(report, ready.get(card.slug, ())) for report in live.reports.of(card.slug)],
    }


def _view_worker(report: ModelReport, ready: Sequence[WorkerInfo]) -> dict[str, Any]:
    fingerprints = {worker.worker_id: worker.fingerprint for worker in ready}
    return {
        "worker": report.worker_id,
        "name": report.worker,
        "state": report.state,
        "reason": report.reason,
        "step": report.step,
        "progress": report.progress,
        "order": report.order,
        "memory_bytes": report.memory_bytes,
        "pinned": report.pinned,
        "idle_s": round(report.idle_s, 1),
        "load_s": report.load_s,
        "since_s": round(report.since_s, 1),
        "fingerprint": fingerprints.get(report.worker_id),
    }
