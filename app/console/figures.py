"""The figures at the head of the overview: what waits and how long, how calls fare, what is refused, how full Redis is.

Owns their reading, all of it from Redis, so that every web process shows the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.admin.worker_views import WorkerView
from app.services import Services
from tasks.lanes import Lane, Service
from tasks.presence.activity import Activity, read_activity
from tasks.presence.statistics import LaneStatistics, StoreStatistics, read_statistics

__all__ = ["Figures", "read_figures"]

# New jobs are refused above this share of Redis' maxmemory, see `_room.lua`.
_ROOM = 0.7


@dataclass(frozen=True, slots=True)
class Figures:
    """See the module.

    Attributes:
        drain_s: when no job waits any more; None: unknown, or nobody works on what waits.
        tokens, tokens_per_s: what waits in all lanes, and their speed.
        ready, expected: workers that serve, and all that have not left in order.
        oldest: the lane whose chunks have waited longest without a worker taking one; None: none waits.
        waiting_calls: interactive requests that no worker has taken.
        activity: calls, refusals and failures of late.
        store: memory of Redis, and counts of items since counting began.
        store_limit_bytes: what Redis may use; 0: no limit.
        room: share of that above which new jobs are refused.
    """

    drain_s: float | None
    tokens: float
    tokens_per_s: float
    ready: int
    expected: int
    oldest: LaneStatistics | None
    waiting_calls: int
    activity: Activity
    store: StoreStatistics
    store_limit_bytes: int
    room: float = _ROOM

    @property
    def series(self) -> list[list[float | None]]:
        """Minutes (seconds since the epoch) and tokens per second in each; the minute that runs is left out."""
        first, tokens = self.activity.first_minute, self.activity.tokens[:-1]
        return [[(first + place) * 60.0 for place in range(len(tokens))], [count / 60 for count in tokens]]


def read_figures(live: Services, workers: Sequence[WorkerView]) -> Figures:
    """Read the figures.

    Raises:
        redis.RedisError, tasks.errors.StoreUnavailable: Redis does not answer.
    """
    slugs = list(dict.fromkeys(card.slug for card in live.catalog.served))
    backlogs = [live.forecasts.backlog(Lane(slug, Service.BULK)) for slug in slugs]
    drains = [backlog.drain_s() for backlog in backlogs]
    known = [drain for drain in drains if drain is not None]
    store = read_statistics(live.redis, slugs)
    waiting = [lane for lane in store.lanes if lane.stalled_s > 0]
    return Figures(
        drain_s=max(known, default=0.0) if len(known) == len(drains) else None,
        tokens=sum(backlog.tokens for backlog in backlogs),
        tokens_per_s=sum(worker.member.card.tokens_per_s for worker in workers if not worker.is_gone),
        ready=sum(worker.condition in {"well", "growing", "failing"} for worker in workers),
        expected=sum(worker.condition != "stopped" for worker in workers),
        oldest=max(waiting, key=lambda lane: lane.stalled_s, default=None),
        waiting_calls=sum(lane.requests for lane in store.lanes if lane.lane.service is Service.INTERACTIVE),
        activity=read_activity(live.redis),
        store=store,
        store_limit_bytes=store.memory_limit_bytes or live.settings.store_max_bytes,
    )
