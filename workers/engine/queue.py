"""The engine's queue: two classes of service per model, bounded in tokens, cleaned of what nobody waits for.

Owns the lock, the bounds and the deadlines. The order of rows inside a lane is in `row_order`; which class goes next
and how many rows fit into a pass are questions that the queue asks its taker.
"""

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

from tasks.errors import DeadlineExceeded, EngineClosed, LaneFull
from tasks.lanes import Service
from workers.engine.packing import Budget
from workers.engine.pending import Batch, Deadlines, PendingWork, Row
from workers.engine.row_order import BulkLane, InteractiveLane, RowLane
from workers.engine.traffic import CallTraffic

__all__ = ["Taker", "WorkQueue"]


class Taker(Protocol):
    """Who takes batches: the loop of a device. Its methods are called under the queue's lock and must be quick."""

    def choose(self, interactive: bool, bulk: bool) -> Service:  # noqa: FBT001 - called by position
        """Return the class that goes next, given in which classes rows wait; in one of them they do."""
        ...

    def serves(self, model: str, service: Service) -> bool:
        """Return whether this model's rows of this class are the taker's."""
        ...

    def budget(self, model: str, service: Service) -> Budget:
        """Return what bounds the next pass."""
        ...

    def fill_budget(self, model: str) -> Budget:
        """Return up to what size bulk rows go along with interactive ones."""
        ...

    def interrupted(self) -> bool:
        """Return whether the taker has something else to do than to wait; see `WorkQueue.wake`."""
        ...


