"""Pages for people: a landing page and the API's documentation, which works offline.

Owns the two pages. The documentation's scripts come out of an installed wheel; nothing is loaded from elsewhere, and
the page's policy forbids it.
"""

import importlib.util
from pathlib import Path
from typing import cast

from flask import Blueprint, Response, current_app, render_template, send_from_directory, url_for
from flask_openapi3.openapi import OpenAPI

from app.http.responses import json_response
from app.services import services

__all__ = ["blueprint"]

blueprint = Blueprint("pages", __name__)

_PAGE_POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


def _secure(response: Response) -> Response:
    """Put the headers on a page that keep it from being framed or from loading anything foreign."""
    response.headers["Content-Security-Policy"] = _PAGE_POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Frame-Options"] = "DENY"
    return response


@blueprint.get("/")
def show_landing_page() -> Response:
    """Show what is where."""
    settings = services().settings
    return _secure(Response(render_template("landing.html", models=settings.models), mimetype="text/html"))


@blueprint.get("/docs")
def show_docs() -> Response:
    """Show the API with Swagger UI."""
    page = render_template(
        "docs.html",
        spec_url=url_for("pages.show_openapi"),
        assets_url=url_for("pages.send_docs_asset", name=""),
    )
    return _secure(Response(page, mimetype="text/html"))


@blueprint.get("/docs/assets/<path:name>")
def send_docs_asset(name: str) -> Response:
    """Send one of Swagger UI's files out of its wheel."""
    return send_from_directory(_assets_folder(), name, max_age=86_400)


@blueprint.get("/openapi.json")
def show_openapi() -> Response:
    """Show the OpenAPI text, which is made from the code."""
    return json_response(cast("OpenAPI", current_app).api_doc)


def _assets_folder() -> Path:
    # Not imported: its folder is all that is needed.
    spec = importlib.util.find_spec("flask_openapi3_swagger")
    (folder,) = spec.submodule_search_locations if spec and spec.submodule_search_locations else ("",)
    return Path(folder) / "templates" / "swagger"
