"""Workers as an operator sees them: what each said last, what is wrong with it, what it holds and when that runs again.

Owns the joining of cards, conditions and claims. The rules of a condition are `tasks.presence.diagnosis`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.services import Services
from tasks.jobs.holdings import Holding, read_holdings
from tasks.presence.diagnosis import SICK, Condition, diagnose, explain
from tasks.presence.fleet import FleetMember

__all__ = ["WorkerView", "read_workers", "render_worker"]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker, with what it holds."""

    member: FleetMember
    condition: Condition
    problem: str
    holds: Sequence[Holding]

    @property
    def is_sick(self) -> bool:
        """Whether somebody should look at it."""
        return self.condition in SICK

    @property
    def is_gone(self) -> bool:
        """Whether its process has ended or is given up."""
        return self.condition in {"stopped", "ended", "lost"}

    @property
    def runs_again_s(self) -> float | None:
        """In how many seconds the last of what it holds is taken back from it; None: it holds nothing."""
        return max((holding.left_s for holding in self.holds), default=None)


def read_workers(live: Services) -> list[WorkerView]:
    """Return the workers of the last day, the newest of each slot.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    holdings = read_holdings(live.redis, (card.slug for card in live.catalog))
    return [
        WorkerView(member, diagnose(member), explain(member), holdings.get(member.card.worker_id, ()))
        for member in live.fleet.members()
    ]


def render_worker(view: WorkerView) -> dict[str, Any]:
    """Return the worker object of the API."""
    card, member = view.member.card, view.member
    return {
        "id": card.worker_id,
        "object": "worker",
        "host": card.host,
        "pid": card.pid,
        "device": card.device,
        "state": card.state,
        "condition": view.condition,
        "problem": view.problem or None,
        "models": dict(card.models),
        "started_at": card.started_at,
        "silent_s": round(member.silent_s, 1),
        "tokens_per_s": round(card.tokens_per_s, 1),
        "usual_tokens_per_s": round(card.usual_tokens_per_s, 1),
        "busy": round(card.busy, 3),
        "passes": card.passes,
        "pass_s": round(card.pass_s, 1),
        "waiting_tokens": card.waiting_tokens,
        "memory_bytes": card.memory_bytes,
        "memory_total_bytes": card.memory_total_bytes,
        "memory_limit_bytes": card.memory_limit_bytes or None,
        "device_memory_bytes": card.device_memory_bytes,
        "device_memory_total_bytes": card.device_memory_total_bytes,
        "order": member.order or None,
        "restarts": [{"at": end.at, "reason": end.reason} for end in member.restarts],
        "holds": [
            {
                "job": one.job_id,
                "chunk": one.chunk,
                "attempt": one.attempt,
                "held_s": round(one.held_s, 1),
                "runs_again_in_s": round(max(0.0, one.left_s), 1),
            }
            for one in view.holds
        ],
    }
