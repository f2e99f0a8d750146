"""What a form of the console has done: to jobs and to workers.

Owns the forms' fields and what is said afterwards. Every action is logged with the name of the key.
"""

import logging

from flask import redirect, request, url_for
from werkzeug.wrappers import Response

from app.admin.job_search import ACTIONS, act_on_jobs
from app.console.session_guard import blueprint, current_session, sessions
from app.services import services
from tasks.engine import Truncate
from tasks.errors import InvalidRequest

__all__ = ["go_back"]

_log = logging.getLogger(__name__)
_DONE = {
    "pause": "paused",
    "resume": "resumed",
    "cancel": "cancelled",
    "retry": "queued again for their failed items",
    "first": "put first",
}


def go_back(message: str) -> Response:
    """Return to the page that the form was on, which says this."""
    sessions().leave_message(current_session(), message)
    target = request.form.get("back", "")
    # Only to ourselves: a path that begins with two slashes is another host.
    safe = target == "/console" or target.startswith(("/console/", "/console?"))
    return redirect(target if safe else url_for("console.show_overview"), 303)


@blueprint.post("/jobs/act")
def change_jobs() -> Response:
    """Do one thing to the chosen jobs."""
    action, job_ids = request.form.get("action", ""), request.form.getlist("id")
    if action not in ACTIONS:
        raise InvalidRequest(f"action must be one of {', '.join(ACTIONS)}", param="action")
    if not job_ids:
        return go_back("Choose jobs first.")
    truncate: Truncate | None = "end" if request.form.get("truncate") == "end" else None
    changed, refused = act_on_jobs(services(), current_session().tenant, job_ids, action, truncate)
    jobs = "job" if changed == 1 else "jobs"
    said = [f"{changed} {jobs} {_DONE[action]}."] if changed else []
    return go_back(" ".join([*said, *(f"{reason[:1].upper()}{reason[1:]}." for reason in refused)]))


@blueprint.post("/workers/order")
def order_worker() -> Response:
    """Have a worker drain or restart."""
    worker_id, order = request.form.get("id", ""), request.form.get("order", "")
    if order not in {"drain", "restart"}:
        raise InvalidRequest("order must be drain or restart", param="order")
    known = services().fleet.order(worker_id, "drain" if order == "drain" else "restart")
    if known:
        _log.info("%s: %s of worker %s", current_session().tenant.actor, order, worker_id)
    done = "finishes what it holds and takes nothing new" if order == "drain" else "finishes what it holds and restarts"
    return go_back(f"{worker_id} {done}." if known else "There is no such worker any more.")
