"""Which web processes live, and how many of their threads requests hold.

Owns the reports of web processes and their reading. What a place is, is `app.http.places`.
"""

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress

import orjson
from redis import Redis, RedisError

from tasks import keys
from tasks.periodic import PeriodicThread
from tasks.presence.worker_registry import ReadyWorkersScript, WorkerHeartbeatScript
from tasks.scripts import command

__all__ = ["WebReporter", "read_web_processes"]

_PERIOD_S = 2.0
_TTL_MS = 10_000


class WebReporter:
    """Reports for one web process.

    Args:
        redis: a client that gives up quickly.
        taken: called each time; the threads that requests hold, by kind.
    """

    def __init__(self, redis: Redis, taken: Callable[[], Mapping[str, int]]) -> None:
        self._redis, self._taken = redis, taken
        self._process = secrets.token_hex(8)
        self._thread = PeriodicThread(self.report, _PERIOD_S, "web-reporter")

    def start(self) -> None:
        """Report every two seconds from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Withdraw, as far as Redis answers. Safe to call twice."""
        self._thread.stop(_PERIOD_S + 1)
        with suppress(RedisError):
            self._redis.zrem(keys.web_processes(), self._process)

    def report(self) -> None:
        """Report now.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        names = keys.web_processes(), keys.web_reports()
        call = WorkerHeartbeatScript(*names, self._process, _TTL_MS, orjson.dumps(self._taken()))
        self._redis.execute_command(*command(call))  # type: ignore[no-untyped-call]


def read_web_processes(redis: Redis) -> list[Mapping[str, int]]:
    """Return for each web process that lives how many of its threads requests hold, by kind.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    names = [keys.web_processes(), keys.web_reports()]
    (lines,) = redis.execute_command(*command(ReadyWorkersScript(names)))  # type: ignore[no-untyped-call]
    return [orjson.loads(line) for line in lines]
