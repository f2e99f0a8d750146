"""What `create.lua` is given: a new job, its chunks, its idempotency key, and its outcome when it is finished already.

Owns the order of these arguments. Calls nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from config.settings import Settings
from tasks import keys
from tasks.jobs.model import ChunkRecord, Counts, Idempotency, NewJob
from tasks.jobs.records import write_chunk, write_job
from tasks.scripts import Argument

__all__ = ["Creation", "Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts, tokens and result frame of a job that was answered at once."""

    counts: Counts
    tokens: int
    frame: bytes

    def arguments(self) -> list[Argument]:
        """Return the script's last two arguments."""
        error = "" if self.counts.completed else "no item could be computed"
        values = {
            "completed": self.counts.completed,
            "failed": self.counts.failed,
            "truncated": self.counts.truncated,
            "tokens": self.tokens,
            "cached": self.counts.cached,
            "error": error,
        }
        return [orjson.dumps(values), self.frame]


@dataclass(frozen=True, slots=True)
class Creation:
    """One call to create a job."""

    job: NewJob
    chunks: Sequence[ChunkRecord]
    idempotency: Idempotency | None = None
    outcome: Outcome | None = None

    def more_keys(self) -> list[str]:
        """Return the keys behind those of every transition."""
        key = self.idempotency.key if self.idempotency else ""
        named = [keys.tenant_jobs(self.job.tenant), keys.idempotency(self.job.tenant, key)]
        return [*named, keys.store_uploads(), keys.job_result(self.job.id, 0)]

    def arguments(self, settings: Settings, replaces: str) -> list[Argument]:
        """Return the script's own arguments.

        Args:
            settings: how long a job lives, and the store's limit.
            replaces: a vanished job that the idempotency key may still name; empty: none.
        """
        job = self.job
        table = orjson.dumps([write_chunk(chunk) for chunk in self.chunks])
        payload_hash = self.idempotency.payload_hash if self.idempotency else ""
        deadline_in_ms = "" if job.deadline_in_s is None else int(job.deadline_in_s * 1000)
        outside = bool(settings.results_url) and job.result_bytes > settings.results_inline_bytes
        described: list[Argument] = [orjson.dumps(write_job(job, outside=outside)), table, payload_hash, replaces]
        limits: list[Argument] = [int(settings.job_ttl_s * 1000), settings.store_max_bytes]
        sizes: list[Argument] = [job.input_bytes, 0 if outside else job.result_bytes, deadline_in_ms]
        return [*described, *limits, *sizes, *(self.outcome.arguments() if self.outcome else ["", ""])]
