"""What becomes of the models that workers were asked to serve: loading, ready or failed, and why.

Owns the reports of workers and a short cache of the reader, and the cards that workers have completed: the web tier
learns of a model that was named by ID or folder what it can do. Who is ready is `worker_registry`'s business.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import orjson
from pydantic import ValidationError
from redis import Redis, RedisError

from config.catalog import Catalog, ModelCard
from config.settings import Settings
from tasks import keys
from tasks.periodic import PeriodicThread
from tasks.presence.worker_registry import ReadyWorkersScript, WorkerHeartbeatScript
from tasks.scripts import command

__all__ = ["LearningCatalog", "ModelReport", "ModelReporter", "ModelReports", "ModelState"]

_log = logging.getLogger(__name__)

_PERIOD_S = 1.0
_CACHE_S = 0.5
# How long a completed card is believed, and how long one is looked for in vain before the next look.
_KNOWN_S, _UNKNOWN_S = 5.0, 0.5
_FOLDERS = re.compile(r"(?<![\w.])~?(?:/[^\s/:,;()]+)+/(?=[^\s/:,;()])")

ModelState = Literal["loading", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What a worker says of a model that it was asked to serve.

    Attributes:
        worker_id: unique among all workers.
        host: name of its machine.
        state: loading, ready, or failed: then it is served by others, if at all.
        reason: why it failed; folders are cut to their last part, since strangers may read it.
    """

    worker_id: str
    host: str
    state: ModelState
    reason: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", _FOLDERS.sub("", self.reason))


class ModelReporter:
    """Reports once a second, in a thread of its own.

    Args:
        redis: a client that gives up quickly.
        worker_id: unique among all workers.
        reports: called each time; reports by model slug.
        cards: likewise, the cards that were completed.
        settings: how long one report holds, and how long a job may want to know of its model.
    """

    def __init__(
        self,
        redis: Redis,
        worker_id: str,
        reports: Callable[[], Mapping[str, ModelReport]],
        cards: Callable[[], Sequence[ModelCard]],
        settings: Settings,
    ) -> None:
        self._redis = redis
        self._worker_id = worker_id
        self._reports, self._cards = reports, cards
        self._ttl_ms = int(settings.worker_ttl_s * 1000)
        # As long as there may be results of the model that somebody wants to read.
        self._card_ttl_s = int(settings.job_ttl_s + settings.file_ttl_s)
        self._thread = PeriodicThread(self.report, _PERIOD_S, "model-reporter")

    def start(self) -> None:
        """Report from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Withdraw and end the thread. Safe to call twice."""
        self._thread.stop(2 * _PERIOD_S + 1)
        try:
            for model in self._reports():
                self._redis.zrem(keys.model_reporters(model), self._worker_id)
                self._redis.hdel(keys.model_reports(model), self._worker_id)
        except RedisError:
            _log.debug("the reports stay until their expiry")

    def report(self) -> None:
        """Report now.

        Raises:
            redis.RedisError: the server does not answer.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for model, report in self._reports().items():
            names = keys.model_reporters(model), keys.model_reports(model)
            call = WorkerHeartbeatScript(*names, self._worker_id, self._ttl_ms, orjson.dumps(asdict(report)))
            pipeline.execute_command(*command(call))  # type: ignore[no-untyped-call]
        for card in self._cards():
            pipeline.set(keys.model_card(card.slug), card.model_dump_json(), ex=self._card_ttl_s)
        pipeline.execute()


class ModelReports:
    """Reads what workers report. Thread-safe; answers are at most half a second old."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._lock = threading.Lock()
        self._read: dict[str, tuple[float, list[ModelReport]]] = {}

    def of(self, model: str) -> list[ModelReport]:
        """Return the reports of the model (a slug); none where the server does not answer, which others notice."""
        with self._lock:
            at_s, reports = self._read.get(model, (float("-inf"), []))
            if time.monotonic() - at_s > _CACHE_S:
                reports = self._ask(model)
                self._read[model] = time.monotonic(), reports
            return reports

    def failures(self, model: str) -> list[ModelReport]:
        """Return the reports of workers that cannot serve the model."""
        return [report for report in self.of(model) if report.state == "failed"]

    def given_up(self, model: str) -> bool:
        """Return whether workers tried the model, and none of them serves or loads it."""
        reports = self.of(model)
        return bool(reports) and all(report.state == "failed" for report in reports)

    def _ask(self, model: str) -> list[ModelReport]:
        names = [keys.model_reporters(model), keys.model_reports(model)]
        try:
            (lines,) = self._redis.execute_command(*command(ReadyWorkersScript(names)))  # type: ignore[no-untyped-call]
        except RedisError:
            return []
        return [ModelReport(**orjson.loads(line)) for line in lines]


class LearningCatalog(Catalog):
    """A catalogue whose short cards are completed by what workers have read from the models' folders. Thread-safe."""

    def __init__(self, known: Catalog, redis: Redis) -> None:
        super().__init__(known, any_dimensions=known.any_dimensions)
        # What the operator named, with the names under which it was named.
        self._by_name, self.served = known.by_name, known.served
        self._redis = redis
        self._learned: dict[str, tuple[float, ModelCard]] = {}

    def __iter__(self) -> Iterator[ModelCard]:
        return (self._complete(card) for card in super().__iter__())

    def find(self, name: str) -> ModelCard | None:
        """Return the card of that name or alias, completed if any worker has seen its folder; None: there is none."""
        card = super().find(name)
        return None if card is None else self._complete(card)

    def _complete(self, card: ModelCard) -> ModelCard:
        if card.complete:
            return card
        until_s, learned = self._learned.get(card.slug, (float("-inf"), card))
        if time.monotonic() > until_s:
            learned = self._ask(card)
            hold_s = _KNOWN_S if learned.complete else _UNKNOWN_S
            self._learned[card.slug] = time.monotonic() + hold_s, learned
        return learned

    def _ask(self, card: ModelCard) -> ModelCard:
        try:
            line = self._redis.get(keys.model_card(card.slug))
            learned = ModelCard.model_validate_json(line) if line else card
        except (RedisError, ValidationError) as error:
            _log.debug("nothing was learned of %s: %s", card.name, error)
            return card
        # Another model may have had the name before.
        same = (learned.name, learned.source) == (card.name, card.source)
        return self.apply_policy(learned) if same else card
