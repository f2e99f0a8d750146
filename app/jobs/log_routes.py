"""`GET /v1/jobs/{job_id}/log`: what happened to a job, who had it done, and in which request."""

from collections.abc import Mapping
from typing import Any, Literal

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, Field

from app.access.auth import current_tenant
from app.http.errors import documented
from app.http.responses import json_response
from app.jobs.schemas import JobId
from app.services import services
from tasks.errors import NotFound

__all__ = ["blueprint"]

blueprint = APIBlueprint("job_log", __name__, abp_tags=[Tag(name="jobs", description="Large corpora")])


class JobEvent(BaseModel):
    """One line of a job's log."""

    at: float = Field(description="Seconds since the epoch.")
    event: str = Field(description="As created, started, chunk_failed, worker_silent, worker_lost, paused, succeeded.")
    by: str | None = Field(None, description="Tenant and name of the key.")
    request_id: str | None = None
    traceparent: str | None = Field(None, description="Of the request's span, where it is traced.")
    worker: str | None = None
    chunk: int | None = None
    attempt: int | None = None
    reason: str | None = None


class JobLog(BaseModel):
    """What happened to a job."""

    object: Literal["list"]
    data: list[JobEvent]
    has_more: bool


@blueprint.get("/v1/jobs/<job_id>/log", responses=documented(JobLog, NotFound))
def get_log(path: JobId) -> Response:
    """Tell what happened to a job, by whom and in which request, oldest first; the newest 200 lines are kept."""
    live, tenant = services(), current_tenant()
    events = live.store.listing.log(live.store.get(path.job_id, tenant.name).id)
    # A tenant must not see the names of other tenants' or operators' keys.
    shown = [{**event, **_name_actor(event, tenant.name)} for event in events]
    return json_response({"object": "list", "data": shown, "has_more": False})


def _name_actor(event: Mapping[str, Any], tenant: str) -> dict[str, str]:
    by = str(event.get("by", ""))
    return {} if not by or by.startswith(f"{tenant}/") else {"by": "an operator"}
