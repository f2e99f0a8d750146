"""Probes: is the process alive, is the service ready, what is wrong.

Owns the three probe paths. They need no key, and say nothing that must not be public.
"""

import contextlib
from typing import Any, Literal

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel
from redis import RedisError

from app.http.errors import documented, not_ready_response
from app.http.responses import json_response
from app.services import Services, services
from tasks.errors import NoWorker, StoreUnavailable
from tasks.presence.device_states import DeviceReport, read_devices
from tasks.presence.diagnosis import SICK, diagnose, explain
from tasks.presence.eviction import warn_of_eviction
from tasks.presence.worker_registry import WorkerInfo

__all__ = ["blueprint"]

_NO_CHUNKS = "a worker that takes chunks of jobs: those there answer calls only, their logs say why"

blueprint = APIBlueprint("ops", __name__, abp_tags=[Tag(name="operations", description="Probes")])


class Liveness(BaseModel):
    """The process answers."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """Who is ready."""

    status: Literal["ready", "degraded", "waiting"]
    store: Literal["ok", "unavailable"]
    models: dict[str, dict[str, Any]]


@blueprint.get("/livez", responses={200: Liveness})
def livez() -> Response:
    """Tell that this process answers, whatever the rest does."""
    return json_response({"status": "ok"})


@blueprint.get("/readyz", responses=documented(Readiness, NoWorker))
def readyz() -> Response:
    """Tell whether every model of the settings has a worker that has loaded and warmed it.

    A model that no worker can serve does not take the others down with it: then the status is `degraded`, with 200. One
    that was unloaded, by an admin or because it was idle, counts as ready.
    """
    return _render(_measure(services()))


@blueprint.get("/health", responses=documented(Readiness, NoWorker))
def health() -> Response:
    """Tell the same as the two probes, which workers there are, and how their devices are."""
    live = services()
    state = _measure(live)
    state["workers"] = _workers(live) if state["store"] == "ok" else []
    state["sick"] = _sick(live) if state["store"] == "ok" else []
    state["live"] = True
    with contextlib.suppress(RedisError):
        state["warnings"] = warn_of_eviction(live.redis) + live.files.places.differing()
        state["devices"] = [_describe_device(report) for report in read_devices(live.redis)]
    return _render(state)


def _render(state: dict[str, Any]) -> Response:
    if state["status"] != "waiting":
        return json_response(state)
    waiting = [name for name, model in state["models"].items() if not model["ready"]]
    reason = state.get("problem") or f"no worker is ready for {', '.join(waiting)}"
    error = NoWorker(reason, retry_after_s=2) if state["store"] == "ok" else StoreUnavailable(reason, retry_after_s=2)
    return not_ready_response(error, state)


def _measure(live: Services) -> dict[str, Any]:
    try:
        ready: dict[str, list[Any]] = dict(live.presence.ready_models())
        store, problem = "ok", {}
    except StoreUnavailable as error:
        ready, store, problem = {}, "unavailable", {"problem": error.message}
    models = {_shown(live, name): _describe(live, name, ready, store) for name in live.settings.models}
    return {"status": _sum_up(models) if store == "ok" else "waiting", "store": store, **problem, "models": models}


def _shown(live: Services, name: str) -> str:
    """Return the name as the operator wrote it, without the folder that strangers need not know."""
    card = live.catalog.find(name)
    return card.name if card is not None and card.source.startswith("path:") else name


def _sum_up(models: dict[str, dict[str, Any]]) -> str:
    if all(model["ready"] for model in models.values()):
        return "ready"
    if not all(model["ready"] or model.get("given_up") or model.get("unloaded") for model in models.values()):
        return "waiting"
    failed = [name for name, model in models.items() if model.get("given_up")]
    return ("waiting" if len(failed) == len(models) else "degraded") if failed else "ready"


def _describe(live: Services, name: str, ready: dict[str, list[Any]], store: str) -> dict[str, Any]:
    card = live.catalog.find(name)
    if card is None:
        return {"ready": False, "workers": 0, "waits_for": "a card of this name in the catalogue"}
    workers = len(ready.get(card.slug, ()))
    failed = [report.reason for report in live.reports.failures(card.slug)] if store == "ok" else []
    more: dict[str, Any] = {"failed": failed} if failed else {}
    if any(worker.bulk for worker in ready.get(card.slug, ())):
        return {"ready": True, "workers": workers, **more}
    if workers:
        return {"ready": False, "workers": workers, "waits_for": _NO_CHUNKS, **more}
    if failed and live.reports.given_up(card.slug):
        return {"ready": False, "workers": 0, "given_up": True, "waits_for": "its folder or card to be mended", **more}
    if store == "ok" and live.reports.unloaded(card.slug):
        return {"ready": False, "workers": 0, "unloaded": True, **more}
    missing = "a worker that has loaded and warmed it" if store == "ok" else "Redis"
    return {"ready": False, "workers": 0, "waits_for": missing, **more}


def _workers(live: Services) -> list[dict[str, Any]]:
    return [
        {
            "model": model,
            "device": facts.device,
            "dtype": facts.dtype,
            "backend": facts.backend,
            "tokens_per_s": round(facts.tokens_per_s, 1),
            "calls": _calls(facts),
            **({"fallback": facts.fallback} if facts.fallback else {}),
            **({} if facts.bulk else {"bulk": False}),
        }
        for model, workers in live.presence.ready_models().items()
        for facts in workers
    ]


def _sick(live: Services) -> list[dict[str, Any]]:
    """Return what is wrong with workers, without what strangers need not know: their hosts and what they hold."""
    found = [(member, diagnose(member)) for member in live.fleet.members()]
    return [
        {"device": member.card.device, "condition": condition, "problem": explain(member)}
        for member, condition in found
        if condition in SICK
    ]


def _describe_device(report: DeviceReport) -> dict[str, Any]:
    failed = {"failures": report.failures, "reason": report.reason} if report.failures else {}
    return {"device": report.device, "state": report.state, **failed}


def _calls(info: WorkerInfo) -> dict[str, Any]:
    """Return what small calls should take inside the worker, did take of late and can expect, in milliseconds."""
    return {
        "target_ms": info.call_target_ms,
        "p99_ms": round(info.call_p99_ms, 1),
        "expected_ms": round(info.call_expected_ms, 1),
        "target_in_reach": info.call_expected_ms <= info.call_target_ms,
    }
