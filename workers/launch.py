"""`python -m workers.launch`: one worker process per device, started again when it dies.

Owns which workers there are, with which environment, and when a device that keeps failing is set aside. How a process
is kept running is `config.supervisor`; what happens inside one is `workers.boot`.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from pydantic import ValidationError
from redis import RedisError

from config.logging import configure_logging
from config.settings import Settings, SettingsError, load_settings
from config.supervisor import EXIT_CONFIG, Program, SupervisedProcess, stop_all
from tasks.connections import check_redis, connect
from tasks.errors import ConfigError
from tasks.presence.counters import Counters
from tasks.presence.device_states import DeviceReport, DeviceReporter, DeviceState
from tasks.presence.fleet import Fleet, WorkerEnd
from tasks.storage.filesystem import check_data_folder, check_storage
from workers.cores import Cores, plan_cores
from workers.hardware import Device, choose_devices, count_chunks, place_workers

__all__ = ["Launcher", "main"]

_log = logging.getLogger("workers.launch")

_LONGEST_DELAY_S = 30.0
_POLL_S = 0.1
# A device whose worker dies so often without being ready for so long is set aside for a while. A text that ends its
# worker does so three times at most (`max_attempts`).
_MOST_FAILURES = 5
_STEADY_S = 60.0
_ASIDE_S = 600.0


class _Worker:
    """One worker and how its device has behaved. For the launcher's thread; any thread may ask for `report`."""

    def __init__(self, place: Device, cores: Cores, chunks: int) -> None:
        self.name = place.name
        self.process = SupervisedProcess(_program(place, cores, chunks), longest_delay_s=_LONGEST_DELAY_S)
        self.cores = cores
        self._slot = _slot(place)
        self.failures = 0
        self.aside = False
        self._reason = ""
        self._ready_since_s: float | None = None

    @property
    def worker_id(self) -> str:
        """What its newest process, running or not, is called among all workers."""
        return f"{self._slot}#{self.process.last_pid}"

    @property
    def ready(self) -> bool:
        """Whether it has announced its models."""
        return self._ready_since_s is not None

    def note_ready(self, worker_ids: Collection[str]) -> None:
        """Note whether it is among the ready workers; after a minute its failures are forgotten."""
        if self.worker_id not in worker_ids or not self.process.alive:
            self._ready_since_s = None
        elif self._ready_since_s is None:
            self._ready_since_s = time.monotonic()
        elif time.monotonic() - self._ready_since_s >= _STEADY_S:
            self.failures, self._reason = 0, ""

    def note_death(self, code: int) -> str:
        """Count a death; one with code 0 was asked for. Returns how it died."""
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        if code:
            self.failures += 1
            self._reason = f"its worker ended {how}"
        return how

    def report(self) -> DeviceReport:
        """Describe it."""
        state: DeviceState = "ready" if self.ready else "starting"
        if self.process.given_up:
            state = "refused"
        elif self.aside:
            state = "set_aside"
        return DeviceReport(socket.gethostname(), self.name, state, self.failures, self._reason)


