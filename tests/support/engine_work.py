"""Small pieces that the tests of the engine share."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from tasks.engine import JobParams, Outcomes, Work
from tasks.lanes import Service
from tests.support.fakes import GatedBackend
from workers.engine import DeviceEngine

__all__ = ["Build", "first_words", "submit"]

Build = Callable[..., DeviceEngine]


def submit(engine: DeviceEngine, texts: list[str], service: Service = Service.BULK, **more: Any) -> Future[Outcomes]:
    own = {name: more.pop(name) for name in ("operation", "queries", "deadline_s") if name in more}
    work = Work("fake", "embeddings", texts, service=service, params=JobParams(**more))
    return engine.submit(replace(work, **own))


def first_words(backend: GatedBackend) -> list[tuple[int, int]]:
    """Return (rows, longest row) of each pass."""
    return [(len(rows), max(map(len, rows))) for rows in backend.passes]
