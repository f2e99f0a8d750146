"""The web server: granian with its WSGI interface, set up from Settings.

Owns the choice of granian's options and the stop. What was measured with granian 2.8 on the way (Linux, Python 3.11):

- `wsgi.input` is a stream with back pressure: 100 MB to a slow reader, plain or chunked, raised the process by 3 MB.
- An early answer (413) reaches the client although its body was not read.
- A lost connection looks like the end of the body: see `app.http.disconnects`.
"""

import contextlib
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from functools import partial
from multiprocessing.util import Finalize
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server
from redis import RedisError

from app import create_app
from app.admin.worker_watch import WorkerWatch
from app.batches.batch_scheduler import BatchScheduler
from app.http.request_ids import configure_request_logging
from app.http.slow_clients import limit_stalled_readers
from app.http.spans import make_tracing, start_tracing
from app.jobs.event_lines import EventLines
from app.jobs.webhooks import WebhookDispatcher
from config.keyring import check_exposure
from config.secrets import mask_secrets
from config.settings import Settings
from tasks.connections import check_redis
from tasks.errors import ConfigError
from tasks.periodic import PeriodicThread
from tasks.presence.counters import Counters
from tasks.presence.web_processes import WebReporter
from tasks.storage.filesystem import check_data_folder, check_storage
from tasks.storage.shared_places import EVERY_S

__all__ = ["run_server"]

_log = logging.getLogger(__name__)
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_BACKLOG = 2048
# More connections than these wait in the kernel, and so would probes: idle ones count too.
_CONNECTIONS = 16_384
_LISTENS_WITHIN_S = 30.0
# malloc.h: M_MMAP_THRESHOLD, in bytes, and M_ARENA_MAX.
_MALLOC_OPTIONS = {-3: 2**20, -8: 4}


class _AdviceFilter(logging.Filter):
    """Drops granian's advice to use fewer threads: ours wait for workers, they do not compute."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Configuration allows spawning")


# granian's records go the way of all others; its own handlers would write to standard output.
_LOGGING: dict[str, Any] = {
    "formatters": {},
    "filters": {"no_advice": {"()": _AdviceFilter}},
    "handlers": {},
    "loggers": {
        "_granian": {"handlers": [], "filters": ["no_advice"], "propagate": True},
        "granian.access": {"handlers": [], "propagate": True},
    },
}
# Also the time that an idle connection is kept: HTTP clients keep theirs for 5 s, and would send into a closed one.
_HEADER_TIMEOUT_MS = 60_000
# Of each connection, for what it may send before it is known to be a request; bodies are read in blocks of this size.
_HEAD_BYTES = 2**16


def run_server(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; what runs then has `web_stop_s` to end.

    Raises:
        config.keyring.KeyringError: without keys, on an address that is not loopback.
        tasks.errors.ConfigError: Redis is not named or refuses, or results or files cannot be kept.
    """
    check_exposure(settings)
    if not settings.redis_url:
        raise ConfigError("REDIS_URL is empty: name a running server, or let `make serve` start one")
    configure_request_logging(settings, "web")
    _log.info("settings of the web server: %s", _list_settings(settings))
    check_redis(settings.redis_url)
    check_data_folder(settings)
    check_storage(settings, files=True)
    if settings.tracing:
        make_tracing()[1].shutdown()
    address, port = _choose_address(settings)
    server = Server(
        "app.wsgi:create",
        address=address,
        port=port,
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,
        websockets=False,
        workers=settings.web_workers,
        blocking_threads=settings.web_threads,
        backpressure=_allow_connections(settings),
        backlog=_BACKLOG,
        http1_settings=HTTP1Settings(header_read_timeout=_HEADER_TIMEOUT_MS, max_buffer_size=_HEAD_BYTES),
        log_level=LogLevels.warning,
        log_dictconfig=_LOGGING,
        respawn_failed_workers=True,
        respawn_interval=0.5,
        workers_kill_timeout=settings.web_stop_s,
    )
    _end_new_processes_by_signals()
    server.serve(target_loader=partial(_load, settings, port), wrap_loader=False)


