"""Celery boot step: load -> warm up -> serve -> announce, all before the worker takes its first ticket.

Owns the order of a worker's start and end, and the Celery app as the launcher starts it (`--app workers.boot`). Owns
no service itself: the engine, the interactive server, the reaper and the heartbeat each know how to start and stop.
"""

import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals
from celery.platforms import SecurityWarning
from celery.worker.control import Panel
from pydantic import ValidationError
from redis import RedisError

from config.catalog import Catalog, load_catalog
from config.logging import configure_logging
from config.settings import Settings
from config.supervisor import EXIT_CONFIG
from tasks.bulk.chunk_task import WorkerContext, reap
from tasks.bulk.turns_watch import TurnsWatch
from tasks.cache.caching_engine import CachingEngine
from tasks.cache.values import ContentCache
from tasks.celery import app
from tasks.connections import connect
from tasks.errors import ConfigError, TwolaneError
from tasks.interactive.server import InteractiveServer
from tasks.jobs.blobs import open_blobs
from tasks.jobs.leases import Leases
from tasks.lanes import Lane, Service
from tasks.periodic import PeriodicThread
from tasks.presence.counters import Counters
from tasks.presence.worker_registry import WorkerHeartbeat, WorkerInfo
from tasks.storage.shared_places import EVERY_S, SharedPlaces
from workers.consumer_watch import ConsumerWatch
from workers.cores import plan_cores
from workers.fleet_reporter import FleetReporter
from workers.hardware import choose_devices
from workers.loading import LoadedModels, ModelSet
from workers.model_control import ModelControl
from workers.reporting import ModelReporting
from workers.served_lanes import QueueFollower, ServedLanes, select_queues

if TYPE_CHECKING:  # the engine's libraries are imported only after the cores were chosen
    from workers.engine import DeviceEngine

__all__ = ["ModelsStep", "app"]

_log = logging.getLogger(__name__)

# What Flower's buttons (and `celery control`) would change behind the job records: a pool without threads or a worker
# without its queue looks ready and computes nothing, and a worker that is shut down so is started again.
SWITCHED_OFF = (
    *("add_consumer", "autoscale", "cancel_consumer", "pool_grow", "pool_restart", "pool_shrink", "rate_limit"),
    *("revoke", "revoke_by_stamped_headers", "shutdown", "terminate", "time_limit"),
)
_REDIS_TIMEOUT_S = 10.0
_REAP_EVERY_S = 1.0
_REAP_STOP_S = 3.0


class ModelsStep(bootsteps.StartStopStep):  # type: ignore[misc] # celery has no types
    """Stands between the pool and the consumer: no ticket is taken before the models have made vectors.

    At the end Celery closes all steps first and then stops them backwards: consumer, this one, pool. So the engine
    itself ends last, in `close_engine`, when no chunk runs any more.
    """

    requires = ("celery.worker.components:Pool",)
    label = "Models"

    def __init__(self, worker: Any, **kwargs: object) -> None:
        super().__init__(worker, **kwargs)
        self._services: _WorkerServices | None = None

    def start(self, worker: Any) -> None:
        """Load, warm up, serve, announce. A failure ends the process: without its models a worker is useless."""
        # Nothing is held yet, so a stop ends the process at once instead of waiting for a model.
        stop_handler = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        try:
            self._services = _WorkerServices(Settings(), f"{worker.hostname}#{os.getpid()}")
        except (ConfigError, ValidationError) as error:
            _log.critical("this worker cannot start: %s", error)
            raise SystemExit(EXIT_CONFIG) from error
        except TwolaneError as error:
            _log.critical("this worker cannot start: %s", error.message)
            raise SystemExit(1) from error
        signal.signal(signal.SIGTERM, stop_handler)
        # Tickets of a model that this worker lacks are for others.
        select_queues(worker.app, self._services.lanes.cards)
        self._services.start(QueueFollower(worker), ConsumerWatch(worker))

    def close(self, worker: Any) -> None:  # noqa: ARG002
        """Withdraw, so that no new request counts on this worker."""
        if self._services is not None:
            self._services.withdraw()

    def stop(self, worker: Any) -> None:  # noqa: ARG002
        """Answer the requests that were taken; chunks go on, the pool waits for them."""
        if self._services is not None:
            self._services.stop()

    def terminate(self, worker: Any) -> None:
        """Do what `stop` does; Celery calls it in a cold shutdown."""
        self.stop(worker)