class Launcher:
    """Keeps one worker running on each device until `stop()` is called."""

    def __init__(self, settings: Settings, devices: Sequence[Device]) -> None:
        places = place_workers(settings, devices)
        plan = plan_cores(settings, [place.cores for place in places])
        self._workers = [
            _Worker(place, cores, count_chunks(settings, place)) for place, cores in zip(places, plan, strict=True)
        ]
        self._stop_s = settings.worker_stop_s
        redis = connect(settings.redis_url, name="launcher") if settings.redis_url else None
        self._fleet = Fleet(redis) if redis is not None else None
        self._counters = Counters(redis) if redis is not None else None
        self._ready_ids: Collection[str] = frozenset()
        # A plain number and no event: a signal handler that sets an event may wait for the lock of the very thread
        # that it interrupted.
        self._stops = 0

    def stop(self, *_: object) -> None:
        """Stop the workers; at the second call, at once. Safe in a signal handler."""
        self._stops += 1

    def look(self, ready_ids: Collection[str]) -> list[DeviceReport]:
        """Take note of which workers are ready, and return how the devices are. Thread-safe."""
        self._ready_ids = ready_ids
        return [worker.report() for worker in self._workers]

    def run(self) -> int:
        """Run until `stop()`, or until no worker can start; return the exit code."""
        while not self._stops:
            for worker in self._workers:
                self._poll(worker)
            if all(worker.process.given_up for worker in self._workers):
                return EXIT_CONFIG
            time.sleep(_POLL_S)
        # What a worker holds and cannot finish in time comes back by its lease.
        for process in stop_all([worker.process for worker in self._workers], self._stop_s, lambda: self._stops > 1):
            _log.warning("worker %s did not stop in time and was killed", process.program.name)
        return 0

    def _poll(self, worker: _Worker) -> None:
        process = worker.process
        starts, code = process.starts, process.poll()
        worker.note_ready(self._ready_ids)
        if process.starts > starts:
            worker.aside = False
            cores = ",".join(map(str, sorted(worker.cores.affinity))) or "not pinned"
            facts = worker.name, process.pid or 0, worker.cores.threads, cores
            _log.info("worker %s started, process %d, %d threads, cores: %s", *facts)
        elif code is not None:
            self._judge(worker, code)
        elif worker.aside and not self._any_ready():
            worker.aside = False
            process.start_after(process.delay_s)
            _log.warning("no worker is ready: %s is tried again in %.1f s", worker.name, process.delay_s)

    def _judge(self, worker: _Worker, code: int) -> None:
        process, how = worker.process, worker.note_death(code)
        self._note_end(worker.worker_id, how)
        if code == EXIT_CONFIG:
            _log.error("worker %s cannot start with these settings, and is not tried again", worker.name)
        elif worker.failures >= _MOST_FAILURES and self._any_ready():
            worker.aside = True
            process.start_after(_ASIDE_S)
            facts = worker.name, worker.failures, how, _ASIDE_S
            _log.error("device %s is set aside: its worker ended %d times, now %s; next try in %.0f s", *facts)
        else:
            _log.warning("worker %s ended %s, it starts again in %.1f s", worker.name, how, process.delay_s)

    def _note_end(self, worker_id: str, how: str) -> None:
        if self._fleet is None or self._counters is None:
            return
        # A server that does not answer must not keep the worker from starting again.
        with contextlib.suppress(RedisError):
            self._counters.add("worker_restarts_total", (how,))
            self._fleet.note_end(worker_id, WorkerEnd(time.time(), f"ended {how}"))
            self._counters.flush()

    def _any_ready(self) -> bool:
        return any(worker.ready for worker in self._workers)


def _program(device: Device, cores: Cores, chunks: int) -> Program:
    environment = {**_python_path(), **cores.environment, **device.environment}
    environment["TWOLANE_CHUNKS_IN_FLIGHT"] = str(chunks)
    return Program(device.name, _command(device), environment, signal.SIGKILL, cores.pin)


def _slot(device: Device) -> str:
    # The launcher's process id makes the name unique where several launchers share a machine.
    return f"{device.name}.{os.getpid()}@{socket.gethostname()}"


def _command(device: Device) -> list[str]:
    return [
        *(sys.executable, "-m", "celery", "--quiet", "--app", "workers.boot", "worker"),
        *("--hostname", _slot(device), "--pool", "threads", "--without-mingle", "--without-gossip"),
    ]


def _python_path() -> dict[str, str]:
    """Return what lets a worker import our packages from any working directory, installed or not."""
    here = str(Path(__file__).resolve().parent.parent)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}


def _make_launcher(settings: Settings) -> tuple[Launcher, DeviceReporter]:
    configure_logging(settings, "launcher")
    if not settings.redis_url:
        raise ConfigError("REDIS_URL is not set: workers need a server; `make serve` starts one by itself")
    check_redis(settings.redis_url)
    check_data_folder(settings)
    check_storage(settings, files=False)
    launcher = Launcher(settings, choose_devices(settings, os.environ))
    redis = connect(settings.redis_url, name="devices")
    look = partial(_look, launcher, Fleet(redis), settings.worker_ttl_s)
    launcher_id = f"{socket.gethostname()}#{os.getpid()}"
    return launcher, DeviceReporter(redis, launcher_id, look, settings.worker_ttl_s)


def _look(launcher: Launcher, fleet: Fleet, ttl_s: float) -> list[DeviceReport]:
    heard = [member.card for member in fleet.members() if member.silent_s < ttl_s]
    return launcher.look({card.worker_id for card in heard if card.state == "ready"})


def main() -> int:
    """Start the workers of this machine; return the exit code."""
    try:
        launcher, reporter = _make_launcher(load_settings())
    except (ConfigError, SettingsError, ValidationError) as error:
        print(f"The workers cannot start: {error}", file=sys.stderr)  # noqa: T201 - logging may not be set up yet
        return EXIT_CONFIG
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, launcher.stop)
    reporter.start()
    code = launcher.run()
    reporter.stop()
    return code


if __name__ == "__main__":
    sys.exit(main())
