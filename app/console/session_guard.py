"""What stands before every page of the console: the session, the policy of the browser, the proof that a form is ours.

Owns the blueprint with its cookie, headers and errors. Sessions themselves are `app.access.sessions`.
"""

from typing import cast

from flask import Blueprint, Response, current_app, g, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as BaseResponse

from app.access.sessions import SESSION_S, Session, Sessions
from app.console.formatting import FILTERS
from app.http.errors import status_of
from app.http.places import SMALL_BODY_BYTES
from app.http.request_ids import current_request_id
from app.services import services
from tasks.errors import PermissionDenied, TwolaneError
from tasks.jobs.origin import Origin, set_origin

__all__ = ["COOKIE", "SESSIONS", "blueprint", "current_session", "give_cookie", "render", "sessions"]

# Under this name the app's extensions have the sessions, and a page its session.
SESSIONS = "twolane-sessions"
COOKIE = "twolane_console"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_OPEN = frozenset({"console.static", "console.show_sign_in", "console.sign_in"})

_NAVIGATION = (
    ("console.show_overview", "Overview"),
    ("console.show_jobs", "Jobs"),
    ("console.show_workers", "Workers"),
    ("console.show_models", "Models"),
    ("console.show_keys", "Keys"),
    ("console.show_trial", "Try"),
)

blueprint = Blueprint("console", __name__, url_prefix="/console", template_folder="templates", static_folder="static")


def sessions() -> Sessions:
    """Return the sessions of this app."""
    return cast("Sessions", current_app.extensions[SESSIONS])


def current_session() -> Session:
    """Return the session of the request in progress; there is one on every page but the sign-in."""
    return cast("Session", g.console_session)


def give_cookie(response: BaseResponse, session: Session) -> None:
    """Let the browser keep the session: out of reach of scripts, and sent with our own pages' requests only."""
    secure = request.is_secure or request.headers.get("X-Forwarded-Proto") == "https"
    response.set_cookie(
        COOKIE, session.token, max_age=SESSION_S, path="/console", httponly=True, samesite="Strict", secure=secure
    )


def render(template: str, **values: object) -> str:
    """Return a page; what the last action had to say is on it, unless it only refreshes itself."""
    session = current_session()
    refreshes = request.headers.get("HX-Trigger") == "live"
    message = "" if refreshes else sessions().take_message(session)
    return render_template(f"console/{template}", session=session, message=message, **_frame(), **values)


def _frame() -> dict[str, object]:
    return {"here": request.endpoint, "flower_url": services().settings.flower_url}


@blueprint.before_request
def _require_session() -> BaseResponse | None:
    # No form of ours is larger, and nobody need be signed in to send one.
    request.max_content_length = SMALL_BODY_BYTES
    if request.endpoint in _OPEN:
        return None
    found = sessions().find(request.cookies.get(COOKIE, ""))
    if found is None:
        return _send_to_sign_in()
    g.console_session, g.tenant = found, found.tenant
    set_origin(Origin(found.tenant.actor, current_request_id()))
    if request.method not in {"GET", "HEAD"}:
        found.check_csrf(request.headers.get("X-CSRF-Token") or request.form.get("csrf", ""))
        if found.tenant.read_only and request.endpoint != "console.sign_out":
            raise PermissionDenied("This key has `read_only = true`: it may look and not change.")
    return None


@blueprint.context_processor
def _name_pages() -> dict[str, object]:
    return {"NAVIGATION": _NAVIGATION}


@blueprint.after_request
def _secure(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["X-Frame-Options"] = "DENY"
    if request.endpoint != "console.static":
        response.headers["Cache-Control"] = "no-store"
    return response


@blueprint.errorhandler(TwolaneError)
def _show_error(error: TwolaneError) -> tuple[str, int]:
    page = render_template("console/error.html", message=error.message, session=g.get("console_session"), here="")
    return page, status_of(type(error))


def _send_to_sign_in() -> BaseResponse:
    target = url_for("console.show_sign_in")
    if "HX-Request" in request.headers:
        # A redirect would put the sign-in into the place of a table.
        return Response(status=204, headers={"HX-Redirect": target})
    return redirect(target)


for _name, _filter in FILTERS.items():
    blueprint.add_app_template_filter(_filter, _name)
