"""What a worker says of the models that it is set up for, from its start on.

Owns the state of each model in this worker. How reports travel: `tasks.presence.model_states`.
"""

import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from redis import Redis, RedisError

from config.catalog import ModelCard
from config.settings import Settings
from tasks.presence.model_orders import stable_name
from tasks.presence.model_states import ModelReport, ModelReporter

__all__ = ["ModelReporting"]

_FAILING = "its last passes gave no vector; it is tried again every second"


class ModelReporting:
    """Reports the state of each card's model: once at each change, and from `start()` on every second. Thread-safe.

    Attributes:
        worker: the name that this worker keeps over restarts.
    """

    def __init__(self, redis: Redis, worker_id: str, settings: Settings) -> None:
        self.worker = stable_name(worker_id)
        self._worker_id = worker_id
        self._lock = threading.Lock()
        self._cards: dict[str, ModelCard] = {}
        self._complete: dict[str, ModelCard] = {}
        self._states: dict[str, ModelReport] = {}
        self._since_s: dict[str, float] = {}
        self._well_models: Callable[[], Collection[str]] = lambda: self._cards
        self._idle_s: Callable[[str], float] = lambda _: 0.0
        self._reporter = ModelReporter(redis, worker_id, self._reports, self._complete_cards, settings)
        # Loading takes longer than a report holds.
        self._reporter.start()

    def add(self, card: ModelCard, *, pinned: bool) -> None:
        """Report on a model from now on; it is not loaded."""
        with self._lock:
            self._cards[card.name] = card
            state = ModelReport(self._worker_id, socket.gethostname(), "unloaded", worker=self.worker, pinned=pinned)
            self._states[card.name], self._since_s[card.name] = state, time.monotonic()

    def note(self, name: str, **changes: Any) -> None:
        """Note what has changed of a model, fields of `ModelReport`, and report it."""
        with self._lock:
            before = self._states[name]
            if changes.get("state", before.state) != before.state:
                self._since_s[name] = time.monotonic()
            # A step that is new has its own progress.
            fresh = {"progress": None} if "step" in changes else {}
            self._states[name] = replace(before, **{**fresh, **changes})
        # A server that does not answer yet must not keep a worker from loading; the next report tells the same.
        with suppress(RedisError):
            self._reporter.report()

    def complete(self, card: ModelCard) -> None:
        """Note what the model's folder says of it: what the web tier has to know."""
        with self._lock:
            self._complete[card.name] = card

    def of(self, name: str) -> ModelReport:
        """Return what was noted of a model, and for how long it has been in its state."""
        with self._lock:
            return replace(self._states[name], since_s=time.monotonic() - self._since_s[name])

    def start(self, well_models: Callable[[], Collection[str]], idle_s: Callable[[str], float]) -> None:
        """Report from now on what the engine knows.

        Args:
            well_models: of the models that are served, those that make vectors; the others have failed.
            idle_s: how long no work came for a model.
        """
        self._well_models, self._idle_s = well_models, idle_s

    def stop(self) -> None:
        """Withdraw all reports. Safe to call twice."""
        self._reporter.stop()

    def states(self) -> dict[str, str]:
        """Return the state of each model, by slug."""
        return {slug: report.state for slug, report in self._reports().items()}

    def _reports(self) -> Mapping[str, ModelReport]:
        well = self._well_models()
        with self._lock:
            return {self._cards[name].slug: self._show(name, report, well) for name, report in self._states.items()}

    def _show(self, name: str, report: ModelReport, well: Collection[str]) -> ModelReport:
        since_s = time.monotonic() - self._since_s[name]
        if report.state != "ready":
            return replace(report, since_s=since_s)
        if name not in well:
            return replace(report, since_s=since_s, state="failed", reason=_FAILING)
        return replace(report, since_s=since_s, idle_s=self._idle_s(name))

    def _complete_cards(self) -> list[ModelCard]:
        with self._lock:
            return list(self._complete.values())
