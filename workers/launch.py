"""`python -m workers.launch`: one worker process per device, started again when it dies.

Owns the processes: their environment, their restarts with growing delays and their end within a bound. What happens
inside one is `workers.boot`.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from config.logging import configure_logging
from config.settings import Settings
from config.supervisor import tied_to_parent
from tasks.errors import ConfigError
from tasks.storage.filesystem import check_storage
from workers.hardware import Cores, Device, choose_devices, plan_cores

__all__ = ["EXIT_CONFIG", "Launcher", "main"]

_log = logging.getLogger("workers.launch")

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: starting it again would end the same way
_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
_HEALTHY_AFTER_S = 60.0
_LOOK_S = 0.1
_KILL_S = 2.0


class _Slot:
    """One device and the worker process on it."""

    def __init__(self, device: Device, cores: Cores) -> None:
        self.device = device
        self.given_up = False
        self._cores = cores
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._start_at_s = 0.0
        self._delay_s = _FIRST_DELAY_S

    def look(self, now_s: float) -> None:
        """Start the process when it is due; notice its death."""
        if self._process is None:
            if now_s >= self._start_at_s and not self.given_up:
                self._start(now_s)
        elif (code := self._process.poll()) is not None:
            self._process = None
            self._mourn(code, now_s)

    def signal(self, number: signal.Signals) -> None:
        """Signal the process and whatever it has started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def gone(self) -> bool:
        """Whether no process is left."""
        return self._process is None or self._process.poll() is not None

    def _start(self, now_s: float) -> None:
        tie = tied_to_parent()

        def before_exec() -> None:
            tie()
            self._cores.pin()

        self._process = subprocess.Popen(
            _command(self.device),
            env={**_environment(), **self._cores.environment, **self.device.environment},
            # Its own group: Ctrl-C in a terminal reaches the launcher alone, which stops the workers in order.
            start_new_session=True,
            preexec_fn=before_exec,  # noqa: PLW1509 - two system calls, and this process has one thread
        )
        self._started_s = now_s
        _log.info("worker %s started, process %d, %d threads", self.device.name, self._process.pid, self._cores.threads)

    def _mourn(self, code: int, now_s: float) -> None:
        if code == EXIT_CONFIG:
            self.given_up = True
            _log.error("worker %s cannot start with these settings, and is not tried again", self.device.name)
            return
        if now_s - self._started_s >= _HEALTHY_AFTER_S:
            self._delay_s = _FIRST_DELAY_S
        self._start_at_s = now_s + self._delay_s
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        _log.warning("worker %s ended %s, it starts again in %.1f s", self.device.name, how, self._delay_s)
        self._delay_s = min(2 * self._delay_s, _LONGEST_DELAY_S)


class Launcher:
    """Keeps one worker running on each device until it is told to stop."""

    def __init__(self, settings: Settings, devices: Sequence[Device]) -> None:
        cores = plan_cores(settings, len(devices))
        self._slots = [_Slot(device, cores) for device in devices]
        self._stop_s = settings.worker_stop_s
        # Plain numbers and no events: a signal handler that sets an event may wait for the lock of the very thread
        # that it interrupted.
        self._told = 0

    def stop(self, *_: object) -> None:
        """Stop the workers; at the second call, at once. Safe in a signal handler."""
        self._told += 1

    def run(self) -> int:
        """Run until `stop()`, or until no worker can start; return the exit code."""
        while not self._told:
            now_s = time.monotonic()
            for slot in self._slots:
                slot.look(now_s)
            if all(slot.given_up for slot in self._slots):
                return EXIT_CONFIG
            time.sleep(_LOOK_S)
        self._end()
        return 0

    def _end(self) -> None:
        """Let the workers finish what they hold, for a bounded time; a lease brings back what is lost."""
        for slot in self._slots:
            slot.signal(signal.SIGTERM)
        if self._wait(self._stop_s, told=2):
            return
        for slot in self._slots:
            if not slot.gone():
                _log.warning("worker %s did not stop in time and is killed", slot.device.name)
                slot.signal(signal.SIGKILL)
        self._wait(_KILL_S)

    def _wait(self, timeout_s: float, told: int = sys.maxsize) -> bool:
        """Return whether all processes are gone: when they are, when the time is over, or when told so many times."""
        deadline_s = time.monotonic() + timeout_s
        while not (gone := all(slot.gone() for slot in self._slots)):
            if time.monotonic() > deadline_s or self._told >= told:
                break
            time.sleep(_LOOK_S)
        return gone


def _command(device: Device) -> list[str]:
    # The launcher's process id makes the name unique where several launchers share a machine.
    name = f"{device.name}-{os.getpid()}@%h"
    return [
        *(sys.executable, "-m", "celery", "--quiet", "--app", "workers.boot", "worker"),
        *("--hostname", name, "--pool", "threads", "--without-mingle", "--without-gossip"),
    ]


def _environment() -> dict[str, str]:
    """Return our own environment, with the rooms to be found from any working directory, installed or not."""
    here = str(Path(__file__).resolve().parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))}


def _make_launcher() -> Launcher:
    settings = Settings()
    configure_logging(settings, "launcher")
    if not settings.redis_url:
        raise ConfigError("REDIS_URL is not set: workers need a server; `make serve` starts one by itself")
    check_storage(settings, files=False)
    return Launcher(settings, choose_devices(settings, os.environ))


def main() -> int:
    """Start the workers of this machine; return the exit code."""
    try:
        launcher = _make_launcher()
    except (ConfigError, ValidationError) as error:
        print(f"The workers cannot start: {error}", file=sys.stderr)  # noqa: T201 - logging may not be set up yet
        return EXIT_CONFIG
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, launcher.stop)
    return launcher.run()


if __name__ == "__main__":
    sys.exit(main())
