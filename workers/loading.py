"""Which models are in this worker's memory, and how they come and go: one model's failure leaves the others.

Owns loading, unloading and swapping while others are served, the memory that models may take and who leaves first when
it is short. When that happens is decided elsewhere (`workers.boot`, `workers.model_control`). Imports device libraries
late, since importing this module must not start their threads. One thread at a time calls it.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

from config.catalog import ModelCard
from config.settings import Settings
from tasks.errors import ConfigError, OutOfMemory, WorkError
from tasks.presence.model_states import ModelReport
from workers.reporting import ModelReporting

if TYPE_CHECKING:
    from workers.engine import DeviceEngine

__all__ = ["Lanes", "LoadedModels", "ModelSet"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

# How long rows that wait for a model which leaves may take; then they are given back.
_DRAIN_S = 30.0
_KEPT = "the reload failed and the model before goes on serving"
_GONE = "the reload failed, and there was no memory to keep the model before beside it"


class Lanes(Protocol):
    """What a worker takes work from."""

    def open(self, card: ModelCard) -> None:
        """Take work for a model that was loaded, and announce it."""
        ...

    def close(self, card: ModelCard, *, refuse: bool) -> None:
        """Take no more work for a model; `refuse` new calls too, or let them wait for it in their list."""
        ...


class ModelSet:
    """The models that this worker is set up for, and those of them that it has loaded.

    Args:
        settings: the memory that they may take together, and how long an idle one stays.
        engine: runs what is loaded.
        lanes: opened and closed accordingly.
        reports: what becomes of each model.
    """

    def __init__(self, settings: Settings, engine: "DeviceEngine", lanes: Lanes, reports: ModelReporting) -> None:
        self._settings, self._engine, self._lanes, self._reports = settings, engine, lanes, reports
        self._cards: dict[str, ModelCard] = {}
        # What each loaded model takes.
        self._bytes: dict[str, int] = {}

    @property
    def cards(self) -> Iterable[ModelCard]:
        """The models that this worker is set up for."""
        return tuple(self._cards.values())

    @property
    def loaded(self) -> list[str]:
        """The names of those that are loaded."""
        return list(self._bytes)

    def add(self, card: ModelCard, *, named: bool = False) -> None:
        """Set a model up, `named` in the settings or by an order; it is not loaded by that."""
        pinned = {name.lower() for name in self._settings.pinned_models}
        names = {name.lower() for name in (card.name, *card.aliases)}
        if card.name not in self._cards:
            self._cards[card.name] = card
            self._reports.add(card, pinned=("all" in pinned and named) or not pinned.isdisjoint(names))

    def state(self, name: str) -> ModelReport:
        """Return what is reported of a model."""
        return self._reports.of(name)

    def start(self, names: Iterable[str]) -> None:
        """Load these at the worker's start, as far as memory allows; what is pinned first.

        Raises:
            ConfigError: no model can be served, and another start would end the same way.
            WorkError: no model can be served; a later start may go better.
        """
        errors: list[Exception] = []
        for name in sorted(names, key=lambda name: not self.state(name).pinned):
            try:
                self._load(self._cards[name], self._require_room)
            except OutOfMemory as error:
                if not self.state(name).pinned:
                    self._reports.note(name, state="unloaded", step="", reason=error.message)
                    continue
                errors.append(self._fail(name, error))
            except Exception as error:  # noqa: BLE001 - the edge of one model; the next one may be good
                errors.append(self._fail(name, error))
        if errors and not self._bytes:
            reasons = "; ".join(map(_describe, errors))
            raise (
                ConfigError(reasons)
                if all(isinstance(one, ConfigError | OutOfMemory) for one in errors)
                else WorkError(reasons)
            )

    def load(self, name: str) -> None:
        """Load a model, in place of idle ones where memory is short; what goes wrong is reported and logged."""
        if name in self._bytes:
            return
        try:
            self._load(self._cards[name], self._make_room)
        except Exception as error:  # noqa: BLE001 - the edge of one model
            self._fail(name, error)

    def unload(self, name: str, reason: str) -> None:
        """Take no more work for a model, finish what there is, and free its memory."""
        if name in self._bytes:
            self._reports.note(name, step="draining", reason=reason)
            self._lanes.close(self._cards[name], refuse=True)
            self._remove(name)
            _log.info("%s is unloaded: %s", name, reason)
        self._reports.note(name, state="unloaded", step="", reason=reason)

    def reload(self, name: str) -> None:
        """Load a model anew and let it take the place of the one that serves; no request fails by it.

        The new one is loaded beside the old, which serves on. Where memory does not allow that, requests wait.
        """
        if name not in self._bytes:
            self.load(name)
            return
        card, before = self._cards[name], "beside"
        try:
            weights = self._fetch(card)
            if self._room() < weights or not self._swap(card, weights):
                before = "gone"
                self._replace(card, weights)
            self._reports.note(name, step="", reason="")
        except Exception as error:  # noqa: BLE001 - the edge of one model
            if before == "gone":
                self._fail(name, error, _GONE)
            else:
                _log.error("%s: %s: %s", name, _KEPT, _describe(error))
                self._reports.note(name, step="", reason=f"{_KEPT}: {_describe(error)}")

    def drop_idle(self) -> None:
        """Unload what nobody has used for long."""
        limit_s = self._settings.model_idle_s
        for name in self._evictable("") if limit_s else []:
            if self._engine.idle_s(name) >= limit_s:
                self.unload(name, f"no work came for {limit_s:.0f} s")

    # -- inside

    def _load(self, card: ModelCard, make_room: Callable[[str, int], None]) -> None:
        _log.info("loading %s", card.name)
        self._reports.note(card.name, state="loading", step="fetching", reason="")
        weights = self._fetch(card)
        make_room(card.name, weights)
        self._install(card, weights)
        try:
            # What it takes is known only now.
            make_room(card.name, 0)
        except OutOfMemory:
            self._remove(card.name)
            raise
        self._reports.note(card.name, state="ready", step="", memory_bytes=self._bytes[card.name])
        self._lanes.open(card)

    def _fetch(self, card: ModelCard) -> int:
        """Have the model's folder on disk; return the bytes of its weights."""
        if card.family == "fake":
            return int(card.knobs.get("memory_bytes", 0))
        from workers.models.downloads.fetch import fetch  # noqa: PLC0415 - see above
        from workers.models.folders.recognise import recognise  # noqa: PLC0415
        from workers.models.memory import weight_bytes  # noqa: PLC0415

        self._reports.note(card.name, step="fetching")
        folder = fetch(card, self._settings, lambda share: self._reports.note(card.name, progress=share))
        self._reports.note(card.name, progress=None)
        # Costs milliseconds, and a folder that cannot be served costs no other model its place.
        self._reports.complete(recognise(card, folder).card)
        return weight_bytes(folder)

    def _install(self, card: ModelCard, weights: int) -> None:
        """Load the model, prove it, and let it serve; what served its name ends its rows and is gone."""
        from workers.models.memory import MemoryGauge, release_memory  # noqa: PLC0415 - see above
        from workers.models.registry import load_model  # noqa: PLC0415

        started_s = time.monotonic()
        self._reports.note(card.name, step="loading")
        gauge = MemoryGauge()
        model = load_model(card, self._settings)
        self._reports.note(card.name, step="warming up")
        before = self._engine.add(model)
        taken, took_s = gauge.measure(model.backend, weights), time.monotonic() - started_s
        self._bytes[card.name] = taken
        self._reports.complete(model.card)
        self._reports.note(card.name, step="", memory_bytes=taken, load_s=round(took_s, 1))
        _log.info("loaded and warmed %s in %.1f s, %.0f MB", card.name, took_s, taken / 1e6)
        if before is not None:
            self._reports.note(card.name, step="draining")
            self._engine.retire(before, _DRAIN_S)
            del before
            release_memory()

    def _swap(self, card: ModelCard, weights: int) -> bool:
        """Load the model beside the one that serves; False: the device has no room for both."""
        try:
            self._install(card, weights)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            _log.warning("%s: no room beside the one that serves: %s", card.name, _describe(error))
            return False
        return True

    def _replace(self, card: ModelCard, weights: int) -> None:
        """Load the model when the one before has ended its rows and is gone; calls wait in their list."""
        self._reports.note(card.name, step="draining")
        self._lanes.close(card, refuse=False)
        self._remove(card.name)
        try:
            self._install(card, weights)
        except BaseException:
            self._lanes.close(card, refuse=True)
            raise
        self._lanes.open(card)

    def _remove(self, name: str) -> None:
        from workers.models.memory import release_memory  # noqa: PLC0415 - see above

        self._engine.retire(self._engine.remove(name), _DRAIN_S)
        del self._bytes[name]
        self._reports.note(name, memory_bytes=0)
        release_memory()

    def _room(self) -> float:
        limit = self._settings.model_memory
        return limit - sum(self._bytes.values()) if limit else float("inf")

    def _require_room(self, name: str, need: int) -> None:
        if self._room() < need:
            raise self._no_room(name, need)

    def _make_room(self, name: str, need: int) -> None:
        """Unload what is not pinned and was not used for longest, until there is room."""
        leaving = self._evictable(name)
        if self._room() + sum(self._bytes[one] for one in leaving) < need:
            raise self._no_room(name, need)
        while self._room() < need:
            self.unload(leaving.pop(0), f"it made room for {name}")

    def _evictable(self, name: str) -> list[str]:
        """Return the loaded models but this one that are not pinned, the least recently used first."""
        loose = [one for one in self._bytes if one != name and not self.state(one).pinned]
        return sorted(loose, key=self._engine.idle_s, reverse=True)

    def _no_room(self, name: str, need: int) -> OutOfMemory:
        need = need or self._bytes.get(name, 0)
        others = ", ".join(one for one in self._bytes if one != name) or "no other model"
        limit = f"TWOLANE_MODEL_MEMORY is {_megabytes(self._settings.model_memory)}"
        return OutOfMemory(f"{name} takes {_megabytes(need)}: {limit}, and {others} stays loaded")

    def _fail(self, name: str, error: Exception, why: str = "") -> Exception:
        reason = f"{why}: {_describe(error)}" if why else _describe(error)
        _log.error("%s is not served: %s", name, reason)
        self._reports.note(name, state="failed", step="", reason=reason)
        return error


