"""`GET /v1/jobs/{job_id}/events`: a job's progress as server-sent events (WHATWG HTML, section 9.2)."""

import time
from collections.abc import Iterator
from typing import Any

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from app.access.auth import current_tenant
from app.http.errors import documented
from app.http.places import Kind, current_place
from app.http.responses import encode_json, live_stream
from app.jobs.following import IDLE_S, LONGEST_S, PAUSE_S
from app.jobs.schemas import EventHeaders, JobId, JobObject
from app.jobs.views import view_job
from app.services import Services, services
from tasks.errors import LaneFull, NotFound
from tasks.jobs.job import Job

__all__ = ["blueprint"]

blueprint = APIBlueprint("job_events", __name__, abp_tags=[Tag(name="jobs", description="Large corpora")])

_RETRY_MS = 2000
_EVENTS: dict[str, Any] = {
    "description": "One event for each change, its data the job; the last one has the job's end.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


@blueprint.get("/v1/jobs/<job_id>/events", responses=documented(JobObject, NotFound, LaneFull, extra={200: _EVENTS}))
def stream_events(path: JobId, header: EventHeaders) -> Response:
    """Follow a job until it ends.

    `Last-Event-ID` goes on behind an event. Events are states: a reader that was away sees the newest, not each one.
    """
    live = services()
    job = live.store.get(path.job_id, current_tenant().name)
    seen = header.last_event_id or ""
    version = int(seen) if seen.isascii() and seen.isdecimal() else -1
    current_place().move(Kind.WAIT)
    return live_stream(_follow(live, job, version), "text/event-stream")


def _follow(live: Services, job: Job, version: int) -> Iterator[bytes]:
    yield f"retry: {_RETRY_MS}\n\n".encode()
    until_s = time.monotonic() + LONGEST_S
    while True:
        if job.version > version:
            version = job.version
            yield _event(live, job)
        else:
            # Also the way to notice that nobody listens any more.
            yield b": still here\n\n"
        if job.ended or time.monotonic() > until_s:
            return
        time.sleep(PAUSE_S)
        job = live.store.wait(job.id, job.tenant, version, IDLE_S)


def _event(live: Services, job: Job) -> bytes:
    data = encode_json(view_job(job, live.forecasts.progress(job)))
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (job.version, job.state.value.encode(), data)
