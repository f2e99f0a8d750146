"""What becomes of the models that workers are set up for: unloaded, loading, ready or failed, and why.

Owns the reports of workers and a short cache of the reader, and the cards that workers have completed: the web tier
learns of a model that was named by ID or folder what it can do. `worker_registry` knows who is ready, `model_orders`
what an admin asked for.
"""

import logging
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

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
# How long the sign holds that somebody wants a model.
_WANTED_S = 5
_FOLDERS = re.compile(r"(?<![\w.])~?(?:/[^\s/:,;()]+)+/(?=[^\s/:,;()])")

ModelState = Literal["unloaded", "loading", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What a worker says of a model that it is set up for.

    Attributes:
        worker_id: unique among all workers.
        host: name of its machine.
        state: ready; or, while others may serve it: unloaded, loading, failed.
        reason: why it failed or was unloaded, or why it could not be reloaded; folders are cut to their last part,
            since strangers may read it.
        worker: the name that it keeps over restarts: its device and machine.
        step: what is done with it now; empty: nothing.
        progress: how much of the step is done, from 0 to 1; None: not known.
        order: the last order of an admin that was followed, see `model_orders`; 0: none.
        memory_bytes: what it takes, weights and working memory, as measured when it was loaded; 0 unless loaded.
        pinned: whether it is unloaded on an admin's order only.
        idle_s: how long no work has come for it.
        load_s: how long it took to load, here and last; 0: not known.
        since_s: how long it has been in this state.
    """

    worker_id: str
    host: str
    state: ModelState
    reason: str = ""
    worker: str = ""
    step: str = ""
    progress: float | None = None
    order: int = 0
    memory_bytes: int = 0
    pinned: bool = False
    idle_s: float = 0.0
    load_s: float = 0.0
    since_s: float = 0.0

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
            self._redis.zrem(keys.model_reporters(), self._worker_id)
            self._redis.hdel(keys.model_reports(), self._worker_id)
        except RedisError:
            _log.debug("the reports stay until their expiry")

    def report(self) -> None:
        """Report now.

        Raises:
            redis.RedisError: the server does not answer.
        """
        pipeline = self._redis.pipeline(transaction=False)
        reports = orjson.dumps({model: asdict(report) for model, report in self._reports().items()})
        names = keys.model_reporters(), keys.model_reports()
        call = WorkerHeartbeatScript(*names, self._worker_id, self._ttl_ms, reports)
        pipeline.execute_command(*command(call))  # type: ignore[no-untyped-call]
        for card in self._cards():
            pipeline.set(keys.model_card(card.slug), card.model_dump_json(), ex=self._card_ttl_s)
        pipeline.execute()


class ModelReports:
    """Reads what workers report. Thread-safe; answers are at most half a second old."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._lock = threading.Lock()
        self._read_at_s = float("-inf")
        self._reports: Mapping[str, list[ModelReport]] = {}

    def all(self) -> Mapping[str, list[ModelReport]]:
        """Return the reports by model (a slug); none where the server does not answer, which others notice."""
        with self._lock:
            if time.monotonic() - self._read_at_s > _CACHE_S:
                self._reports = self._ask()
                self._read_at_s = time.monotonic()
            return self._reports

    def of(self, model: str) -> list[ModelReport]:
        """Return the reports of the model (a slug)."""
        return self.all().get(model, [])

    def failures(self, model: str) -> list[ModelReport]:
        """Return the reports of workers that cannot serve the model."""
        return [report for report in self.of(model) if report.state == "failed"]

    def given_up(self, model: str) -> bool:
        """Return whether workers tried the model, and none of them serves or loads it."""
        reports = self.of(model)
        return bool(reports) and all(report.state == "failed" for report in reports)

    def unloaded(self, model: str) -> bool:
        """Return whether workers are set up for the model, none serves or loads it, and not because it failed."""
        states = {report.state for report in self.of(model)}
        return "unloaded" in states and states <= {"unloaded", "failed"}

    def _ask(self) -> Mapping[str, list[ModelReport]]:
        call = ReadyWorkersScript([keys.model_reporters(), keys.model_reports()])
        try:
            (lines,) = self._redis.execute_command(*command(call))  # type: ignore[no-untyped-call]
        except RedisError:
            return {}
        found = defaultdict[str, list[ModelReport]](list)
        for line in lines:
            for model, report in orjson.loads(line).items():
                found[model].append(_read_report(report))
        return dict(found)


def _read_report(report: Mapping[str, Any]) -> ModelReport:
    # A newer worker may send more fields than this process knows.
    return ModelReport(**{field.name: report[field.name] for field in fields(ModelReport) if field.name in report})


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

    def want(self, card: ModelCard) -> None:
        """See `Catalog.want`: where models are loaded on demand, a worker then loads it."""
        with suppress(RedisError):
            self._redis.set(keys.model_wanted(card.slug), 1, ex=_WANTED_S)

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
