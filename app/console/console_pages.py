"""The pages to look at: overview, jobs, one job, workers.

Owns which page shows what. Reads only; what changes something is `app.console.actions`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flask import Response, request

from app.admin.job_search import JobSearch, find_jobs, job_name
from app.admin.worker_views import read_workers
from app.console.failures import read_failures
from app.console.figures import read_figures
from app.console.session_guard import blueprint, render
from app.jobs.results import Results
from app.services import Services, services
from tasks.errors import InvalidRequest
from tasks.jobs.job import Job, JobProgress, JobState

_FEW, _PAGE = 8, 50
_CHUNKS_SHOWN = 100
_FILTERS = ("active", "failed-items", "queued", "running", "paused", "succeeded", "failed", "cancelled", "expired")


@dataclass(frozen=True, slots=True)
class JobRow:
    """One line of a list of jobs."""

    job: Job
    progress: JobProgress
    name: str

    @property
    def actions(self) -> list[str]:
        """What may be done to it now."""
        job = self.job
        if job.state is JobState.QUEUED:
            return ["first", "cancel"]
        if job.state is JobState.RUNNING:
            return ["pause", "cancel"]
        if job.state is JobState.PAUSED:
            return ["resume", "cancel"]
        return ["retry"] if job.state in (JobState.SUCCEEDED, JobState.FAILED) and job.counts.failed else []


@blueprint.get("")
def show_overview() -> str:
    """Show what matters first: who is sick, what waits, jobs and workers."""
    live = services()
    workers = read_workers(live)
    return render(
        "overview.html",
        figures=read_figures(live, workers),
        rows=_rows(live, find_jobs(live, JobSearch.parse("state:active"), _FEW)),
        workers=[worker for worker in workers if not worker.is_gone],
        sick=[worker for worker in workers if worker.is_sick],
    )


@blueprint.get("/jobs")
def show_jobs() -> str:
    """Show jobs of all tenants, by the words of a search."""
    live, text, after = services(), request.args.get("q", "state:active")[:500], request.args.get("after")
    problem = ""
    try:
        found = find_jobs(live, JobSearch.parse(text), _PAGE + 1, after)
    except InvalidRequest as error:
        found, problem = [], error.message
    page = found[:_PAGE]
    more = page[-1].id if len(found) > _PAGE else None
    return render("jobs.html", rows=_rows(live, page), q=text, problem=problem, more=more, filters=_FILTERS)


@blueprint.get("/jobs/<job_id>")
def show_job(job_id: str) -> str:
    """Show one job."""
    live = services()
    job = live.store.get(job_id, None)
    return render(
        "job.html",
        row=_rows(live, [job])[0],
        metadata=job.extra.get("metadata") or {},
        chunks=live.store.chunk_table(job.id, 0, _CHUNKS_SHOWN),
        failures=read_failures(live, job),
        events=list(reversed(live.store.listing.log(job.id))),
    )


@blueprint.get("/jobs/<job_id>/failed.ndjson")
def download_failed(job_id: str) -> Response:
    """Send what is known of each failed item: index, ID, code and message, and no text."""
    live = services()
    job = live.store.get(job_id, None)
    lines = Results(live, job).lines("float", failed=True)
    response = Response(lines, mimetype="application/x-ndjson")
    response.headers["Content-Disposition"] = f'attachment; filename="{job.id}-failed.ndjson"'
    return response


@blueprint.get("/workers")
def show_workers() -> str:
    """Show the workers, those that are gone too."""
    live = services()
    workers = read_workers(live)
    gone = [worker for worker in workers if worker.is_gone]
    return render("workers.html", workers=[one for one in workers if not one.is_gone], gone=gone)


def _rows(live: Services, jobs: Sequence[Job]) -> list[JobRow]:
    return [JobRow(job, live.forecasts.progress(job), job_name(job)) for job in jobs]
