"""How the devices of all machines are: starting, ready, set aside or refused, as their launchers report.

Owns the reports and their reading. What a state follows from is decided by `workers.launch`.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

import orjson
from redis import Redis, RedisError

from tasks import keys
from tasks.periodic import PeriodicThread
from tasks.presence.worker_registry import ReadyWorkersScript, WorkerHeartbeatScript
from tasks.scripts import command

__all__ = ["DeviceReport", "DeviceReporter", "DeviceState", "count_states", "read_devices"]

_log = logging.getLogger(__name__)

_PERIOD_S = 1.0

DeviceState = Literal["starting", "ready", "set_aside", "refused"]


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What a launcher says of one worker's place on a device.

    Attributes:
        host: name of its machine.
        device: `cpu`, `gpu0`, `gpu0-1`, `mig-5c89852c`, ...
        state: starting (again), ready, set_aside: it kept failing and is tried again later, or refused: it cannot start
            with these settings and is not tried again.
        failures: how often its worker died since it was last ready for a minute.
        reason: how it died last; empty while there was no failure.
    """

    host: str
    device: str
    state: DeviceState
    failures: int = 0
    reason: str = ""


class DeviceReporter:
    """Reports once a second, in a thread of its own.

    Args:
        redis: a client that gives up quickly.
        launcher_id: unique among all launchers.
        look: called each time; one report for each worker's place.
        ttl_s: how long one report holds.
    """

    def __init__(
        self, redis: Redis, launcher_id: str, look: Callable[[], Sequence[DeviceReport]], ttl_s: float
    ) -> None:
        self._redis = redis
        self._launcher_id = launcher_id
        self._look = look
        self._ttl_ms = int(ttl_s * 1000)
        self._thread = PeriodicThread(self._report, _PERIOD_S, "device-reporter")

    def start(self) -> None:
        """Report from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Withdraw and end the thread. Safe to call twice."""
        self._thread.stop(2 * _PERIOD_S + 1)
        try:
            self._redis.zrem(keys.device_reporters(), self._launcher_id)
            self._redis.hdel(keys.device_reports(), self._launcher_id)
        except RedisError:
            _log.debug("the reports stay until their expiry")

    def _report(self) -> None:
        reports = orjson.dumps([asdict(report) for report in self._look()])
        names = keys.device_reporters(), keys.device_reports()
        call = WorkerHeartbeatScript(*names, self._launcher_id, self._ttl_ms, reports)
        self._redis.execute_command(*command(call))  # type: ignore[no-untyped-call]


def read_devices(redis: Redis) -> list[DeviceReport]:
    """Return how the devices are, by machine and name.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    names = [keys.device_reporters(), keys.device_reports()]
    (lines,) = redis.execute_command(*command(ReadyWorkersScript(names)))  # type: ignore[no-untyped-call]
    # A newer launcher may send more fields than this process knows.
    known = [field.name for field in fields(DeviceReport)]
    raw = [report for line in lines for report in orjson.loads(line)]
    reports = [DeviceReport(**{name: report[name] for name in known if name in report}) for report in raw]
    return sorted(reports, key=lambda report: (report.host, report.device))


def count_states(reports: Sequence[DeviceReport]) -> Mapping[DeviceState, int]:
    """Return how many devices are in each state, none of which is left out."""
    seen = Counter(report.state for report in reports)
    return {state: seen[state] for state in get_args(DeviceState)}
