"""The target of WSGI servers: a factory, called once in each web process."""

from flask import Flask

from app import create_app
from config.settings import Settings

__all__ = ["create"]


def create() -> Flask:
    """Return the app with settings from the environment."""
    return create_app(Settings())
