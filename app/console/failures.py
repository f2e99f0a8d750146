"""Why items of a job failed: grouped by code, each with its first items.

Owns the reading of failures out of the results. Shows codes, IDs and messages; no text of a corpus is in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from app.jobs.result_items import read_frame
from app.services import Services
from tasks.jobs.job import Job

__all__ = ["FailureGroup", "read_failures"]

# Results that are opened for one page; a job with more failing chunks is counted in part, and says so.
_MOST_CHUNKS = 50
_TABLE_PAGE = 1000
_FIRST = 3


@dataclass(slots=True)
class FailureGroup:
    """Items that failed for one reason.

    Attributes:
        code: the error's code.
        message: of the first of them.
        items: how many there are, as far as they were counted.
        first: index and ID (or None) of the first ones.
    """

    code: str
    message: str
    items: int = 0
    first: list[tuple[int, str | None]] = field(default_factory=list)


def read_failures(live: Services, job: Job) -> Sequence[FailureGroup]:
    """Return the groups, the largest first.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    groups: dict[str, FailureGroup] = {}
    opened = 0
    for start in range(0, job.chunks if job.counts.failed else 0, _TABLE_PAGE):
        for state in live.store.chunk_table(job.id, start, _TABLE_PAGE):
            if not state.failed or state.state != "done" or opened == _MOST_CHUNKS:
                continue
            opened += 1
            frame = live.blobs.get_result(job.id, state.index, state.pointer)
            if frame is not None:
                _enter(groups, frame)
    return sorted(groups.values(), key=lambda group: -group.items)


def _enter(groups: dict[str, FailureGroup], frame: bytes) -> None:
    chunk = read_frame(frame)
    for position, (code, message) in sorted(chunk.errors.items()):
        group = groups.setdefault(code, FailureGroup(code, message))
        group.items += 1
        if len(group.first) < _FIRST:
            group.first.append((chunk.start + position, chunk.ids[position] if chunk.ids is not None else None))
