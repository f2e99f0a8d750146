"""What is wrong with a worker, as another process sees it: silent, stuck, failing or growing.

Owns the rules. They rest on what the worker said last and on how long ago that was, so that a frozen process, a
host that is gone and a cut network are seen alike, and every reader of the same cards comes to the same result.
"""

from typing import Literal

from tasks.presence.fleet import FleetMember

__all__ = ["SICK", "SILENT_AFTER_S", "Condition", "diagnose", "explain"]

Condition = Literal["well", "loading", "draining", "stopped", "ended", "silent", "lost", "stuck", "failing", "growing"]

# A worker is heard of every second.
SILENT_AFTER_S = 5.0
_LOST_AFTER_S = 300.0
# A pass that takes longer than this, and than any before it did twice, makes no progress.
_STUCK_AFTER_S, _SLOWER = 10.0, 2.0
# Memory that a worker took since it was ready, as a share of what it had then; caches of shapes and buffers are less.
_GROWN, _GROWN_LEAST_BYTES = 1.0, 2**30
_NEAR_LIMIT = 0.9
SICK: frozenset[Condition] = frozenset({"silent", "lost", "stuck", "failing", "growing"})


def diagnose(member: FleetMember) -> Condition:
    """Return the worker's condition; only `well` and the first four are as they should be."""
    card = member.card
    if member.end is not None or card.state == "stopped":
        return "ended" if member.end is not None else "stopped"
    if member.silent_s > SILENT_AFTER_S:
        return "silent" if member.silent_s <= _LOST_AFTER_S else "lost"
    if card.pass_s > max(_STUCK_AFTER_S, _SLOWER * card.slowest_pass_s):
        return "stuck"
    if card.state != "ready":
        return card.state
    if "failed" in card.models.values():
        return "failing"
    return "growing" if _grows(member) else "well"


def explain(member: FleetMember) -> str:
    """Return a sentence about a worker that is not well; empty for one that is."""
    card, condition = member.card, diagnose(member)
    failed = ", ".join(name for name, state in card.models.items() if state == "failed")
    grown = f"its memory grew from {_gb(card.memory_ready_bytes)} to {_gb(card.memory_bytes)} GB"
    sentences: dict[str, str] = {
        "silent": f"nothing was heard of it for {member.silent_s:.0f} s",
        "lost": f"nothing was heard of it for {member.silent_s:.0f} s",
        "stuck": f"its device has been in one pass for {card.pass_s:.0f} s",
        "failing": f"{failed} fails",
        "growing": grown + (f", its limit is {_gb(card.memory_limit_bytes)}" if card.memory_limit_bytes else ""),
        "ended": member.end.reason if member.end else "",
        "stopped": card.reason,
        "draining": card.reason,
    }
    return sentences.get(condition, "")


def _grows(member: FleetMember) -> bool:
    card = member.card
    if card.memory_limit_bytes and card.memory_bytes > _NEAR_LIMIT * card.memory_limit_bytes:
        return True
    grown = card.memory_bytes - card.memory_ready_bytes
    return card.memory_ready_bytes > 0 and grown > max(_GROWN * card.memory_ready_bytes, _GROWN_LEAST_BYTES)


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f}"
