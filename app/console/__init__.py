"""The operator's console at `/console`: pages made here from templates, kept live by htmx; no build."""

from flask import Flask

from app.access.auth import Authenticator
from app.access.sessions import Sessions
from app.console import actions as _actions  # noqa: F401 - registers its routes
from app.console import console_pages as _console_pages  # noqa: F401 - likewise
from app.console import key_pages as _key_pages  # noqa: F401 - likewise
from app.console import model_pages as _model_pages  # noqa: F401 - likewise
from app.console import sign_in as _sign_in  # noqa: F401 - likewise
from app.console.session_guard import SESSIONS, blueprint
from app.services import Services

__all__ = ["install_console"]


def install_console(app: Flask, live: Services, authenticator: Authenticator) -> None:
    """Add the console to the app."""
    app.extensions[SESSIONS] = Sessions(live.redis, authenticator)
    app.register_blueprint(blueprint)
