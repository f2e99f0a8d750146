"""Keeps the jobs of a corpus going: the next ones are queued while the first is computed.

Owns the window of parts that are under way, which bounds memory, and the way around jobs that were cancelled or have
expired since an earlier run.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from twolane.answers import Job
from twolane.corpus import Corpus, EmbeddedCorpus, Part
from twolane.errors import JobEnded
from twolane.requests import Item

if TYPE_CHECKING:
    from twolane.client import Twolane

__all__ = ["LOST", "OnProgress", "run_corpus", "run_parts"]

OnProgress = Callable[[EmbeddedCorpus], None]
LOST = frozenset({"cancelling", "cancelled", "expired"})


def run_corpus(
    client: "Twolane", corpus: Corpus, items: Iterable[Item], on_progress: OnProgress | None = None
) -> Iterator[tuple[Part, Job]]:
    """Yield each part of a corpus with its job that has ended, in order.

    Raises:
        JobEnded: a job was cancelled, or expired, while it was waited for.
    """
    return run_parts(client, corpus, corpus.cut(items), on_progress)


def run_parts(
    client: "Twolane", corpus: Corpus, parts: Iterable[Part], on_progress: OnProgress | None = None
) -> Iterator[tuple[Part, Job]]:
    """Yield each part with its job that has ended, in order, see `run_corpus`."""
    waiting: deque[tuple[Part, Job]] = deque()
    coming, done = iter(parts), EmbeddedCorpus()
    while True:
        for part in itertools.islice(coming, corpus.window - len(waiting)):
            waiting.append((part, _submit(client, corpus, part)))
        if not waiting:
            return
        part, job = waiting.popleft()
        job = _wait(client, job, done, on_progress)
        done = done.plus(job)
        yield part, job


def _submit(client: "Twolane", corpus: Corpus, part: Part) -> Job:
    for number in itertools.count():
        job = client.jobs.submit(part.lines, corpus.options, key=part.key_of_try(number))
        if job.status not in LOST:
            return job
    raise AssertionError  # pragma: no cover - the count has no end


def _wait(client: "Twolane", job: Job, done: EmbeddedCorpus, on_progress: OnProgress | None) -> Job:
    if on_progress is None:
        ended = job if job.ended else client.jobs.wait(job.id)
    else:
        ended = client.jobs.wait(job.id, on_progress=lambda now: on_progress(done.plus(now)))
    if ended.status in LOST:
        raise JobEnded(ended.id, ended.status)
    return ended
