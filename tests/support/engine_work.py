"""Small pieces that the tests of the engine share."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tasks.engine import Outcomes, Work
from tasks.lanes import Service
from tests.support.fakes import GatedBackend
from workers.engine import DeviceEngine

__all__ = ["Build", "first_words", "submit"]

Build = Callable[..., DeviceEngine]


def submit(engine: DeviceEngine, texts: list[str], service: Service = Service.BULK, **more: Any) -> Future[Outcomes]:
    return engine.submit(Work("fake", more.pop("operation", "embeddings"), texts, service=service, **more))


def first_words(backend: GatedBackend) -> list[tuple[int, int]]:
    """Return (rows, longest row) of each pass."""
    return [(len(rows), max(map(len, rows))) for rows in backend.passes]
