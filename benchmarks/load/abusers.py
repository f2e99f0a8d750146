"""`python -m benchmarks.load.abusers KIND PORT COUNT SECONDS [PATH]`: clients that stop an unprepared server.

Owns the kinds: readers that take 1.5 KB/s of what PATH gives, senders of large bodies at 1.5 KB/s, callers of a slow
model that ask again when they are told to, and small bodies that are costly to understand. Prints one line of JSON:
answers by status, and what refusals took.
"""

import asyncio
import contextlib
import gzip
import json
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

__all__ = ["main"]

_TRICKLE_BYTES, _TRICKLE_S = 750, 0.5
_LOST = "lost"
_REFUSALS = frozenset({"429", "503"})
# One pass of the fake device for each call: 16 texts fill its budget of tokens.
_SLOW_CALL = json.dumps({"model": "slow", "input": [f"{'word ' * 125}{number}" for number in range(16)]}).encode()
_GZIP = "Content-Encoding: gzip\r\n"


@dataclass
class Tally:
    """What became of the requests.

    Attributes:
        statuses: answers by status; `lost`: the connection ended without one.
        refused_ms: what refusals took.
    """

    port: int
    until_s: float
    statuses: Counter[str] = field(default_factory=Counter)
    refused_ms: list[float] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether no further request should be made."""
        return time.monotonic() >= self.until_s

    def note(self, status: str, took_s: float) -> None:
        """Count an answer."""
        self.statuses[status] += 1
        if status in _REFUSALS:
            self.refused_ms.append(took_s * 1000)

    def as_json(self) -> str:
        """Return the line that is printed."""
        ordered = sorted(self.refused_ms)
        at = {"p50": 0.5, "p99": 0.99, "worst": 1.0}
        refused = {
            name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] for name, part in at.items() if ordered
        }
        return json.dumps({"statuses": dict(self.statuses), "refused_ms": refused})


async def _open(port: int, *, window_bytes: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    connection = socket.socket()
    if window_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes)
    connection.settimeout(0)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=connection, limit=window_bytes or 2**16)


async def _ask(tally: Tally, request: bytes, **options: int) -> tuple[str, dict[str, str], asyncio.StreamReader, Any]:
    """Send a request on a connection of its own; return the status, the headers and the rest of the answer."""
    sent_s = time.monotonic()
    try:
        reader, writer = await _open(tally.port, **options)
        writer.write(request)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
    except (OSError, asyncio.IncompleteReadError):
        tally.note(_LOST, 0.0)
        return _LOST, {}, asyncio.StreamReader(), None
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    status = lines[0].split(" ", 2)[1]
    tally.note(status, time.monotonic() - sent_s)
    return status, headers, reader, writer


def _close(writer: Any) -> None:
    if writer is not None:
        writer.close()


async def _read_slowly(tally: Tally, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: t\r\n\r\n".encode()
    while not tally.over:
        status, headers, reader, writer = await _ask(tally, request, window_bytes=4096)
        with contextlib.suppress(OSError):
            while status == "200" and await reader.read(_TRICKLE_BYTES):
                if await _pause_or_end(tally):
                    break
        _close(writer)
        await _pause(status, headers)


async def _send_slowly(tally: Tally, _: str) -> None:
    head = b"POST /v1/jobs?model=fake HTTP/1.1\r\nHost: t\r\nContent-Type: application/x-ndjson\r\n"
    while not tally.over:
        sent_s = time.monotonic()
        try:
            reader, writer = await _open(tally.port)
            writer.write(head + b"Content-Length: 50000000\r\n\r\n")
            answer = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
            while not answer.done() and not tally.over:
                writer.write(b'"' + b"x" * (_TRICKLE_BYTES - 3) + b'"\n')
                await writer.drain()
                await asyncio.wait([answer], timeout=_TRICKLE_S)
            if not answer.done():
                answer.cancel()
                writer.close()
                return
            status = (await answer).split(b" ", 2)[1].decode()
            tally.note(status, time.monotonic() - sent_s)
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            tally.note(_LOST, 0.0)
        await asyncio.sleep(1)


async def _call(tally: Tally, _: str) -> None:
    await _repeat(tally, _post("/v1/embeddings", _SLOW_CALL))


async def _amplify(tally: Tally, which: str) -> None:
    await _repeat(tally, AMPLIFIERS[which]())


async def _repeat(tally: Tally, request: bytes) -> None:
    while not tally.over:
        status, headers, reader, writer = await _ask(tally, request)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(int(headers.get("content-length", "0")))
        _close(writer)
        await _pause(status, headers)


async def _pause_or_end(tally: Tally) -> bool:
    await asyncio.sleep(_TRICKLE_S)
    return tally.over


async def _pause(status: str, headers: dict[str, str]) -> None:
    """Wait as long as a refusal asks for."""
    if status != "200":
        await asyncio.sleep(float(headers.get("retry-after", "1")))


def _post(path: str, body: bytes, more: str = "", kind: str = "application/json") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _brackets() -> bytes:
    body = b'{"model": "fake", "input": "a", "ignored": [' + b"[]," * 22_000_000 + b"[]]}"
    return _post("/v1/embeddings", gzip.compress(body), _GZIP)


def _metadata() -> bytes:
    pairs = ",".join(f'"{number}":""' for number in range(2_000_000))
    body = '{"model": "fake", "type": "embeddings", "input": ["a"], "metadata": {' + pairs + "}}"
    return _post("/v1/jobs", gzip.compress(body.encode(), 1), _GZIP)


def _blank_lines() -> bytes:
    body = gzip.compress(b"\n" * 100_000_000)
    return _post("/v1/jobs?model=fake&dry_run=true", body, _GZIP, "application/x-ndjson")


def _query() -> bytes:
    body = {"model": "fake", "query": "word " * 200_000, "documents": ["a"] * 64}
    return _post("/v1/rerank", json.dumps(body).encode())


AMPLIFIERS: dict[str, Callable[[], bytes]] = {
    "brackets": _brackets,
    "metadata": _metadata,
    "blank lines": _blank_lines,
    "query": _query,
}
KINDS: dict[str, Callable[[Tally, str], Coroutine[Any, Any, None]]] = {
    "readers": _read_slowly,
    "senders": _send_slowly,
    "callers": _call,
    "amplifiers": _amplify,
}


async def _run(kind: str, tally: Tally, count: int, detail: str) -> None:
    await asyncio.gather(*(KINDS[kind](tally, detail) for _ in range(count)))


def main(arguments: list[str]) -> int:
    """Be such clients for a while and print what became of them."""
    kind, port, count, seconds, *detail = arguments
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    tally = Tally(int(port), time.monotonic() + float(seconds))
    asyncio.run(_run(kind, tally, int(count), " ".join(detail)))
    print(tally.as_json(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
