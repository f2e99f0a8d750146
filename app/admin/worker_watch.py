"""Watches the workers from outside: says once that one is sick, and has its chunks run elsewhere.

Owns a periodic thread of each web process, and what is done about a condition. The rules of a condition are
`tasks.presence.diagnosis`. Chunks of a silent or stuck worker are taken back before their lease ends; should it go on,
the fence of its claim keeps it from counting twice.
"""

import logging
import time
from collections.abc import Sequence
from typing import cast

from app.admin.worker_views import WorkerView, read_workers
from app.services import Services
from tasks import keys
from tasks.periodic import PeriodicThread

__all__ = ["WorkerWatch"]

_log = logging.getLogger(__name__)

_EVERY_S = 1.0
# A condition counts when it has lasted so long before our own eyes: after Redis stood still, all workers look silent.
_PROOF_S = 3.0
# Renewed at every look.
_ALERT_S = 30
# Nobody serves from these for the time being.
_IDLE = frozenset({"silent", "lost", "stuck"})
_WORKING = frozenset({"well", "growing", "failing"})


class WorkerWatch:
    """See the module.

    Args:
        live: the services of this process.
    """

    def __init__(self, live: Services) -> None:
        self._live = live
        # The condition of each worker that is not well, and since when it was seen here.
        self._since: dict[str, tuple[str, float]] = {}
        self._thread = PeriodicThread(self.look, _EVERY_S, "worker-watch")

    def start(self) -> None:
        """Watch from now on, for as long as this process lives."""
        self._thread.start()

    def look(self) -> None:
        """Look at all workers once.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        views = read_workers(self._live)
        before = set(self._since)
        sick = self._find_lasting([view for view in views if view.is_sick])
        for view in sick:
            self._say(view)
        for view in views:
            if not view.is_sick and view.member.card.worker_id in before:
                self._recover(view)
        if any(view.condition in _WORKING for view in views):
            self._move_chunks([view for view in sick if view.condition in _IDLE and view.holds])

    def _find_lasting(self, sick: Sequence[WorkerView]) -> list[WorkerView]:
        now_s = time.monotonic()
        before = self._since
        self._since = {}
        lasting = []
        for view in sick:
            worker_id = view.member.card.worker_id
            # From silent to lost it is the same trouble.
            condition = "silent" if view.condition == "lost" else view.condition
            known, since_s = before.get(worker_id, ("", now_s))
            self._since[worker_id] = (condition, since_s if known == condition else now_s)
            if now_s - self._since[worker_id][1] >= _PROOF_S:
                lasting.append(view)
        return lasting

    def _say(self, view: WorkerView) -> None:
        """Log the condition, once for all web processes, and note it in the jobs whose chunks the worker holds."""
        card, condition = view.member.card, self._since[view.member.card.worker_id][0]
        name = keys.worker_alert(card.worker_id)
        said = cast("bytes | None", self._live.redis.set(name, condition, ex=_ALERT_S, get=True))
        if said is not None and said.decode() == condition:
            return
        held = ", ".join(f"chunk {one.chunk} of {one.job_id}" for one in view.holds) or "nothing"
        _log.error("worker %s is %s: %s; it holds %s", card.worker_id, condition, view.problem, held)
        for job_id in {one.job_id for one in view.holds}:
            detail = {"worker": card.worker_id, "reason": view.problem}
            self._live.store.leases.note(job_id, f"worker_{condition}", detail)

    def _recover(self, view: WorkerView) -> None:
        worker_id = view.member.card.worker_id
        if self._live.redis.delete(keys.worker_alert(worker_id)):
            how = "is well again" if view.condition == "well" else f"is {view.condition} now"
            _log.warning("worker %s %s", worker_id, how)

    def _move_chunks(self, views: Sequence[WorkerView]) -> None:
        """Let others run what these hold; where there are no others, their leases go on."""
        leases = self._live.store.leases
        for view in views:
            for one in view.holds:
                if leases.take_back(one.job_id, one.chunk, view.member.card.worker_id):
                    _log.warning("chunk %s of %s is taken back and runs elsewhere", one.chunk, one.job_id)