class LoadedModels:
    """What is loaded now, as mappings that follow it: by name of the card, or by its slug."""

    def __init__(self, models: ModelSet, engine: "DeviceEngine") -> None:
        def names() -> Iterable[str]:
            return models.loaded

        def name_of(slug: str) -> str:
            return next((card.name for card in models.cards if card.slug == slug), "")

        def fingerprint(name: str) -> str | None:
            loaded = engine.loaded(name)
            return None if loaded is None else loaded.fingerprint

        def dimension(name: str) -> int | None:
            loaded = engine.loaded(name)
            return None if loaded is None else loaded.backend.dimension or 0

        self.fingerprints: Mapping[str, str] = _LiveMapping(fingerprint, names)
        self.fingerprints_by_slug: Mapping[str, str] = _LiveMapping(lambda slug: fingerprint(name_of(slug)), names)
        self.dimensions: Mapping[str, int] = _LiveMapping(dimension, names)


class _LiveMapping(Mapping[str, T]):
    """A mapping whose values are looked up each time."""

    def __init__(self, look_up: Callable[[str], T | None], names: Callable[[], Iterable[str]]) -> None:
        self._look_up, self._names = look_up, names

    def __getitem__(self, name: str) -> T:
        found = self._look_up(name)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(list(self._names()))


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether a device or the system refused memory, by whatever library's error."""
    chain = [error, error.__cause__, error.__context__]
    return any(isinstance(one, OutOfMemory | MemoryError) or type(one).__name__ == "OutOfMemoryError" for one in chain)