class _WorkerServices:
    """The live objects of one worker."""

    def __init__(self, settings: Settings, worker_id: str) -> None:
        catalog = _read_catalog(settings)
        settings = _choose_hardware(settings)
        self._worker_id, self._device = worker_id, settings.device
        self._takes: Callable[[Lane], bool] = lambda _: True
        heartbeat_redis = connect(settings.redis_url, name="announce")
        self._reports = ModelReporting(heartbeat_redis, worker_id, settings)
        self._fleet = FleetReporter(heartbeat_redis, worker_id, self._reports.states, settings)
        self._counters = Counters(heartbeat_redis)
        self._counters.start()
        self.engine = _start_engine(settings, self._counters)
        self.lanes = ServedLanes(heartbeat_redis, self._describe)
        self._models = ModelSet(settings, self.engine, self.lanes, self._reports)
        self._control = ModelControl(heartbeat_redis, settings, catalog, self._models, self._reports)
        self._models.start(self._control.wanted())
        loaded = LoadedModels(self._models, self.engine)
        redis = connect(settings.redis_url, name="worker", timeout_s=_REDIS_TIMEOUT_S, retries=1)
        leases = Leases(redis, settings, loaded.fingerprints_by_slug)
        cache = ContentCache(connect(settings.redis_url, name="cache"), settings)
        engine = CachingEngine(self.engine, loaded.fingerprints, cache)
        app.twolane = WorkerContext(
            leases,
            open_blobs(redis, settings),
            engine,
            settings,
            worker_id,
            dimensions=loaded.dimensions,
            serves=self.lanes.serves,
            meter=self._counters,
        )
        self._server = InteractiveServer(settings, self.lanes.cards, engine)
        turns_redis = connect(settings.redis_url, name="turns", block_s=1.0)
        self._turns = TurnsWatch(turns_redis, app.twolane.sharing.held)
        self._reaper = PeriodicThread(partial(_reap_all, leases, self.lanes), _REAP_EVERY_S, "reaper")
        places = SharedPlaces(heartbeat_redis, settings, files=False)
        self._places = PeriodicThread(places.announce, EVERY_S, "places")
        self._heartbeat = WorkerHeartbeat(heartbeat_redis, worker_id, self.lanes.describe, settings.worker_ttl_s)

    def start(self, queues: QueueFollower, consumer: ConsumerWatch) -> None:
        self._takes = consumer.takes
        self._server.start()
        self._turns.start()
        self._reaper.start()
        self._places.start()
        self.lanes.announce, self.lanes.on_open, self.lanes.on_close = self._heartbeat.beat, queues.take, queues.leave
        self._heartbeat.start()
        self._reports.start(self.engine.well_models, self.engine.idle_s)
        self._control.start()

        def drain() -> None:
            self._control.stop()
            queues.leave_all()
            app.twolane.sharing.held.close()
            self._heartbeat.stop()
            self._server.stop()

        self._fleet.serve(self.engine, self._device, drain)
        _log.info("worker %s is ready: %s", self._worker_id, ", ".join(self._models.loaded) or "no model is loaded")

    def withdraw(self) -> None:
        self._control.stop()
        app.twolane.sharing.held.close()
        self._reports.stop()
        self._heartbeat.stop()

    def stop(self) -> None:
        self.withdraw()
        self._turns.stop()
        self._places.stop(_REAP_STOP_S)
        self._reaper.stop(_REAP_STOP_S)
        self._server.stop()
        self._fleet.stop()

    def _describe(self, name: str) -> WorkerInfo | None:
        model = self.engine.loaded(name)
        if model is None or name not in self.engine.well_models():
            return None
        calls = self.engine.call_latency(name)
        return WorkerInfo(
            worker_id=self._worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=model.backend.device,
            dtype=model.backend.dtype,
            fingerprint=model.fingerprint,
            tokens_per_s=self.engine.stats()["tokens_per_s"],
            backend=model.backend.kind,
            fallback=model.fallback,
            call_target_ms=calls.target_ms,
            call_p99_ms=calls.p99_ms,
            call_expected_ms=calls.expected_ms,
            bulk=self._takes(Lane(model.card.slug, Service.BULK)),
        )


def _read_catalog(settings: Settings) -> Catalog:
    try:
        catalog = load_catalog(settings.catalog_file, settings.models)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the catalogue cannot be used: {error}") from error
    if unknown := [catalog.describe_unknown(name) for name in settings.models if catalog.find(name) is None]:
        raise ConfigError(f"TWOLANE_MODELS: {'; '.join(unknown)}")
    return catalog


def _start_engine(settings: Settings, meter: Counters) -> "DeviceEngine":
    from workers.engine import DeviceEngine  # noqa: PLC0415 - its libraries start threads, see `_choose_hardware`

    return DeviceEngine(settings, {}, on_cpu=settings.device == "cpu", meter=meter)


def _reap_all(leases: Leases, lanes: ServedLanes) -> None:
    """Take back the claims of dead workers and publish missing messages; any number of workers may do so at a time."""
    for card in tuple(lanes.cards):
        reap(leases, Lane(card.slug, Service.BULK))


def _choose_hardware(settings: Settings) -> Settings:
    """Choose device, threads and cores for a worker that the launcher did not start, which does it from outside.

    Returns:
        The settings with what was chosen.
    """
    if "torch" in sys.modules:
        _log.warning("torch was imported before its device and threads were chosen")
    near = frozenset[int]()
    if settings.device not in {"cpu", "cuda"}:
        device = choose_devices(settings, os.environ)[0]
        os.environ.update(device.environment)
        settings, near = settings.model_copy(update={"device": device.kind}), device.cores
    (cores,) = plan_cores(settings, [near])
    for name, value in cores.environment.items():
        os.environ.setdefault(name, value)
    cores.pin()
    return settings.model_copy(update={"threads": cores.threads})


def close_engine(**_: object) -> None:
    """End the engine when the pool has ended its chunks."""
    context: WorkerContext | None = getattr(app, "twolane", None)
    if context is not None:
        if isinstance(context.meter, Counters):
            with suppress(RedisError):
                context.meter.stop()
        context.engine.close()  # type: ignore[attr-defined] # the protocol for tasks has no end; a worker's engine has


def set_up_logging(**_: object) -> None:
    """Log as our other processes do; without a receiver Celery would configure its own way."""
    configure_logging(Settings(), "worker")


def refuse_command(_: Any, **__: object) -> dict[str, str]:
    """Answer a command of Celery's remote control that is switched off."""
    return {"error": "switched off: drain or restart a worker in the console, pause or cancel a job there"}


# Celery warns of root because of pickle, which we do not accept; in a container root is the rule.
warnings.simplefilter("ignore", SecurityWarning)
signals.worker_shutdown.connect(close_engine)
signals.setup_logging.connect(set_up_logging)
app.steps["worker"].add(ModelsStep)
for _command in SWITCHED_OFF:
    Panel.data[_command] = refuse_command
app.add_defaults({"worker_consumer": "tasks.celery_fixes:SteadyConsumer"})
