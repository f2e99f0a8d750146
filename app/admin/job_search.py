"""Jobs of all tenants: found by words, and changed one or many at a time.

Owns the words of a search and the actions of an operator. What an action does to a job is `tasks.jobs.store`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Self

from app.access.auth import Tenant
from app.services import Services
from app.submission.service import SubmissionService
from tasks.engine import Truncate
from tasks.errors import Conflict, InvalidRequest, NotFound
from tasks.jobs.job import TERMINAL, Job, JobState

__all__ = ["ACTIONS", "JobAction", "JobSearch", "act_on_job", "act_on_jobs", "find_jobs", "job_name"]

_log = logging.getLogger(__name__)

JobAction = Literal["pause", "resume", "cancel", "retry", "first"]
ACTIONS: tuple[JobAction, ...] = ("pause", "resume", "cancel", "retry", "first")
# Jobs that one search looks at, the newest first: a day's work, read in well under a second.
_MOST_READ = 5000
_GROUPS: Mapping[str, Callable[[Job], bool]] = {
    "active": lambda job: job.state not in TERMINAL,
    "failed-items": lambda job: job.counts.failed > 0,
    **{state.value: (lambda job, state=state: job.state is state) for state in JobState},  # type: ignore[misc] # mypy takes the default for an argument
}


@dataclass(frozen=True, slots=True)
class JobSearch:
    """What jobs are looked for; every word has to fit.

    Attributes:
        fields: `tenant`, `model`, `state`, `name` and `id` with what they are to hold, in lower case.
        metadata: keys of the job's metadata with what they are to hold.
        words: what is to stand anywhere in tenant, name, model or ID.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    words: Sequence[str] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `tenant:acme model:bge-m3 state:active meta.source=wiki words`.

        Raises:
            InvalidRequest: there is no such field or state; the message names those that there are.
        """
        fields: dict[str, str] = {}
        metadata: dict[str, str] = {}
        words: list[str] = []
        for word in text.lower().split():
            name, colon, value = word.partition(":")
            if word.startswith("meta.") and "=" in word:
                key, _, wanted = word.removeprefix("meta.").partition("=")
                metadata[key] = wanted
            elif colon and name in {"tenant", "model", "state", "name", "id"}:
                fields[name] = value
            elif colon and name.isalpha():
                raise InvalidRequest(
                    f"there is no field {name[:40]!r}: use tenant, model, state, name, id or meta.KEY="
                )
            else:
                words.append(word)
        if fields.get("state", "active") not in _GROUPS:
            raise InvalidRequest(f"state must be one of {', '.join(_GROUPS)}", param="state")
        return cls(fields, metadata, words)

    def fits(self, job: Job) -> bool:
        """Tell whether a job is one that is looked for."""
        has = {"tenant": job.tenant, "model": job.model, "name": job_name(job), "id": job.id}
        known = {str(key).lower(): str(value).lower() for key, value in _metadata(job).items()}
        anywhere = " ".join(has.values()).lower()
        checks = (
            *(
                _GROUPS[value](job) if name == "state" else value in has[name].lower()
                for name, value in self.fields.items()
            ),
            *(key in known and value in known[key] for key, value in self.metadata.items()),
            *(word in anywhere for word in self.words),
        )
        return all(checks)


def job_name(job: Job) -> str:
    """Return what the caller calls a job: its metadata's `name`, or nothing."""
    return str(_metadata(job).get("name", ""))


def _metadata(job: Job) -> Mapping[str, object]:
    found = job.extra.get("metadata")
    return found if isinstance(found, dict) else {}


def find_jobs(live: Services, search: JobSearch, limit: int, after: str | None = None) -> Sequence[Job]:
    """Return jobs of all tenants that fit, newest first; of very many, only the newest are looked at.

    Raises:
        NotFound: there is no job `after`.
    """
    return live.store.listing.find(None, limit, after, search.fits, _MOST_READ)


def act_on_job(live: Services, actor: Tenant, job_id: str, action: JobAction, truncate: Truncate | None = None) -> Job:
    """Change a job of any tenant, and log who had it done.

    `truncate` is for a retry: how texts are cut that were too long.

    Raises:
        NotFound: there is no such job.
        Conflict: its state does not allow it.
    """
    changes: Mapping[JobAction, Callable[[str, None], Job]] = {
        "pause": live.store.pause,
        "resume": live.store.resume,
        "cancel": live.store.cancel,
        "retry": partial(live.store.retry_failed, truncate=truncate),
        "first": live.store.run_first,
    }
    job = changes[action](job_id, None)
    _log.info("%s: %s of job %s of tenant %s", actor.actor, action, job.id, job.tenant)
    if action in {"resume", "retry", "first"}:
        SubmissionService(live, actor).publish(job.lane, job.chunks)
    return job


def act_on_jobs(
    live: Services, actor: Tenant, job_ids: Sequence[str], action: JobAction, truncate: Truncate | None = None
) -> tuple[int, list[str]]:
    """Change several jobs; return how many were changed, and why the others were not."""
    changed, refused = 0, []
    for job_id in job_ids:
        try:
            act_on_job(live, actor, job_id, action, truncate)
            changed += 1
        except (NotFound, Conflict) as error:
            refused.append(f"{job_id[-8:]}: {error.message}")
    return changed, refused
