"""Writes a log line for each event of a job, whichever process it happened in.

Owns a periodic thread of each web process. Scripts put events into one list in the step that makes them true (`note` in
`tasks/jobs/lua/_job.lua`); the process that takes an event writes its line, so each has one in the whole installation.
"""

import logging
from collections.abc import Mapping
from typing import Any, cast

import orjson
from redis import Redis

from app.http.spans import trace_job
from tasks import keys
from tasks.jobs.job import TERMINAL
from tasks.jobs.listing import JobListing
from tasks.periodic import PeriodicThread

__all__ = ["EventLines"]

_log = logging.getLogger(__name__)
_EVERY_S = 1.0
_PER_TRIP = 200
_FAILURES = frozenset({"chunk_failed", "worker_lost", "failed"})


class EventLines:
    """See the module.

    Args:
        redis: a client that gives up quickly.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._listing = JobListing(redis)
        self._thread = PeriodicThread(self.write, _EVERY_S, "job-events")

    def start(self) -> None:
        """Write from now on, for as long as this process lives."""
        self._thread.start()

    def write(self) -> None:
        """Write the lines of what has happened.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        while events := cast("list[bytes] | None", self._redis.lpop(keys.job_lines(), _PER_TRIP)):
            for event in events:
                fields = orjson.loads(event)
                _write(fields)
                if fields["event"] in TERMINAL:
                    facts = {name: fields.get(name) for name in ("job", "tenant", "model")}
                    trace_job(self._listing.log(fields["job"]), facts)


def _write(event: Mapping[str, Any]) -> None:
    name, job_id = event["event"], event["job"]
    fields = {"at": event["at_ms"] / 1000, **{field: value for field, value in event.items() if field != "at_ms"}}
    level = logging.WARNING if name in _FAILURES else logging.INFO
    _log.log(level, "job %s of %s: %s", job_id, event["tenant"], name.replace("_", " "), extra=fields)
