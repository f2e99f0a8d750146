"""`python -m benchmarks.load.burst URL`: a thousand connections at the same time, and what became of every request.

Owns the burst and its verdict: every request has to be answered with 200, or with 429 or 503 and an integer
`Retry-After` from 1 to 60; and of the admitted ones (all but 429 and 503) at least 99.9% have to be answered with 200.
All connections are open before the first request is sent. It measures no speed: one process of Python asks.
"""

import argparse
import asyncio
import json
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
from rich.console import Console
from rich.table import Table

__all__ = ["Burst", "Outcome", "burst", "main"]

LOST = "lost"
LATE = "late"
REFUSED = (429, 503)
SUCCESS_GOAL = 0.999
_PATH = "/v1/embeddings"


@dataclass(frozen=True)
class Burst:
    """What is sent where: `requests` in all, over so many connections that each ask again when answered."""

    url: str
    connections: int = 1000
    requests: int = 10_000
    model: str = "all-MiniLM-L6-v2"
    key: str = "none"
    timeout_s: float = 60.0

    def request(self, number: int) -> bytes:
        """Return a whole request; each has a text of its own, so that no cache answers."""
        parts = urlsplit(self.url)
        body = json.dumps({"model": self.model, "input": f"Passage number {number} of a burst."}).encode()
        lines = (
            f"POST {parts.path.rstrip('/').removesuffix('/v1')}{_PATH} HTTP/1.1",
            f"Host: {parts.netloc}",
            f"Authorization: Bearer {self.key}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "\r\n",
        )
        return "\r\n".join(lines).encode() + body


@dataclass(slots=True)
class Outcome:
    """Latencies in ms by status (`lost`: no whole answer, `late`: none in time), and what was wrong with answers."""

    latencies_ms: dict[int | str, list[float]] = field(default_factory=lambda: defaultdict(list))
    faults: Counter[str] = field(default_factory=Counter)
    connected: int = 0
    seconds: float = 0.0

    @property
    def counts(self) -> dict[int | str, int]:
        """Answers by status."""
        return {status: len(latencies) for status, latencies in self.latencies_ms.items()}

    @property
    def admitted(self) -> int:
        """Requests that were not turned away."""
        return sum(count for status, count in self.counts.items() if status not in REFUSED)

    @property
    def success(self) -> float:
        """Part of the admitted requests that was answered with 200."""
        return self.counts.get(200, 0) / self.admitted if self.admitted else 0.0

    def judge(self) -> list[str]:
        """Return what is not as it has to be; empty: all is well."""
        problems = [f"{count} x {fault}" for fault, count in self.faults.items()]
        problems += [f"{count} x {status}" for status, count in self.counts.items() if status not in {200, *REFUSED}]
        if not self.admitted:
            problems.append("no request was admitted")
        elif self.success < SUCCESS_GOAL:
            problems.append(f"{self.success:.2%} of the admitted requests succeeded, less than {SUCCESS_GOAL:.1%}")
        return problems


async def burst(plan: Burst) -> Outcome:
    """Open all connections, then let all ask at once until every request was sent and answered."""
    outcome, numbers = Outcome(), iter(range(plan.requests))
    opened = await asyncio.gather(*(_connect(plan) for _ in range(plan.connections)), return_exceptions=True)
    streams = [one for one in opened if not isinstance(one, BaseException)]
    outcome.connected = len(streams)
    outcome.faults.update(f"no connection ({type(one).__name__})" for one in opened if isinstance(one, BaseException))
    started_s = time.perf_counter()
    await asyncio.gather(*(_ask_in_turn(plan, pair, numbers, outcome) for pair in streams))
    outcome.seconds = time.perf_counter() - started_s
    return outcome


_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _connect(plan: Burst) -> _Streams:
    parts = urlsplit(plan.url)
    is_secure = parts.scheme == "https"
    port = parts.port or (443 if is_secure else 80)
    return await asyncio.wait_for(
        asyncio.open_connection(parts.hostname, port, ssl=is_secure or None), timeout=plan.timeout_s
    )


