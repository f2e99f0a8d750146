"""What a worker says of the models that it was asked to serve, from its start on.

Owns the state of each model between loading and ready or failed. How reports travel: `tasks.presence.model_states`.
"""

import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from redis import Redis, RedisError

from config.catalog import ModelCard
from config.settings import Settings
from tasks.presence.model_states import ModelReport, ModelReporter, ModelState

if TYPE_CHECKING:
    from workers.models.loaded import LoadedModel

__all__ = ["ModelReporting"]


class ModelReporting:
    """Reports the state of each card's model: once at each change, and from `start()` on every second."""

    def __init__(self, redis: Redis, worker_id: str, cards: Sequence[ModelCard], settings: Settings) -> None:
        self._worker_id = worker_id
        self._cards = {card.name: card for card in cards}
        self._states = {card.name: self._describe("loading") for card in cards}
        self._well_models: Callable[[], Collection[str]] = lambda: self._cards
        self._complete: Sequence[ModelCard] = ()
        self._reporter = ModelReporter(redis, worker_id, self._reports, lambda: self._complete, settings)
        self._report_now()

    def fail(self, name: str, reason: str) -> None:
        """Note that a model cannot be served."""
        self._states[name] = self._describe("failed", reason)
        self._report_now()

    def complete(self, models: "Mapping[str, LoadedModel]") -> None:
        """Note which models are served; their cards say all that the web tier has to know."""
        for name in models:
            self._states[name] = self._describe("ready")
        self._complete = [model.card for model in models.values()]
        self._report_now()

    def failed_cards(self) -> list[ModelCard]:
        """Return the cards of the models that are not served."""
        return [self._cards[name] for name, report in self._states.items() if report.state == "failed"]

    def start(self, well_models: Callable[[], Collection[str]]) -> None:
        """Report regularly from now on; of the models that are served, those that make no vectors have failed."""
        self._well_models = well_models
        self._reporter.start()

    def stop(self) -> None:
        """Withdraw all reports. Safe to call twice."""
        self._reporter.stop()

    def states(self) -> dict[str, str]:
        """Return the state of each model, by slug."""
        return {slug: report.state for slug, report in self._reports().items()}

    def _describe(self, state: ModelState, reason: str = "") -> ModelReport:
        return ModelReport(self._worker_id, socket.gethostname(), state, reason)

    def _reports(self) -> Mapping[str, ModelReport]:
        well = self._well_models()
        failing = self._describe("failed", "its last passes gave no vector; it is tried again every second")
        return {
            self._cards[name].slug: failing if report.state == "ready" and name not in well else report
            for name, report in self._states.items()
        }

    def _report_now(self) -> None:
        # A server that does not answer yet must not keep a worker from loading; the next report tells the same.
        with suppress(RedisError):
            self._reporter.report()
