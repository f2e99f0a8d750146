"""Listens to Redis for lanes whose turns have changed, for the thread of a worker that waits for a small chunk.

Owns the subscription, one for all lanes of a worker. What is published, and when, is in `tasks/jobs/lua/_job.lua`; the
waiting is in `tasks.bulk.chunk_task`. A message may be lost with the connection, so that looks once a second as well.
"""

from redis import Redis

from tasks import keys
from tasks.bulk.device_sharing import HeldChunks
from tasks.periodic import PeriodicThread

__all__ = ["TurnsWatch"]

_BLOCK_S = 0.5  # and so the longest that the thread takes to notice its end
_RECONNECT_S = 0.2


class TurnsWatch:
    """Calls `held.note_turns` from `start()` to `stop()`.

    Args:
        redis: a client for blocking commands, see `connect(block_s=1)`.
        held: is noted to.
    """

    def __init__(self, redis: Redis, held: HeldChunks) -> None:
        self._redis, self._held = redis, held
        self._thread = PeriodicThread(self._listen, _RECONNECT_S, "turns")

    def start(self) -> None:
        """Listen from now on."""
        self._thread.start()

    def stop(self) -> None:
        """End. Safe to call twice, and without a start."""
        self._thread.stop(2 * _BLOCK_S)

    def _listen(self) -> None:
        with self._redis.pubsub() as subscription:  # type: ignore[no-untyped-call] # as redis-py has it
            subscription.psubscribe(keys.turns_pattern())
            while not self._thread.stopping:
                message = subscription.get_message(timeout=_BLOCK_S)
                if message is None:
                    continue
                # What was said before the subscription held was not heard, in whatever lane.
                self._held.note_turns(message["channel"].decode() if message["type"] == "pmessage" else "")
