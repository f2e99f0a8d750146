"""Whether Redis may evict keys: then jobs, results and chunk messages vanish without an error.

Owns the question and the sentence. Refuses nothing: a Redis with another policy works until it is full.
"""

import logging
from typing import Any

from redis import Redis

__all__ = ["may_evict", "warn_of_eviction"]

_log = logging.getLogger(__name__)
_SAFE = "noeviction"


def may_evict(memory: dict[str, Any]) -> bool:
    """Tell whether a Redis with this `INFO memory` throws keys away when it is full."""
    return str(memory.get("maxmemory_policy", _SAFE)) != _SAFE


def warn_of_eviction(redis: Redis) -> list[str]:
    """Return what an operator has to be warned of, and log it.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    memory = redis.info("memory")
    if not may_evict(memory):
        return []
    policy = memory["maxmemory_policy"]
    warning = f"Redis has maxmemory-policy {policy}: when it is full, jobs and results vanish; set it to {_SAFE}"
    _log.warning("%s", warning)
    return [warning]
