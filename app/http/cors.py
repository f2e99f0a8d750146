"""Calls from web pages of other origins (CORS), by flask-cors. Off unless origins are set.

Owns what such pages may send and read. A preflight brings no key, see `app.access.auth`.
"""

from collections.abc import Sequence

from flask import Flask

__all__ = ["install_cors"]

_EXPOSED = ("Location", "Retry-After", "ETag", "x-request-id", "x-model-fingerprint", "x-truncated-items")
_PREFLIGHT_KEPT_S = 7200


def install_cors(app: Flask, origins: Sequence[str]) -> None:
    """Let pages of these origins call this app. Cookies are never asked for."""
    # A server without browsers in front starts without it.
    from flask_cors import CORS  # noqa: PLC0415

    CORS(app, origins=list(origins), expose_headers=list(_EXPOSED), max_age=_PREFLIGHT_KEPT_S)
