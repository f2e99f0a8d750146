"""`/v1/admin/...` and `/v1/workers`: what an operator's key may see and do, as JSON."""

from typing import Annotated, Any, Literal

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, Field

from app.access.auth import current_tenant
from app.admin.job_search import JobAction, JobSearch, act_on_job, act_on_jobs, find_jobs
from app.admin.worker_views import read_workers, render_worker
from app.http.bodies import read_model
from app.http.errors import documented
from app.http.responses import json_response
from app.jobs.schemas import JobObject, RetryOptions
from app.jobs.views import render_job, view_job
from app.services import Services, services
from tasks.errors import Conflict, NotFound
from tasks.jobs.job import Job

__all__ = ["blueprint"]

blueprint = APIBlueprint("admin", __name__, abp_tags=[Tag(name="admin", description="For keys with `admin = true`")])


class _Search(BaseModel):
    q: str = Field("", max_length=500, description="As `tenant:acme model:bge-m3 state:active meta.source=wiki words`.")
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    after: str | None = Field(None, max_length=100, description="The last id of the page before.")


class _JobPath(BaseModel):
    job_id: str = Field(max_length=100)


class _ActionPath(_JobPath):
    action: JobAction


class _BulkPath(BaseModel):
    action: JobAction


class _WorkerPath(BaseModel):
    worker_id: str = Field(max_length=300)
    order: Literal["drain", "restart"]


class _Bulk(BaseModel):
    ids: Annotated[list[str], Field(min_length=1, max_length=1000)] = Field(description="IDs of jobs.")


class _Listed(BaseModel):
    """A list of objects."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    has_more: bool


class _Changed(BaseModel):
    """What became of an action on several jobs."""

    changed: int
    refused: list[str]


@blueprint.get("/v1/admin/jobs", responses=documented(_Listed, NotFound))
def list_all_jobs(query: _Search) -> Response:
    """List the jobs of all tenants, newest first, with speed and time left."""
    live = services()
    found = find_jobs(live, JobSearch.parse(query.q), query.limit + 1, query.after)
    return _list([_view(live, job) for job in found[: query.limit]], has_more=len(found) > query.limit)


@blueprint.get("/v1/admin/jobs/<job_id>", responses=documented(JobObject, NotFound))
def get_any_job(path: _JobPath) -> Response:
    """Show a job of any tenant."""
    live = services()
    return json_response(_view(live, live.store.get(path.job_id, None)))


@blueprint.get("/v1/admin/jobs/<job_id>/log", responses=documented(_Listed, NotFound))
def get_any_log(path: _JobPath) -> Response:
    """Show what happened to a job of any tenant, by whom and in which request."""
    live = services()
    return _list(live.store.listing.log(live.store.get(path.job_id, None).id))


@blueprint.post("/v1/admin/jobs/<job_id>/<action>", responses=documented(JobObject, NotFound, Conflict))
def change_any_job(path: _ActionPath, query: RetryOptions) -> Response:
    """Pause, resume, cancel or retry a job of any tenant, or put it first in its queue."""
    job = act_on_job(services(), current_tenant(), path.job_id, path.action, query.truncate)
    return render_job(services(), job)


@blueprint.post("/v1/admin/jobs/<action>", responses=documented(_Changed))
def change_jobs(path: _BulkPath, query: RetryOptions) -> Response:
    """Do the same to several jobs; `refused` says why some were not changed."""
    body = read_model(request, services().settings.max_body_bytes, _Bulk)
    changed, refused = act_on_jobs(services(), current_tenant(), body.ids, path.action, query.truncate)
    return json_response({"changed": changed, "refused": refused})


@blueprint.get("/v1/admin/workers", responses=documented(_Listed))
@blueprint.get("/v1/workers", responses=documented(_Listed), endpoint="list_workers_too")
def list_workers() -> Response:
    """List the workers, those that were lost in the last day too: what each holds, and what is wrong with it."""
    return _list([render_worker(view) for view in read_workers(services())])


@blueprint.post("/v1/admin/workers/<worker_id>/<order>", responses=documented(_Listed, NotFound))
def order_worker(path: _WorkerPath) -> Response:
    """Have a worker finish what it holds and take nothing new, or then end so that its launcher starts it afresh."""
    live = services()
    if not live.fleet.order(path.worker_id, path.order):
        raise NotFound("there is no such worker")
    return _list([render_worker(view) for view in read_workers(live) if view.member.card.worker_id == path.worker_id])


@blueprint.get("/v1/admin/tenants", responses=documented(_Listed))
def list_tenants() -> Response:
    """List the tenants that have jobs."""
    listing = services().store.listing
    tenants = listing.tenants().items()
    return _list([{"tenant": name, "last_job_at": at, "jobs": listing.count_of(name)} for name, at in tenants])


def _view(live: Services, job: Job) -> dict[str, Any]:
    return {"tenant": job.tenant, **view_job(job, live.forecasts.progress(job))}


def _list(data: list[dict[str, Any]], *, has_more: bool = False) -> Response:
    return json_response({"object": "list", "data": data, "has_more": has_more})
