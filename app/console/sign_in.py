"""Signing in with an admin's key, and out."""

import logging

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from app.console.session_guard import COOKIE, blueprint, current_session, give_cookie, sessions
from app.http.errors import status_of
from tasks.errors import AuthenticationError, PermissionDenied

_log = logging.getLogger(__name__)
# A key of ours has some fifty characters.
_LONGEST_KEY = 500


@blueprint.get("/sign-in")
def show_sign_in() -> str | Response:
    """Show the sign-in; where there are no keys, go on at once."""
    if sessions().needs_key:
        return render_template("console/sign_in.html", problem="")
    return _enter("")


@blueprint.post("/sign-in")
def sign_in() -> str | Response | tuple[str, int]:
    """Begin a session with the key that was typed."""
    # Strict cookies keep other sites from using a session; this keeps them from starting one.
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
        return "This form is not from this site.", 403
    try:
        return _enter(request.form.get("key", "")[:_LONGEST_KEY].strip())
    except (AuthenticationError, PermissionDenied) as error:
        _log.warning("a sign-in to the console was refused: %s", type(error).__name__)
        return render_template("console/sign_in.html", problem=error.message), status_of(type(error))


def _enter(secret: str) -> Response:
    session = sessions().begin(secret)
    _log.info("%s signed in to the console", session.tenant.actor)
    response = redirect(url_for("console.show_overview"))
    give_cookie(response, session)
    return response


@blueprint.post("/sign-out")
def sign_out() -> Response:
    """End the session."""
    session = current_session()
    sessions().end(session)
    _log.info("%s signed out of the console", session.tenant.actor)
    response = redirect(url_for("console.show_sign_in"))
    response.delete_cookie(COOKIE, path="/console")
    return response