async def _ask_in_turn(plan: Burst, streams: _Streams, numbers: Iterator[int], outcome: Outcome) -> None:
    for number in numbers:
        started_s = time.perf_counter()
        status, stays_open = await _settle(plan, streams, number, outcome)
        outcome.latencies_ms[status].append((time.perf_counter() - started_s) * 1000)
        if not stays_open:
            streams[1].close()
            try:
                streams = await _connect(plan)
            except (OSError, TimeoutError) as error:
                outcome.faults[f"no connection ({type(error).__name__})"] += 1
                return
    streams[1].close()


async def _settle(plan: Burst, streams: _Streams, number: int, outcome: Outcome) -> tuple[int | str, bool]:
    """Send one request; return what became of it, and whether its connection can be used again."""
    try:
        status, headers, body = await asyncio.wait_for(_ask(streams, plan.request(number)), plan.timeout_s)
    except TimeoutError:
        return LATE, False
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
        return LOST, False
    outcome.faults.update(_inspect(status, headers, body))
    return status, headers.get("connection", "").lower() != "close"


async def _ask(streams: _Streams, request: bytes) -> tuple[int, dict[str, str], bytes]:
    reader, writer = streams
    writer.write(request)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    # Our answers to these requests always have a length; another server's chunked one is a lost answer here.
    body = await reader.readexactly(int(headers.get("content-length", "-1")))
    return int(head[0].split()[1]), headers, body


def _inspect(status: int, headers: Mapping[str, str], body: bytes) -> Iterator[str]:
    """Yield what an answer lacks."""
    if status in REFUSED:
        wait = headers.get("retry-after", "")
        if not (wait.isascii() and wait.isdigit() and 1 <= int(wait) <= 60):
            yield f"{status} with Retry-After {wait!r}"
    if "x-request-id" not in headers:
        yield f"{status} without x-request-id"
    try:
        answer = json.loads(body)
        whole = len(answer["data"]) == 1 if status == 200 else set(answer["error"]) >= {"message", "type", "code"}
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        yield f"{status} with a body that is not as promised"


def show(console: Console, plan: Burst, outcome: Outcome) -> None:
    """Print the table and the verdict."""
    title = f"{plan.requests:,} requests over {outcome.connected:,} connections in {outcome.seconds:.1f} s"
    table = Table("answer", "requests", "share", "p50 ms", "p99 ms", "longest ms", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    total = sum(outcome.counts.values())
    for status, latencies in sorted(outcome.latencies_ms.items(), key=lambda pair: str(pair[0])):
        p50, p99, longest = (f"{value:.0f}" for value in np.percentile(latencies, [50, 99, 100]))
        table.add_row(str(status), f"{len(latencies):,}", f"{len(latencies) / total:.2%}", p50, p99, longest)
    console.print(table)
    console.print(f"admitted {outcome.admitted:,}, of these answered with 200: {outcome.success:.3%}", highlight=False)
    problems = outcome.judge()
    for problem in problems:
        console.print(f"not as it has to be: {problem}", markup=False)
    console.print("every request was answered as promised" if not problems else "the burst failed")


def main(arguments: list[str] | None = None) -> int:
    """Run a burst, print what came of it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load.burst", description=__doc__.split("\n")[0])
    parser.add_argument("url", help="the server, such as http://127.0.0.1:8000")
    parser.add_argument("--connections", type=int, default=Burst.connections)
    parser.add_argument("--requests", type=int, default=Burst.requests)
    parser.add_argument("--model", default=Burst.model)
    parser.add_argument("--key", default=Burst.key)
    parser.add_argument("--timeout-s", type=float, default=Burst.timeout_s)
    plan = Burst(**vars(parser.parse_args(arguments)))
    _allow_files(plan.connections + 100)
    outcome = asyncio.run(burst(plan))
    show(Console(), plan, outcome)
    return 1 if outcome.judge() else 0


def _allow_files(wanted: int) -> None:
    """Raise this process's limit of open files, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


if __name__ == "__main__":
    sys.exit(main())
