"""Results while a job still runs: its chunks in input order, each as soon as it and all before it have ended.

Owns the waiting, and the last line that says where to go on. How items look is in `app.jobs.results`.
"""

import math
import time
from collections.abc import Iterator

from app.http.responses import encode_json
from app.jobs.results import Results
from tasks.jobs.job import ChunkState, Job

__all__ = ["IDLE_S", "LONGEST_S", "PAUSE_S", "FollowedResults"]

# A fast job changes eighty times a second; read in fewer and larger steps.
PAUSE_S = 0.25
# Proxies and browsers give up on a connection that is silent for longer.
IDLE_S = 15.0
# A stream holds a thread; its reader comes back and goes on where it was.
LONGEST_S = 600.0
_PAGE = 256
_ENDED = frozenset({"done", "dropped"})


class FollowedResults(Results):
    """The results of a job, whether it has ended or not; reading waits for what is still computed."""

    @staticmethod
    def _require_readable(job: Job) -> None:
        """See `Results`: these can always be read."""

    def settled(self, first: int = 0) -> Iterator[ChunkState | None]:
        """Yield chunks in order as they end, None at once and then every few seconds while none does.

        Ends with the job, or after ten minutes.
        """
        at, until_s, seen_s = first, time.monotonic() + LONGEST_S, -math.inf
        while at < self.job.chunks:
            ended = self.job.ended
            page = self._live.store.chunk_table(self.job.id, at, _PAGE)
            for state in page:
                if state.state not in _ENDED and not ended:
                    break
                yield state
                at, seen_s = at + 1, time.monotonic()
            else:
                continue
            now_s = time.monotonic()
            if now_s > until_s:
                return
            if now_s - seen_s > IDLE_S:
                yield None
                seen_s = now_s
            time.sleep(PAUSE_S)
            self.job = self._live.store.wait(self.job.id, self.job.tenant, self.job.version, IDLE_S)
        self.job = self._live.store.get(self.job.id, self.job.tenant)

    def last_line(self, after: int, *, complete: bool) -> bytes:
        """Return the line that ends the stream: the job's state, and the index behind which to go on."""
        return encode_json({"status": self.job.state.value, "after": after, "complete": complete}) + b"\n"
