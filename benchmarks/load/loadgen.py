"""Load over HTTP from a few processes with raw keep-alive sockets, light enough not to be what is measured.

Owns three ways to load a server: `hold` (a number of clients that each ask again as soon as they are answered), `pace`
(requests at a fixed rate, whatever the answers do; latency counts from the moment a request was due, so that a server
that stalls is charged for all who would have come) and `drain` (a list of requests, as fast as possible).
What the requests say is the caller's; connections are in `benchmarks.load.wire`.
"""

import multiprocessing as mp
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.wire import Answer, Pool

__all__ = ["LoadGenerator", "Target", "Traffic", "request"]

_START_DELAY_S = 0.3


@dataclass(frozen=True, slots=True)
class Target:
    """Where the load goes, and which requests it is made of (whole HTTP requests, taken in turn)."""

    port: int
    requests: tuple[bytes, ...]


@dataclass(slots=True)
class Traffic:
    """What came of a load: latencies of good answers in ms, seconds that they took, answers by status (0: broken)."""

    latencies_ms: NDArray[np.float64]
    seconds: float
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return len(self.latencies_ms) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Return that percentile of the latencies; NaN when nothing came back."""
        return float(np.percentile(self.latencies_ms, percent)) if len(self.latencies_ms) else float("nan")

    @property
    def failures(self) -> int:
        """Answers that were not 200, lost connections included."""
        return sum(count for status, count in self.statuses.items() if status != 200)


def request(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """Return a whole POST request on a connection that stays open."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Accept: application/json\r\nConnection: keep-alive\r\n\r\n" + body


class LoadGenerator:
    """A few processes on the asking side's cores that stay up between loads."""

    def __init__(self, cores: Sequence[int]) -> None:
        self._processes = len(cores)
        self._pool = ProcessPoolExecutor(
            self._processes, mp.get_context("spawn"), initializer=os.sched_setaffinity, initargs=(0, tuple(cores))
        )

    def hold(self, target: Target, clients: int, duration_s: float, warmup_s: float = 1.0) -> Traffic:
        """Keep that many clients busy and count what was answered after the warm-up."""
        shares = _shares(clients, self._processes)
        starts_at = time.time() + _START_DELAY_S
        futures = [
            self._pool.submit(_hold, target, share, starts_at, warmup_s, duration_s, number)
            for number, share in enumerate(shares)
        ]
        return _merge([future.result() for future in futures], duration_s)

    def pace(self, target: Target, rate: float, duration_s: float) -> Traffic:
        """Send requests at that rate from one process, each on a free connection."""
        answers = self._pool.submit(_pace, target, rate, duration_s).result()
        return _merge([answers], duration_s)

    def drain(self, target: Target, clients: int) -> Traffic:
        """Send each request once with that many clients; `seconds` is the time until the last answer."""
        started_s = time.perf_counter()
        answers = self._pool.submit(_drain, target, clients).result()
        return _merge([answers], time.perf_counter() - started_s)

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)


def _shares(clients: int, processes: int) -> list[int]:
    """Spread the clients; few of them come from one process, so that they need no second core."""
    used = min(processes, max(1, clients // 4))
    return [clients // used + (number < clients % used) for number in range(used)]


def _merge(parts: Sequence[Sequence[Answer]], seconds: float) -> Traffic:
    answers = [answer for part in parts for answer in part]
    good = np.array([answer.latency_ms for answer in answers if answer.status == 200], dtype=np.float64)
    return Traffic(good, seconds, Counter(answer.status for answer in answers))


def _hold(
    target: Target, clients: int, starts_at: float, warmup_s: float, duration_s: float, offset: int
) -> list[Answer]:
    pool = Pool(target.port)
    requests, turn = target.requests, offset * 997  # processes must not ask for the same text at the same time
    time.sleep(max(0.0, starts_at - time.time()))
    counted_from_s = time.perf_counter() + warmup_s
    ends_s = counted_from_s + duration_s
    counted: list[Answer] = []
    for _ in range(clients):
        turn += 1
        pool.send(requests[turn % len(requests)])
    while (now_s := time.perf_counter()) < ends_s:
        for answer in pool.receive(ends_s - now_s):
            if counted_from_s <= answer.at_s < ends_s:
                counted.append(answer)
            turn += 1
            pool.send(requests[turn % len(requests)])
    pool.close()
    return counted


def _pace(target: Target, rate: float, duration_s: float) -> list[Answer]:
    pool = Pool(target.port)
    answers: list[Answer] = []
    started_s = time.perf_counter()
    total = int(rate * duration_s)
    for number in range(total):
        due_s = started_s + number / rate
        while (wait_s := due_s - time.perf_counter()) > 0:
            answers += pool.receive(wait_s)
        pool.send(target.requests[number % len(target.requests)], since_s=due_s)
    while pool.waiting:
        answers += pool.receive(60.0)
    pool.close()
    return answers


def _drain(target: Target, clients: int) -> list[Answer]:
    pool = Pool(target.port)
    waiting = list(reversed(target.requests))
    answers: list[Answer] = []
    for _ in range(min(clients, len(waiting))):
        pool.send(waiting.pop())
    while pool.waiting:
        for answer in pool.receive(60.0):
            answers.append(answer)
            if waiting:
                pool.send(waiting.pop())
    pool.close()
    return answers
