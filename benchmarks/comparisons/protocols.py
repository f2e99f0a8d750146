"""`python -m benchmarks.comparisons.protocols`: small calls over HTTP, WebSocket and gRPC, side by side.

Owns the comparison: one stack with a fake model that computes nothing, and callers in Python that each ask again as
soon as they are answered: a thread and, but for gRPC's one channel, a connection each. The callers take as much of the
machine as the servers do, so the ratios say more than the figures.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
from rich.console import Console
from rich.table import Table
from websockets.sync.client import connect

from benchmarks.comparisons.small_calls import running_stack
from benchmarks.stacks.processes import Program, wait_until
from stack.embedded_redis import free_port
from twolane.rpc.twolane_pb2 import EmbedRequest
from twolane.rpc.twolane_pb2_grpc import TwolaneStub

__all__ = ["main"]

Call = Callable[[str], None]


def http_caller(stack: ExitStack, port: int) -> Call:
    """Return calls over a connection of their own."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    stack.callback(connection.close)

    def call(text: str) -> None:
        body = json.dumps({"model": "idle", "input": text, "encoding_format": "base64"})
        connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        assert answer["data"][0]["embedding"]

    return call


def websocket_caller(stack: ExitStack, port: int) -> Call:
    """Return calls over a connection of their own, one after the other."""
    connection = stack.enter_context(connect(f"ws://127.0.0.1:{port}/v1/stream", compression=None))

    def call(text: str) -> None:
        body = {"model": "idle", "input": text, "encoding_format": "base64"}
        connection.send(json.dumps({"id": 1, "path": "/v1/embeddings", "body": body}))
        answer = json.loads(connection.recv())
        assert answer["body"]["data"][0]["embedding"]

    return call


def grpc_caller(stack: ExitStack, port: int) -> Call:
    """Return calls over a channel; those to one address share a connection."""
    channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
    stub = TwolaneStub(channel)

    def call(text: str) -> None:
        answer = stub.Embed(EmbedRequest(model="idle", input=[text]))
        assert answer.data[0].embedding

    return call


@contextmanager
def running(folder: Path) -> Iterator[dict[str, int]]:
    """Start the stack, and yield the port of each protocol."""
    with ExitStack() as stack:
        web = stack.enter_context(running_stack(folder, 0, 1, 1))
        ports = {"WEBSOCKET_PORT": free_port(), "GRPC_PORT": free_port()}
        environment = {f"TWOLANE_{name}": str(port) for name, port in ports.items()}
        environment |= web.environment
        command = [sys.executable, "-m", "app.protocols"]
        program = Program("protocols", command, sorted(os.sched_getaffinity(0)), environment, folder=folder)
        stack.enter_context(program)
        wait_until(lambda: all(_listens(port) for port in ports.values()), program)
        yield {"http": web.port, "websocket": ports["WEBSOCKET_PORT"], "grpc": ports["GRPC_PORT"]}


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


CALLERS = {"http": http_caller, "websocket": websocket_caller, "grpc": grpc_caller}


def measure(kind: str, port: int, callers: int, seconds: float) -> tuple[float, float]:
    """Return requests per second and the median latency in ms."""
    taken_ms: list[float] = []
    with ExitStack() as stack:
        calls = [CALLERS[kind](stack, port) for _ in range(callers)]
        for call in calls:
            call("warm up")
        until_s = time.perf_counter() + seconds

        def ask(number: int, call: Call) -> None:
            mine = []
            while (start_s := time.perf_counter()) < until_s:
                call(f"passage {number} {len(mine)} of a search box")
                mine.append((time.perf_counter() - start_s) * 1000)
            taken_ms.extend(mine)

        threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(calls)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return len(taken_ms) / seconds, statistics.median(taken_ms)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print medians over the rounds; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparisons.protocols")
    parser.add_argument("--callers", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    found: defaultdict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    with running(Path.cwd()) as ports:
        for _ in range(options.rounds):
            for callers in options.callers:
                for kind, port in ports.items():
                    found[callers, kind].append(measure(kind, port, callers, options.seconds))
    table = Table("callers", "protocol", "requests/s", "p50 ms", title="medians")
    for (callers, kind), values in found.items():
        rate, p50_ms = (statistics.median(column) for column in zip(*values, strict=True))
        table.add_row(str(callers), kind, f"{rate:.0f}", f"{p50_ms:.2f}")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
