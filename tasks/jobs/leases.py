"""The worker's side of the store: tickets through the window, claims with a lease, completions, and their reaping.

Owns the calls of those transitions. What a user may do with a job is in `tasks.jobs.store`; what a worker does with a
claim is in `tasks.bulk.chunk_task`.
"""

import secrets
from collections.abc import Sequence
from typing import Any

import orjson
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.jobs.claims import IN_REDIS, Claim, ClaimCode, Completed, Completion, Ticket
from tasks.jobs.records import read_claim
from tasks.lanes import Lane, Service
from tasks.scripts import Argument, Scripts

__all__ = ["Leases"]

_DAY_MS = 86_400_000
_MAX_TICKET_DELAY_MS = 300_000
_REAP_ENTRIES = 200
# Attempts after which a chunk's remaining items are given up, as a multiple of `max_attempts`: far more than finding a
# bad item takes, so that a chunk whose workers were merely killed is not condemned.
_CEILING_FACTOR = 10
_LANES_KEPT = 10_000


class Leases:
    """Transitions of chunks. Thread-safe. All methods raise `redis.RedisError` when the server does not answer.

    Args:
        redis: client without `decode_responses`.
        settings: window, lease and time limits.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.settings = settings
        self._scripts = Scripts(redis)
        self._lanes: dict[str, Lane] = {}
        self._ttl_ms = int(settings.job_ttl_s * 1000)

    def dispatch(self, lane: Lane, head: str | None = None) -> list[Ticket]:
        """Give tickets to the jobs whose turn it is until the window is full, and return them for publication.

        Args:
            lane: the lane.
            head: the job whose turn it is, where the caller knows it from a completion; empty: no job waits.
        """
        if head is None:
            first: list[bytes] = self.redis.zrange(keys.lane_ready(lane), 0, 0)  # type: ignore[assignment]  # sync client
            head = first[0].decode() if first else ""
        tickets = []
        room = 1
        while head and room > 0:
            code, number, next_head, room, attempts = self._offer(lane, head)
            if code == b"TICKET":
                tickets.append(Ticket(head, int(number), again=attempts > 0))
            head = next_head.decode()
        return tickets

    def claim(self, job_id: str, chunk: int, worker_id: str, lease_s: float | None = None) -> Claim:
        """Take a chunk; the attempt is counted before anything is computed.

        Args:
            job_id: the job.
            chunk: number of the chunk.
            worker_id: who takes it.
            lease_s: how long the claim holds without a heartbeat; None: as the settings say.
        """
        lane = self.lane(job_id)
        if lane is None:
            return Claim(ClaimCode.GONE, job_id, chunk)
        ceiling = self.settings.max_attempts * _CEILING_FACTOR
        args = (chunk, worker_id, secrets.token_hex(4), self._lease_ms(lease_s), ceiling)
        return read_claim(job_id, chunk, self._run("claim", job_id, lane, args))

    def heartbeat(self, claim: Claim, progress: int, lease_s: float | None = None) -> bool:
        """Renew the lease if `progress`, counted from the claim, has grown; return whether to stop."""
        return self._answer(claim, "heartbeat", (claim.fence, progress, self._lease_ms(lease_s))) != b"GO"

    def mark(self, claim: Claim, positions: Sequence[int], lease_s: float | None = None) -> bool:
        """Note which items the device gets next, so that they are known if it dies of them; return whether to stop.

        The items that were noted before count as survived. The lease is renewed.
        """
        noted = orjson.dumps(list(positions))
        return self._answer(claim, "mark", (claim.fence, noted, self._lease_ms(lease_s))) != b"GO"

    def complete(self, claim: Claim, completion: Completion, pointer: str = IN_REDIS) -> tuple[Completed, str]:
        """Store the result and count it once; return what became of it, and the job whose turn is next.

        Args:
            claim: the claim.
            completion: counts and frame.
            pointer: where the frame lies already; in Redis it is stored here, in the same step in which it is counted.
        """
        lane = self.lane(claim.job_id)
        if lane is None:
            return Completed.GONE, ""
        blobs = [keys.job_result(claim.job_id, claim.chunk), keys.job_input(claim.job_id, claim.chunk)]
        counts: list[Argument] = [completion.completed, completion.failed, completion.truncated, completion.tokens]
        frame = completion.frame if pointer == IN_REDIS else b""
        args = [
            claim.chunk,
            claim.fence,
            *counts,
            pointer,
            len(completion.frame),
            frame,
            completion.error,
            completion.cached,
        ]
        code, _, head = self._run("complete", claim.job_id, lane, args, blobs)
        return Completed(code.decode()), head.decode()

    def release(self, claim: Claim, delay_s: float = 0.0) -> bool:
        """Give the chunk back as if it had not been claimed; return whether the claim still held.

        Args:
            claim: the claim.
            delay_s: no new ticket before; for a worker that is busy, not gone.
        """
        return self._answer(claim, "release", (claim.fence, int(delay_s * 1000), 0)) == b"OK"

    def fail(self, claim: Claim) -> bool:
        """Give the chunk back with its attempt counted; return whether the claim still held."""
        return self._answer(claim, "release", (claim.fence, 0, 1)) == b"OK"

    def reap(self, lane: Lane) -> list[Ticket]:
        """Take back overdue claims, end jobs whose deadline has passed; return tickets that must be published again."""
        entries, jobs = self._overdue(lane)
        for job_id in jobs:
            self._run("cancel", job_id.decode(), lane, ("expired",))
        return self._reap(lane, entries)

    def lane(self, job_id: str) -> Lane | None:
        """Return the bulk lane of a job, None when it is gone. It never changes, so it is read once."""
        lane = self._lanes.get(job_id)
        if lane is None:
            model: bytes | None = self.redis.hget(keys.job(job_id), "lane")  # type: ignore[assignment]  # sync client
            if model is None:
                return None
            if len(self._lanes) >= _LANES_KEPT:
                self._lanes.clear()
            lane = self._lanes[job_id] = Lane(model.decode(), Service.BULK)
        return lane

    # -- one script each

    def _lease_ms(self, lease_s: float | None) -> int:
        return int((self.settings.lease_s if lease_s is None else lease_s) * 1000)

    def _run(
        self,
        name: str,
        job_id: str,
        lane: Lane,
        args: Sequence[Argument] = (),
        more_keys: Sequence[str] = (),
        client: Redis | None = None,
    ) -> Any:
        lane_ttl_ms = self._ttl_ms + _DAY_MS
        names = [*_scope(job_id, lane), *more_keys, keys.job_totals()]
        return self._scripts.call(name, names, [job_id, lane_ttl_ms, *args], client)

    def _answer(self, claim: Claim, name: str, args: Sequence[Argument]) -> bytes:
        lane = self.lane(claim.job_id)
        if lane is None:
            return b"GONE"
        answer: bytes = self._run(name, claim.job_id, lane, (claim.chunk, *args))
        return answer

    def _offer(self, lane: Lane, job_id: str) -> tuple[bytes, bytes, bytes, int, int]:
        settings = self.settings
        args = (settings.window, 2 * settings.chunks_in_flight, int(settings.ticket_timeout_s * 1000))
        answer: tuple[bytes, bytes, bytes, int, int] = self._run(
            "dispatch", job_id, lane, args, [keys.lane_workers(lane.model)]
        )
        return answer

    def _overdue(self, lane: Lane) -> tuple[list[bytes], list[bytes]]:
        lane_keys = [keys.lane_inflight(lane), keys.lane_deadlines(lane)]
        entries, jobs = self._scripts.call("overdue", lane_keys, [self.settings.lease_s, _REAP_ENTRIES])
        return entries, jobs

    def _reap(self, lane: Lane, entries: Sequence[bytes]) -> list[Ticket]:
        tickets = []
        for entry in entries:
            job_id, _, number = entry.decode().rpartition(":")
            if self._run("reap", job_id, lane, (number, _MAX_TICKET_DELAY_MS)) == b"PUBLISH":
                tickets.append(Ticket(job_id, int(number)))
        return tickets


def _scope(job_id: str, lane: Lane) -> list[str]:
    """Return the keys that every transition of a job takes, in the order of `lua/_job.lua`."""
    own = [keys.job(job_id), keys.job_chunks(job_id), keys.job_pending(job_id), keys.job_events(job_id)]
    shared = [keys.lane_ready(lane), keys.lane_inflight(lane), keys.lane_clock(lane), keys.lane_deadlines(lane)]
    return [*own, *shared, keys.store_reserved(), keys.store_reserved_until(), keys.webhooks_due()]
