"""The routes of jobs: create one, read it, wait for it, and change it."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from app.access.auth import current_tenant, find_card
from app.http.bodies import read_model, stream_body
from app.http.errors import documented
from app.http.openapi import describe_either, describe_json_or_ndjson
from app.http.places import Kind, current_place
from app.http.prefer import Preferences, parse_prefer
from app.http.responses import json_response
from app.jobs.ndjson import read_items, split_lines
from app.jobs.schemas import (
    JobEstimate,
    JobFilter,
    JobId,
    JobList,
    JobObject,
    JobRequest,
    ReadHeaders,
    RetryOptions,
    SubmitHeaders,
    SubmitOptions,
    WebhookRequest,
)
from app.jobs.views import job_etag, render_estimate, render_job, render_submission, view_job
from app.jobs.webhooks import choose_webhook
from app.services import services
from app.submission.orders import Order, Submission, make_order
from app.submission.payload import PayloadHash
from app.submission.service import SubmissionService
from tasks.engine import Operation
from tasks.errors import Conflict, InvalidRequest, NotFound, StoreFull
from tasks.jobs.chunking import Item
from tasks.jobs.job import Job, JobState
from tasks.storage.objects import read_blocks

__all__ = ["blueprint"]

blueprint = APIBlueprint("jobs", __name__, abp_tags=[Tag(name="jobs", description="Large corpora")])

# The names that producers use: none of them is registered.
_NDJSON = frozenset(
    f"{kind}/{name}"
    for kind in ("application", "text")
    for name in ("ndjson", "x-ndjson", "jsonl", "x-jsonl", "jsonlines", "x-jsonlines", "json-lines")
)
_LINE = 'One item a line: a string, or {"id": "..", "text": ".."}; for rerank also "query".'
_ANSWERED = describe_either("The job with its results, or its estimate after `dry_run`.", JobObject, JobEstimate)
_CHANGED = documented(JobObject, NotFound, Conflict)


@blueprint.post(
    "/v1/jobs",
    responses=documented(JobObject, StoreFull, accepted=JobObject, computing=True, extra={200: _ANSWERED}),
    openapi_extensions=describe_json_or_ndjson(JobRequest, _LINE),
)
def create_job(header: SubmitHeaders, query: SubmitOptions) -> Response:
    """Hand in texts: few are answered at once, many are queued.

    200 with `results`, or 202 with `Location`; kept under its id either way.
    """
    if request.mimetype in _NDJSON:
        order, items, payload = _read_ndjson(header, query)
    else:
        order, items, payload = _read_body(header)
    submission = SubmissionService(services(), current_tenant())
    if query.dry_run:
        current_place().move(Kind.UPLOAD)
        return render_estimate(services(), order, submission.estimate(order, items))
    preferences = parse_prefer(header.prefer or "")
    submitted = submission.repeat(order, items, payload)
    if submitted is None:
        submitted = submission.submit(order, items, payload.settle, queue=preferences.respond_async)
    return render_submission(services(), _wait_for(submitted, preferences), preferences, order.new_secret)


@blueprint.get("/v1/jobs", responses=documented(JobList, NotFound))
def list_jobs(query: JobFilter) -> Response:
    """List jobs, newest first."""
    live, tenant = services(), current_tenant().name
    states = read_states(query.status)
    found = live.store.listing.find(
        tenant, query.limit + 1, query.after, lambda job: states is None or job.state in states
    )
    page = found[: query.limit]
    body = {
        "object": "list",
        "data": [view_job(job, live.forecasts.progress(job)) for job in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(found) > query.limit,
    }
    return json_response(body)


@blueprint.get(
    "/v1/jobs/<job_id>", responses=documented(JobObject, NotFound, extra={304: {"description": "It has not changed."}})
)
def get_job(path: JobId, header: ReadHeaders) -> Response:
    """Tell how a job stands.

    With `Prefer: wait=N` the answer comes when the job has ended or, with `If-None-Match`, when it has changed; at the
    latest after N seconds.
    """
    live, preferences = services(), parse_prefer(header.prefer or "")
    job = live.store.get(path.job_id, current_tenant().name)
    tag = header.if_none_match or ""
    if preferences.wait_s is not None:
        job = _wait(job, preferences.wait_s, lambda now: now.ended or bool(tag and job_etag(now) not in tag))
    if tag and job_etag(job) in tag:
        response = Response(status=304, headers={"ETag": job_etag(job)})
    else:
        response = render_job(live, job)
    response.headers.update(Preferences(wait_s=preferences.wait_s).applied)
    return response


@blueprint.delete("/v1/jobs/<job_id>", responses=_CHANGED)
def delete_job(path: JobId) -> Response:
    """Cancel a job that has not ended; delete one that has, with its results.

    The answer is the job as it is, or was.
    """
    live, tenant = services(), current_tenant().name
    if not live.store.get(path.job_id, tenant).ended:
        with contextlib.suppress(Conflict):
            return _change(path, live.store.cancel)
    job = live.store.delete(path.job_id, tenant)
    live.blobs.delete(job.id, job.chunks)
    return render_job(live, job)


@blueprint.post("/v1/jobs/<job_id>/cancel", responses=_CHANGED)
def cancel_job(path: JobId) -> Response:
    """Cancel a job; finished chunks stay readable. May be repeated."""
    return _change(path, services().store.cancel)


@blueprint.post("/v1/jobs/<job_id>/pause", responses=_CHANGED)
def pause_job(path: JobId) -> Response:
    """Let a job wait; chunks that are being computed are finished."""
    return _change(path, services().store.pause)


@blueprint.post("/v1/jobs/<job_id>/resume", responses=_CHANGED)
def resume_job(path: JobId) -> Response:
    """Let a paused job go on."""
    return _set_going(path, services().store.resume)


@blueprint.post("/v1/jobs/<job_id>/retry", responses=_CHANGED)
def retry_job(path: JobId, query: RetryOptions) -> Response:
    """Queue the failed items of an ended job again, and only those; those that were too long are cut, if you like."""
    return _set_going(path, partial(services().store.retry_failed, truncate=query.truncate))


# -- reading a submission


def _read_ndjson(header: SubmitHeaders, query: SubmitOptions) -> tuple[Order, Iterable[Item], PayloadHash]:
    settings = services().settings
    if query.model is None:
        raise InvalidRequest("an NDJSON body needs `model` among the query parameters", param="model")
    card = find_card(services().catalog, query.model)
    operation: Operation = query.type or "embeddings"
    asked = header.webhook()
    described = query.model_dump_json() + (asked.model_dump_json() if asked else "")
    payload = PayloadHash(header.idempotency_key, described.encode(), streamed=True)
    # A dry run reads all and keeps nothing: what it tells of a part holds for the whole.
    most_bytes = settings.max_body_bytes if query.dry_run else settings.max_upload_bytes
    lines = payload.follow(split_lines(stream_body(request, most_bytes), settings.max_line_bytes))
    items = read_items(lines, query.query, rerank=operation == "rerank")
    extra: dict[str, object] = {"metadata": labels} if (labels := query.labels()) else {}
    return _add_webhook(make_order(card, operation, query, extra, job=True), asked), items, payload


def _read_body(header: SubmitHeaders) -> tuple[Order, Iterable[Item], PayloadHash]:
    body = read_model(request, services().settings.max_body_bytes, JobRequest)
    card = find_card(services().catalog, body.model)
    extra: dict[str, object] = {}
    if body.metadata:
        extra["metadata"] = body.metadata
    if body.type == "rerank" and body.input_file_id is None:
        extra["documents_per_query"] = [len(group.documents) for group in body.groups()]
    order = _add_webhook(make_order(card, body.type, body, extra, job=True), body.webhook)
    items = body.items() if body.input_file_id is None else _read_file(body.input_file_id, body)
    return order, items, PayloadHash.of_json(header.idempotency_key, body)


def _read_file(file_id: str, body: JobRequest) -> Iterator[Item]:
    """Yield the items of an uploaded file. Nothing is looked up before the first: a repeat does not need the file."""
    live = services()
    file = live.files.get(file_id, current_tenant().name)
    lines = split_lines(read_blocks(live.files.open(file)), live.settings.max_line_bytes)
    yield from read_items(lines, body.query, rerank=body.type == "rerank")


def _add_webhook(order: Order, asked: WebhookRequest | None) -> Order:
    if asked is None:
        return order
    webhook = choose_webhook(asked.url, asked.secret, allow_private=services().settings.webhook_allow_private)
    return replace(order, webhook=webhook, new_secret="" if asked.secret else webhook.secret)


def read_states(names: str | None) -> frozenset[JobState] | None:
    if not names:
        return None
    try:
        return frozenset(JobState(name.strip()) for name in names.split(","))
    except ValueError:
        known = ", ".join(state.value for state in JobState)
        raise InvalidRequest(f"status must be one or more of {known}", param="status") from None


# -- waiting and changing


def _wait_for(submission: Submission, preferences: Preferences) -> Submission:
    if submission.job.ended or not preferences.wait_s:
        return submission
    return replace(submission, job=_wait(submission.job, preferences.wait_s, lambda job: job.ended))


def _wait(job: Job, wait_s: float, done: Callable[[Job], bool]) -> Job:
    """Wait for a job if a thread may be held for it; else the caller asks again."""
    live = services()
    deadline_s = time.monotonic() + wait_s
    with current_place().moved(Kind.WAIT) as free:
        while free and not done(job) and (left_s := deadline_s - time.monotonic()) > 0:
            job = live.store.wait(job.id, job.tenant, job.version, left_s)
    return job


def _set_going(path: JobId, change: Callable[[str, str], Job]) -> Response:
    job = change(path.job_id, current_tenant().name)
    SubmissionService(services(), current_tenant()).publish(job.lane, job.chunks)
    return render_job(services(), job)


def _change(path: JobId, change: Callable[[str, str], Job]) -> Response:
    return render_job(services(), change(path.job_id, current_tenant().name))
