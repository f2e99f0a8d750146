"""Calls from web pages of other origins (CORS), by flask-cors. Off unless origins are set.

Owns what such pages may send and read. A preflight brings no key, see `app.access.auth`.
"""

from flask import Flask

__all__ = ["install_cors"]

_EXPOSED = ("Location", "Retry-After", "ETag", "x-request-id", "x-model-fingerprint", "x-truncated-items")
_PREFLIGHT_KEPT_S = 7200


def install_cors(app: Flask, origins: str) -> None:
    """Let pages of these origins, with commas between them, call this app. Cookies are never asked for."""
    # A server without browsers in front starts without it.
    from flask_cors import CORS  # noqa: PLC0415

    allowed = [origin.strip() for origin in origins.split(",") if origin.strip()]
    CORS(app, origins=allowed, expose_headers=list(_EXPOSED), max_age=_PREFLIGHT_KEPT_S)
