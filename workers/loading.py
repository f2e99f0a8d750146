"""From cards to an engine that serves what can be served: one model's failure leaves the others.

Owns the order of loading and warming up, and which error ends a worker: only the one after which no model is left.
Imports device libraries late, since importing this module must not start their threads.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from config.catalog import ModelCard
from config.settings import Settings
from tasks.errors import ConfigError, WorkError

if TYPE_CHECKING:
    from workers.engine import DeviceEngine
    from workers.models.loaded import LoadedModel

__all__ = ["Loaded", "load_and_warm"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a worker serves.

    Attributes:
        models: by card name, as the engine has them; at least one.
        engine: running.
        failures: why the others cannot be served, by card name.
    """

    models: "Mapping[str, LoadedModel]"
    engine: "DeviceEngine"
    failures: Mapping[str, str] = field(default_factory=dict)


def load_and_warm(
    cards: Sequence[ModelCard], settings: Settings, on_failure: Callable[[str, str], None] = lambda *_: None
) -> Loaded:
    """Load each model, prove it, and warm up the engine.

    Args:
        cards: what is to be served.
        settings: of this worker.
        on_failure: called with card name and reason as soon as a model turns out to be bad.

    Raises:
        ConfigError: no model can be served, and another start would end the same way.
        WorkError: no model can be served; a later start may go better.
    """
    started_s = time.monotonic()
    failures: dict[str, str] = {}
    transient = False

    def fail(name: str, error: BaseException) -> None:
        nonlocal transient
        transient = transient or not isinstance(error, ConfigError)
        failures[name] = str(error) or type(error).__name__
        _log.error("%s is not served: %s", name, failures[name])
        on_failure(name, failures[name])

    _log.info("loading %s", ", ".join(card.name for card in cards))
    models = _load(cards, settings, fail)
    loaded_s = time.monotonic()
    engine = _warm_up(models, settings, fail)
    if engine is None:
        reasons = "; ".join(failures.values())
        raise WorkError(reasons) if transient else ConfigError(reasons)
    now_s = time.monotonic()
    names = ", ".join(models)
    _log.info("loaded and warmed %s in %.1f s (warm-up %.1f s)", names, now_s - started_s, now_s - loaded_s)
    return Loaded(models, engine, failures)


def _load(
    cards: Sequence[ModelCard], settings: Settings, fail: Callable[[str, BaseException], None]
) -> "dict[str, LoadedModel]":
    from workers.models.registry import load_model  # noqa: PLC0415 - see above

    models = {}
    for card in cards:
        try:
            models[card.name] = load_model(card, settings)
        except Exception as error:  # noqa: BLE001 - the edge of one model; the next one may be good
            fail(card.name, error)
    return models


def _warm_up(
    models: "dict[str, LoadedModel]", settings: Settings, fail: Callable[[str, BaseException], None]
) -> "DeviceEngine | None":
    """Start the engine without the models that cannot make a vector in it; None: none can."""
    from workers.engine import DeviceEngine  # noqa: PLC0415 - see above

    while models:
        engine = DeviceEngine(settings, models)
        failed = engine.warm_up()
        if not failed:
            return engine
        engine.close()
        for name, error in failed.items():
            fail(name, error)
            del models[name]
    return None