def _end_new_processes_by_signals() -> None:
    """Let a stop end processes that granian forks while they load: with their parent's handlers they would miss it.

    Signals wait until the fork is over, so that none comes between it and the change of handlers.
    """
    release = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, _STOP_SIGNALS)

    def obey() -> None:
        for wanted in _STOP_SIGNALS:
            signal.signal(wanted, signal.SIG_DFL)
        release()

    hold = partial(signal.pthread_sigmask, signal.SIG_BLOCK, _STOP_SIGNALS)
    os.register_at_fork(before=hold, after_in_parent=release, after_in_child=obey)


def _load(settings: Settings, port: int) -> Any:
    """Build the app in the web process itself: threads and connections do not survive a fork."""
    configure_request_logging(settings, "web")
    _return_memory()
    if settings.tracing:
        tracing, provider = make_tracing()
        start_tracing(tracing)
        Finalize(None, provider.shutdown, exitpriority=1)
    # A process that was forked ends without calling the handlers of `atexit`.
    Finalize(None, logging.shutdown, exitpriority=0)
    app = create_app(settings)
    # Here and not in `create_app`: a test that only asks the app one thing needs no thread.
    BatchScheduler(app.extensions["twolane"]).start()
    WebhookDispatcher(app.extensions["twolane"]).start()
    app.extensions["twolane"].activity.start()
    _start_counting(app)
    WorkerWatch(app.extensions["twolane"]).start()
    EventLines(app.extensions["twolane"].redis).start()
    PeriodicThread(app.extensions["twolane"].files.places.announce, EVERY_S, "places").start()
    threading.Thread(target=_watch_readers, args=(port,), name="stalled-readers", daemon=True).start()
    return app


def _start_counting(app: Any) -> None:
    counters, reporter = app.extensions["twolane"].counters, app.extensions["twolane-metrics"].reporter
    counters.start()
    reporter.start()
    # What was counted in the last seconds is added at the end, if Redis answers then.
    Finalize(None, partial(_stop_counting, counters, reporter), exitpriority=1)


def _stop_counting(counters: Counters, reporter: WebReporter) -> None:
    with contextlib.suppress(RedisError):
        reporter.stop()
        counters.stop()


def _return_memory() -> None:
    """Have glibc give large blocks back as they are freed: a heap for each of many threads keeps what bodies took."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        for option, value in _MALLOC_OPTIONS.items():
            if mallopt is not None:
                mallopt(option, value)


def _watch_readers(port: int) -> None:
    """Limit stalled readers as soon as granian listens, which it does when the app is loaded."""
    until_s = time.monotonic() + _LISTENS_WITHIN_S
    while not limit_stalled_readers(port) and time.monotonic() < until_s:
        time.sleep(0.1)


def _allow_connections(settings: Settings) -> int:
    """Return how many connections each process takes, and let it open files for so many."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    fewest = _CONNECTIONS if most_files == resource.RLIM_INFINITY else min(_CONNECTIONS, most_files // 2)
    return max(1, fewest // settings.web_workers)


def _list_settings(settings: Settings) -> str:
    """Return the settings that differ from their defaults, without secrets."""
    changed = settings.model_dump(exclude_defaults=True)
    shown = {name: mask_secrets(str(value)) for name, value in sorted(changed.items())}
    return ", ".join(f"{name}={value}" for name, value in shown.items()) or "all by default"


def _choose_address(settings: Settings) -> tuple[str, int]:
    """Return what granian binds, which takes no names and no port 0.

    Raises:
        ConfigError: nothing can be bound there.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda place: place[0] != socket.AF_INET)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return str(address[0]), int(probe.getsockname()[1])
    except OSError as error:
        where = f"TWOLANE_HOST={settings.host} with PORT={settings.port}"
        raise ConfigError(f"{where} cannot be bound: {error.strerror or error}") from error