class WorkQueue:
    """Rows that wait for the device. Thread-safe."""

    def __init__(
        self,
        max_tokens: int,
        window_tokens: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        short_first: bool = True,
    ) -> None:
        """Start empty.

        Args:
            max_tokens: bounds each class of service.
            window_tokens: bulk rows are sorted by length among so many.
            clock: gives the seconds in which deadlines are counted.
            short_first: whether short bulk requests go beside that window.
        """
        self.clock = clock
        self._max_tokens = max_tokens
        self.window_tokens = window_tokens
        self._short_first = short_first
        self._lock = threading.Lock()
        # One for each taker: waking a thread that has nothing to do costs more than taking a request in.
        self._changed: dict[Taker, threading.Condition] = {}
        self._lanes: dict[Service, dict[str, RowLane]] = {service: {} for service in Service}
        # Requests with rows in a lane, and their tokens there.
        self._waiting: dict[PendingWork, int] = {}
        self._tokens = dict.fromkeys(Service, 0)
        self._deadlines = Deadlines()
        self._traffic = CallTraffic()
        # Takers that wait for the arrival of a certain call, by its number; earlier ones need not wake them.
        self._awaited: dict[Taker, int] = {}
        self._closed = False

    def put(self, request: PendingWork, retry_after_s: Callable[[int], float]) -> None:
        """Let a request's rows wait.

        Args:
            request: has at least one row.
            retry_after_s: from the tokens that wait to the seconds in which they are worked off.

        Raises:
            LaneFull: the rows do not fit beside those that wait. Alone they always do, or they could never run.
            EngineClosed: the queue takes nothing any more.
        """
        (refused,) = self.put_all([request], retry_after_s)
        if refused is not None:
            raise refused

    def put_all(
        self, requests: Sequence[PendingWork], retry_after_s: Callable[[int], float]
    ) -> list[LaneFull | EngineClosed | None]:
        """Do the same for several; return for each the error that `put` raises, or None."""
        asked_s = self.clock()
        for request in requests:
            request.asked_s = asked_s
        with self._lock:
            expired = self._pop_expired()
            refused = [self._admit(request, retry_after_s) for request in requests]
        _expire(expired)
        for request, error in zip(requests, refused, strict=True):
            if error is None:
                request.future.add_done_callback(functools.partial(self._note_end, request))
        return refused

    def _admit(self, request: PendingWork, retry_after_s: Callable[[int], float]) -> LaneFull | EngineClosed | None:
        if self._closed:
            return EngineClosed("this worker is going away")
        tokens, waiting = request.tokens, self._tokens[request.service]
        if waiting and waiting + tokens > self._max_tokens:
            return LaneFull(f"{waiting} tokens wait in this worker already", retry_after_s=retry_after_s(waiting))
        self._add(request, tokens)
        return None

    def take(self, taker: Taker, timeout_s: float) -> Batch | None:
        """Remove and return the rows of the taker's next pass; None after the timeout, or when it is interrupted."""
        with self._lock:
            changed = self._condition(taker)
            changed.wait_for(lambda: self._closed or taker.interrupted() or bool(self._find(taker)), timeout_s)
            expired = self._pop_expired()
            found = self._find(taker)
            batch = self._take(taker, *found) if found else None
            self._call_for_rest()
        _expire(expired)
        return batch

    def await_calls(self, taker: Taker, calls: int, timeout_s: float) -> None:
        """Return when so many more calls have come, bulk rows wait, the taker is interrupted, or after the timeout."""
        with self._lock:
            number = self._awaited[taker] = self._traffic.arrived + calls
            self._condition(taker).wait_for(
                lambda: (
                    self._closed
                    or self._traffic.arrived >= number
                    or taker.interrupted()
                    or self.has_waiting(Service.BULK)
                ),
                timeout_s,
            )
            del self._awaited[taker]

    def wake(self) -> None:
        """Let every waiting `take` look again whether it is interrupted."""
        with self._lock:
            self._call_all()

    def end_all(self, error: Exception, model: str | None = None) -> None:
        """End everything that waits, or all that waits for one model (its key), with this error."""
        with self._lock:
            requests = [request for request in self._waiting if model in {None, request.model.key}]
            self._remove(set(requests))
        for request in requests:
            request.fail(error)

    def drop_lanes(self, model: str) -> None:
        """Forget a model (its key), for which nothing waits and nothing will come."""
        with self._lock:
            for lanes in self._lanes.values():
                lanes.pop(model, None)

    def forget(self, request: PendingWork) -> None:
        """Free the places of a request that has ended."""
        with self._lock:
            self._remove({request})

    def close(self) -> None:
        """Take nothing any more, and end what waits with EngineClosed."""
        with self._lock:
            self._closed = True
            self._call_all()
        self.end_all(EngineClosed("this worker is going away"))

    def waiting_tokens(self, service: Service) -> int:
        """Return the tokens that wait in a class of service."""
        return self._tokens[service]

    def has_waiting(self, service: Service) -> bool:
        """Return whether rows wait in a class of service."""
        return self._tokens[service] > 0

    def interactive_age_s(self) -> float:
        """Return how long ago the last interactive request came; infinity if none ever did."""
        return self._traffic.age_s(self.clock())

    def calls_per_s(self) -> float:
        """Return how many interactive requests a second come of late."""
        return self._traffic.calls_per_s(self.clock())

    def count_calls(self, after_s: float, until_s: float) -> int:
        """Return how many interactive requests came after one moment and not after another."""
        with self._lock:
            return self._traffic.count(after_s, until_s)

    def call_p99_s(self, model: str) -> float:
        """Return the 99th percentile of how long interactive requests took in the last minute; 0 without any."""
        with self._lock:
            return self._traffic.p99_s(model, self.clock())

    def _condition(self, taker: Taker) -> threading.Condition:
        if taker not in self._changed:
            self._changed[taker] = threading.Condition(self._lock)
        return self._changed[taker]

    def _add(self, request: PendingWork, tokens: int) -> None:
        service, model = request.service, request.model.key
        lanes = self._lanes[service]
        if model not in lanes:
            parallel = request.model.backend.parallel
            bulk = service is Service.BULK
            ours = BulkLane(self.window_tokens, parallel, short_first=self._short_first) if bulk else InteractiveLane()
            lanes[model] = ours
        lanes[model].put(request)
        self._waiting[request] = tokens
        self._tokens[service] += tokens
        self._deadlines.add(request, self._waiting)
        if service is Service.INTERACTIVE:
            self._traffic.note_arrival(self.clock())
        self._call(model, service)

    def _call(self, model: str, service: Service) -> None:
        """Wake those who may take these rows, and do not wait for more calls first."""
        for taker, changed in self._changed.items():
            awaits_more = service is Service.INTERACTIVE and self._traffic.arrived < self._awaited.get(taker, 0)
            if taker.serves(model, service) and not awaits_more:
                changed.notify()

    def _call_for_rest(self) -> None:
        """Wake the takers of what is left: they may have waited for other rows to be gone."""
        for service, lanes in self._lanes.items():
            for model, lane in lanes.items():
                if len(lane):
                    self._call(model, service)

    def _call_all(self) -> None:
        for changed in self._changed.values():
            changed.notify()

    def _find(self, taker: Taker) -> tuple[str, Service] | None:
        """Return the model and class whose turn it is, if it is the taker's."""
        if not self._waiting:
            return None
        service = taker.choose(self.has_waiting(Service.INTERACTIVE), self.has_waiting(Service.BULK))
        lanes = self._lanes[service].items()
        return next(((name, service) for name, lane in lanes if len(lane) and taker.serves(name, service)), None)

    def _take(self, taker: Taker, model: str, service: Service) -> Batch:
        contended = all(map(self.has_waiting, Service))
        lanes = self._lanes[service]
        # To the end of the line: models with waiting rows take turns.
        lanes[model] = lanes.pop(model)
        rows = lanes[model].take(taker.budget(model, service))
        if service is Service.INTERACTIVE:
            rows += self._fill(taker, model, rows)
            rows.sort(key=len)
        taken: defaultdict[PendingWork, int] = defaultdict(int)
        for row in rows:
            taken[row.request] += len(row)
        for request, tokens in taken.items():
            self._subtract(request, tokens)
        return Batch(model, service, rows, contended)

    def _fill(self, taker: Taker, model: str, rows: Sequence[Row]) -> list[Row]:
        """Take bulk rows along in a pass for these interactive ones."""
        lane = self._lanes[Service.BULK].get(model)
        if not isinstance(lane, BulkLane) or not taker.serves(model, Service.BULK):
            return []
        return lane.take_beside(rows, taker.fill_budget(model))

    def _subtract(self, request: PendingWork, tokens: int) -> None:
        self._tokens[request.service] -= tokens
        self._waiting[request] -= tokens
        if not self._waiting[request]:
            del self._waiting[request]

    def _pop_expired(self) -> list[PendingWork]:
        """Remove what is past its deadline, so that the device never sees it; the caller ends it without the lock."""
        expired = [request for request in self._deadlines.pop_until(self.clock()) if request in self._waiting]
        self._remove(set(expired))
        return expired

    def _remove(self, requests: set[PendingWork]) -> None:
        present = {request for request in requests if request in self._waiting}
        for request in present:
            self._subtract(request, self._waiting[request])
        for service in {request.service for request in present}:
            for lane in self._lanes[service].values():
                lane.drop(present)
        if present:
            self._call_for_rest()

    def _note_end(self, request: PendingWork, _ended: object) -> None:
        if request.future.cancelled():
            self.forget(request)
        elif request.service is Service.INTERACTIVE:
            now_s = self.clock()
            with self._lock:
                self._traffic.note_answer(request.model.card.name, now_s, now_s - request.asked_s)


def _expire(requests: list[PendingWork]) -> None:
    for request in requests:
        request.fail(DeadlineExceeded("the deadline passed before the device could take this"))
