"""`python -m workers.launch`: one worker process per device, started again when it dies.

Owns which workers there are and with which environment. How a process is kept running is `config.supervisor`; what
happens inside one is `workers.boot`.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from redis import RedisError

from config.logging import configure_logging
from config.settings import Settings, SettingsError, load_settings
from config.supervisor import EXIT_CONFIG, Program, SupervisedProcess, stop_all
from tasks.connections import connect
from tasks.errors import ConfigError
from tasks.presence.fleet import Fleet, WorkerEnd
from tasks.storage.filesystem import check_data_folder, check_storage
from workers.cores import Cores, plan_cores
from workers.hardware import Device, choose_devices, place_workers

__all__ = ["Launcher", "main"]

_log = logging.getLogger("workers.launch")

_LONGEST_DELAY_S = 30.0
_POLL_S = 0.1


class Launcher:
    """Keeps one worker running on each device until `stop()` is called."""

    def __init__(self, settings: Settings, devices: Sequence[Device]) -> None:
        places = place_workers(settings, devices)
        plan = zip(places, plan_cores(settings, [place.cores for place in places]), strict=True)
        programs = [_program(place, cores) for place, cores in plan]
        self._workers = [SupervisedProcess(program, longest_delay_s=_LONGEST_DELAY_S) for program in programs]
        self._stop_s = settings.worker_stop_s
        self._fleet = Fleet(connect(settings.redis_url, name="launcher")) if settings.redis_url else None
        # A plain number and no event: a signal handler that sets an event may wait for the lock of the very thread
        # that it interrupted.
        self._stops = 0

    def stop(self, *_: object) -> None:
        """Stop the workers; at the second call, at once. Safe in a signal handler."""
        self._stops += 1

    def run(self) -> int:
        """Run until `stop()`, or until no worker can start; return the exit code."""
        while not self._stops:
            for worker in self._workers:
                self._poll(worker)
            if all(worker.given_up for worker in self._workers):
                return EXIT_CONFIG
            time.sleep(_POLL_S)
        # What a worker holds and cannot finish in time comes back by its lease.
        for worker in stop_all(self._workers, self._stop_s, hurry=lambda: self._stops > 1):
            _log.warning("worker %s did not stop in time and was killed", worker.program.name)
        return 0

    def _poll(self, worker: SupervisedProcess) -> None:
        pid, starts = worker.last_pid, worker.starts
        code, name = worker.poll(), worker.program.name
        if worker.starts > starts:
            variables = worker.program.environment
            pinned = variables.get("TWOLANE_CPU_AFFINITY", "all")
            threads = variables["TWOLANE_THREADS"]
            _log.info("worker %s started, process %d, %s threads, cores %s", name, worker.pid or 0, threads, pinned)
        elif code == EXIT_CONFIG:
            _log.error("worker %s cannot start with these settings, and is not tried again", name)
        elif code is not None:
            how = f"by signal {-code}" if code < 0 else f"with code {code}"
            _log.warning("worker %s ended %s, it starts again in %.1f s", name, how, worker.delay_s)
            self._note_end(f"{name}.{os.getpid()}@{socket.gethostname()}#{pid}", f"ended {how}")

    def _note_end(self, worker_id: str, reason: str) -> None:
        if self._fleet is None:
            return
        # A server that does not answer must not keep the worker from starting again.
        with contextlib.suppress(RedisError):
            self._fleet.note_end(worker_id, WorkerEnd(time.time(), reason))


def _program(device: Device, cores: Cores) -> Program:
    environment = {**_python_path(), **cores.environment, **device.environment}
    return Program(device.name, _command(device), environment, signal.SIGKILL, cores.pin)


def _command(device: Device) -> list[str]:
    # The launcher's process id makes the name unique where several launchers share a machine.
    name = f"{device.name}.{os.getpid()}@%h"
    return [
        *(sys.executable, "-m", "celery", "--quiet", "--app", "workers.boot", "worker"),
        *("--hostname", name, "--pool", "threads", "--without-mingle", "--without-gossip"),
    ]


def _python_path() -> dict[str, str]:
    """Return what lets a worker import our packages from any working directory, installed or not."""
    here = str(Path(__file__).resolve().parent.parent)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}


def _make_launcher() -> Launcher:
    settings = load_settings()
    configure_logging(settings, "launcher")
    if not settings.redis_url:
        raise ConfigError("REDIS_URL is not set: workers need a server; `make serve` starts one by itself")
    check_data_folder(settings)
    check_storage(settings, files=False)
    return Launcher(settings, choose_devices(settings, os.environ))


def main() -> int:
    """Start the workers of this machine; return the exit code."""
    try:
        launcher = _make_launcher()
    except (ConfigError, SettingsError, ValidationError) as error:
        print(f"The workers cannot start: {error}", file=sys.stderr)  # noqa: T201 - logging may not be set up yet
        return EXIT_CONFIG
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, launcher.stop)
    return launcher.run()


if __name__ == "__main__":
    sys.exit(main())
