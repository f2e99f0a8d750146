"""Engines with the fake backend, for the tests of the engine."""

from collections.abc import Iterator
from typing import Any

import pytest

from config.settings import Settings
from tests.support.engine_work import Build, submit
from tests.support.fakes import GatedBackend, fake_card, fake_model
from workers.engine import DeviceEngine


@pytest.fixture
def build() -> Iterator[Build]:
    """Make engines with the given settings and knobs; all are closed at the end."""
    engines: list[DeviceEngine] = []

    def make(*, knobs: dict[str, Any] | None = None, card: dict[str, Any] | None = None, **settings: Any):  # type: ignore[no-untyped-def]
        model = fake_model(fake_card(knobs=knobs or {}, **(card or {})))
        engines.append(DeviceEngine(Settings(_env_file=None, **settings), {"fake": model}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def gated() -> Iterator[tuple[DeviceEngine, GatedBackend]]:
    """An engine whose passes wait, the first of them already on the device."""
    model = fake_model(gated=True)
    backend = model.backend
    assert isinstance(backend, GatedBackend)
    # The wait at the gate is measured as a slow pass; it must not make the next ones smaller.
    settings = Settings(_env_file=None, max_batch_tokens=64, engine_max_tokens=20_000, p99_ms=120_000)
    with DeviceEngine(settings, {"fake": model}) as engine:
        plug = submit(engine, ["plug"])
        assert backend.entered.wait(10)
        yield engine, backend
        backend.gate.set()
        plug.result(10)
