"""A job as its reader sees it: the JSON object, its headers and its links.

Owns the shape of the job object. Reads Redis only for a job's progress.
"""

import math
from collections.abc import Mapping
from typing import Any

from flask import Response

from app.access.auth import current_tenant
from app.http.prefer import Preferences
from app.http.request_ids import note_facts
from app.http.responses import json_response
from app.jobs.result_items import ItemShape, read_frame
from app.jobs.results import Results
from app.services import Services
from app.submission.orders import Estimate, Order, Submission
from tasks.engine import Windows
from tasks.jobs.forecast import JobShare
from tasks.jobs.job import WEIGHTS, Job, JobProgress, WebhookState
from tasks.lanes import Lane, Service
from tasks.vectors import MANY_VECTORS

__all__ = ["job_etag", "render_estimate", "render_job", "render_submission", "view_job"]

_RETRY_AFTER_MIN_S, _RETRY_AFTER_MAX_S = 1, 60


def job_etag(job: Job) -> str:
    """Return the weak entity tag of a job object: speed and time left may differ while it stays."""
    return f'W/"{job.id}.{job.version}"'


def view_job(job: Job, progress: JobProgress) -> dict[str, Any]:
    """Return the job object."""
    params = job.params
    return {
        "id": job.id,
        "object": "job",
        "type": job.operation,
        "model": job.model,
        "status": job.state.value,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "expires_at": job.expires_at,
        "deadline_at": job.deadline_at,
        "not_before": job.not_before,
        "counts": {
            "total": job.counts.total,
            "completed": job.counts.completed,
            "failed": job.counts.failed,
            "truncated": job.counts.truncated,
            "cached": job.counts.cached,
        },
        "chunks": {"total": job.chunks, "done": job.chunks_done},
        "tokens": job.tokens,
        "estimated_tokens": job.estimated_tokens,
        "tokens_per_s": _round(progress.tokens_per_s),
        "eta_s": _round(progress.eta_s),
        "position": progress.position,
        "priority": job.priority,
        "params": {
            "instruction": params.instruction,
            "dimensions": params.dimensions,
            "truncate": params.truncate,
            "dtype": params.dtype,
            "cache": bool(params.cache),
            "dedupe": bool(params.dedupe),
            "return": list(params.returns),
            "cutoff_layers": params.cutoff_layer,
            **_view_windows(params.long),
        },
        "fingerprint": job.fingerprint,
        "metadata": job.extra.get("metadata") or {},
        "webhook": _view_webhook(job.webhook),
        "error": _explain_wait(job) or job.error or None,
        "links": _links(job),
    }


def _explain_wait(job: Job) -> str:
    if not job.waits_for_model or job.ended:
        return ""
    return (
        f"this job waits for a worker with the model that it began with ({job.fingerprint}): its vectors could not be "
        "compared with those of another one. Start such a worker, or cancel the job and submit it again"
    )


def render_job(live: Services, job: Job, *, status: int = 200) -> Response:
    """Return the answer with one job, its tag and, while it runs, when to ask again."""
    progress = live.forecasts.progress(job)
    response = json_response(view_job(job, progress), status)
    return _add_headers(response, job, progress)


def render_submission(
    live: Services, submission: Submission, preferences: Preferences, new_secret: str = ""
) -> Response:
    """Return the answer to a new job: 200 with results when it was answered at once or has ended by now, else 202.

    Args:
        live: the services.
        submission: the job.
        preferences: what the caller prefers; honoured ones are named.
        new_secret: the webhook's secret, if it was made here; it is shown now and never again.
    """
    job = submission.job
    note_facts(job=job.id, model=job.model, items=job.counts.total)
    progress = live.forecasts.progress(job)
    body = view_job(job, progress)
    if new_secret and submission.created:
        body["webhook"]["secret"] = new_secret
    if job.ended and _is_short(live, job):
        body["results"] = _inline_results(live, submission)
    response = _add_headers(json_response(body, 200 if job.ended else 202), job, progress)
    response.headers["Location"] = body["links"]["self"]
    response.headers.update(preferences.applied)
    return response


def render_estimate(live: Services, order: Order, estimate: Estimate) -> Response:
    """Return the answer to a dry run."""
    body = {
        "object": "job.estimate",
        "model": order.card.name,
        "items": estimate.items,
        "tokens": estimate.tokens,
        "chunks": estimate.chunks,
        "lane": estimate.service.value,
        "estimated_s": _estimate_s(live, order, estimate),
    }
    return json_response(body)


def _estimate_s(live: Services, order: Order, estimate: Estimate) -> float | None:
    """Return when it would end: a job shares the device with the queue, a call goes ahead of it."""
    slug = order.card.slug
    if estimate.service is Service.BULK:
        tenant = current_tenant()
        job = JobShare(estimate.tokens, WEIGHTS[order.priority], 0.0, tenant.name, tenant.share)
        estimated_s = live.forecasts.estimate_s(Lane(slug, Service.BULK), job)
    else:
        speed = live.presence.speed(slug)
        estimated_s = estimate.tokens / speed if speed else None
    return None if estimated_s is None else round(estimated_s, 3)


def _view_windows(windows: Windows | None) -> dict[str, Any]:
    """Return in the words of requests how texts are read."""
    if windows is None:
        return {"long": None}
    sizes = {"chunk_tokens": windows.tokens, "overlap_tokens": windows.overlap, "max_chunks_per_doc": windows.most}
    return {"long": windows.pooling, **sizes}


def _is_short(live: Services, job: Job) -> bool:
    """Return whether the results may be part of the job object: of few items, and few tokens if each has a vector."""
    one_vector = MANY_VECTORS.isdisjoint(job.params.extras)
    few_tokens = one_vector or job.tokens <= live.settings.interactive_max_tokens
    return few_tokens and job.counts.total <= live.settings.interactive_max_items


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _inline_results(live: Services, submission: Submission) -> list[dict[str, Any]]:
    shape = ItemShape(submission.job, "float")
    if submission.frame is not None:
        return list(shape.rows(read_frame(submission.frame)))
    return [row for chunk in Results(live, submission.job).chunks() for row in shape.rows(chunk)]


def _add_headers(response: Response, job: Job, progress: JobProgress) -> Response:
    response.headers["ETag"] = job_etag(job)
    response.headers["Cache-Control"] = "private, no-cache"
    if not job.ended:
        wait_s = math.ceil(progress.eta_s or _RETRY_AFTER_MIN_S)
        response.headers["Retry-After"] = str(min(max(wait_s, _RETRY_AFTER_MIN_S), _RETRY_AFTER_MAX_S))
    return response


def _view_webhook(state: WebhookState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        "url": state.url,
        "status": state.status,
        "attempts": state.attempts,
        "last_attempt_at": state.last_attempt_at,
        "next_attempt_at": state.next_attempt_at,
        "answer": state.answer,
        "error": state.error or None,
    }


def _links(job: Job) -> Mapping[str, str]:
    own = f"/v1/jobs/{job.id}"
    return {"self": own, "results": f"{own}/results", "cancel": f"{own}/cancel"}
