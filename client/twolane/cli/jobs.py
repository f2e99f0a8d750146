"""`twolane jobs`, `top`, `job`, `results`, `cancel`, `pause`, `resume` and `retry`: work that the server keeps."""

import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table

from twolane.answers import Job
from twolane.cli.session import Session, ending, session_of

__all__ = ["changer", "list_jobs", "print_results", "show_job", "watch_jobs"]

JobId = Annotated[str, typer.Argument(help="ID of the job.", show_default=False)]
_COLORS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "expired": "yellow", "running": "cyan"}
_ACTIVE = "queued,running,paused,cancelling"
_PURPOSES = {
    "cancel": "Cancel a job; what was computed stays readable.",
    "pause": "Let a job wait.",
    "resume": "Let a paused job go on.",
    "retry": "Queue the failed items of an ended job again, and only those.",
}


def list_jobs(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="Only these states, with commas between.")] = None,
    limit: Annotated[int, typer.Option(help="Most jobs.", min=1)] = 20,
) -> None:
    """List your jobs, newest first."""
    session = session_of(context)
    with ending(session), session.client() as client:
        found = list(client.jobs.list(status=status, limit=limit))
    if session.as_json:
        for job in found:
            session.print_json(job)
        return
    # An ID that was shortened is of no use.
    table = Table(Column("job", no_wrap=True, min_width=max((len(job.id) for job in found), default=0)))
    for name in ("status", "model", "items", "failed", "created"):
        table.add_column(name)
    for job in found:
        done = f"{job.counts.completed + job.counts.failed:,} of {job.counts.total:,}"
        created = datetime.fromtimestamp(job.created_at, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(job.id, _status(job), job.model, done, f"{job.counts.failed:,}", created)
    session.output.print(table)


def watch_jobs(
    context: typer.Context,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.5)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    limit: Annotated[int, typer.Option(help="Most jobs.", min=1)] = 40,
) -> None:
    """Watch your jobs that have not ended, until Ctrl-C."""
    session = session_of(context)
    with ending(session, "The jobs go on."), session.client() as client:
        # A terminal shows one table that changes; what is piped into a file gets a new one each time.
        live = Live(console=session.output, auto_refresh=False) if session.output.is_terminal else None
        with live or contextlib.nullcontext():
            while True:
                found = list(client.jobs.list(status=_ACTIVE, limit=limit))
                if session.as_json:
                    session.print_json(found)
                elif live is not None:
                    live.update(_active_table(found), refresh=True)
                else:
                    session.output.print(_active_table(found))
                if once:
                    return
                time.sleep(every)


def _active_table(found: Sequence[Job]) -> Table:
    table = Table(Column("job", no_wrap=True), caption=None if found else "no job is waiting or running")
    for name in ("name", "status", "model", "done", "failed", "tokens/s", "time left"):
        table.add_column(name)
    for job in found:
        done = job.counts.completed + job.counts.failed
        share = f"{done / max(1, job.counts.total):.0%} of {job.counts.total:,}"
        speed = f"{job.tokens_per_s:,.0f}" if job.tokens_per_s else ""
        left = f"{timedelta(seconds=round(job.eta_s))}" if job.eta_s is not None else ""
        name = escape(job.metadata.get("name", ""))
        table.add_row(job.id, name, _status(job), job.model, share, f"{job.counts.failed:,}", speed, left)
    return table


def show_job(
    context: typer.Context,
    job_id: JobId,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended.")] = False,
) -> None:
    """Show how a job stands."""
    session = session_of(context)
    with ending(session, f"The job goes on: twolane job {job_id} --wait"), session.client() as client:
        job = client.jobs.wait(job_id) if wait else client.jobs.get(job_id)
    _show(session, job)


def print_results(
    context: typer.Context,
    job_id: JobId,
    failed: Annotated[bool, typer.Option("--failed", help="Only items that failed.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="While the job runs, each as soon as it is there.")] = False,
) -> None:
    """Print the results of an ended job, one item a line as JSON."""
    session = session_of(context)
    with ending(session), session.client() as client:
        for item in client.jobs.follow(job_id) if follow else client.jobs.results(job_id):
            if item.error is not None or not failed:
                row = msgspec.to_builtins(item, builtin_types=(bytes,))
                kept = {name: value for name, value in row.items() if value is not None}
                if item.embedding is not None:
                    kept["embedding"] = item.vector
                session.print_json(kept)


def changer(verb: str) -> Callable[..., None]:
    """Return the command that changes a job."""

    def change(context: typer.Context, job_id: JobId) -> None:
        session = session_of(context)
        with ending(session), session.client() as client:
            job = getattr(client.jobs, verb)(job_id)
        _show(session, job)

    change.__doc__ = _PURPOSES[verb]
    return change


def _show(session: Session, job: Job) -> None:
    if session.as_json:
        session.print_json(job)
        return
    counts = job.counts
    rows = {
        "job": job.id,
        "status": _status(job),
        "model": f"{job.model} ({job.type})",
        "items": f"{counts.completed + counts.failed:,} of {counts.total:,}",
        "failed": f"{counts.failed:,}" if counts.failed else "",
        "truncated": f"{counts.truncated:,}" if counts.truncated else "",
        "tokens": f"{job.tokens:,}",
        "speed": f"{job.tokens_per_s:,.0f} tokens/s" if job.tokens_per_s else "",
        "time left": f"{job.eta_s:,.0f} s" if job.eta_s is not None else "",
        "error": job.error or "",
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    session.output.print(table)


def _status(job: Job) -> str:
    color = _COLORS.get(job.status)
    return f"[{color}]{job.status}[/{color}]" if color else job.status
