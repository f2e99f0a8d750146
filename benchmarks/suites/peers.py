"""Suite `peers`: the same model behind HTTP, ours and others', one server a time loaded and the others asleep.

Owns the interactive load (one short query a request, closed loop) and the bulk load (each in its own best way: a job
for us, 64 texts a request from four clients for the others).
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.corpus import count_tokens, lines
from benchmarks.load.loadgen import Target, request
from benchmarks.peers.servers import Server, start_antsk, start_infinity, start_infinity_onnx
from benchmarks.stacks.ours import Ours
from benchmarks.stacks.processes import Program, answers, wait_until
from stack.embedded_redis import free_port

__all__ = ["OURS", "SUITE", "run"]

SUITE = "peers"
OURS = "Twolane"
ANTSK = "AntSK-PyApi way"
_BULK_TEXTS, _BULK_CLIENTS = 64, 4
# The AntSK way needs minutes for what the others do in seconds: it gets a part of the passages, in the first round.
_SLOW_TEXTS = 256
# A server whose clients went away may go on with what they had asked for: for a minute, and on everybody's cores.
_REST_S = 180.0


def run(bench: Bench) -> None:
    """Measure all servers, taking turns."""
    _measure_generator(bench)
    with ExitStack() as stack:
        servers = list(_start(bench))
        for server in servers:
            stack.callback(server.close)
        for number in range(bench.plan.rounds):
            bench.say(f"  round {number + 1} of {bench.plan.rounds}")
            for server in servers:
                _measure_interactive(bench, server)
                _wait_for_rest(bench, server)
            for server in servers:
                _measure_bulk(bench, server, first=number == 0)
                _wait_for_rest(bench, server)


def _start(bench: Bench) -> Iterator[Ours | Server]:
    cores = bench.cores.server
    starts: list[tuple[str, Callable[[], Ours | Server]]] = [("the stack", lambda: Ours("stack-peers", cores))]
    if bench.with_peers:
        starts += [
            ("infinity-emb torch", lambda: start_infinity(cores, bench.device)),
            (ANTSK, lambda: start_antsk(cores, bench.device)),
        ]
    if bench.with_peers and bench.device == "cpu":
        starts.append(("infinity-emb onnx", lambda: start_infinity_onnx(cores)))
    for what, start in starts:
        server = bench.try_start(what, start)
        if server is not None:
            yield server


def _measure_generator(bench: Bench) -> None:
    """Write down what the load generator reaches against a server that does nothing: far above all others."""
    port = free_port()
    with Program(
        "trivial", [sys.executable, "-m", "benchmarks.load.trivial_server", str(port)], bench.cores.server
    ) as server:
        wait_until(lambda: answers(port, "/"), server)
        target = Target(port, (request("/", b"{}"),))
        for clients in bench.plan.clients:
            traffic = bench.load.hold(target, clients, 1.0, warmup_s=0.3)
            bench.sheet.add((SUITE, "load generator alone"), f"{clients} clients", traffic.rate, "requests/s")


def _measure_interactive(bench: Bench, server: Ours | Server) -> None:
    target = server.target([[query] for query in bench.corpus.queries])
    for clients in bench.plan.clients:
        # An answer takes a client longer the more there are: the warm-up has to see each of them once.
        warmup_s = min(6.0, 0.5 + clients / 40)
        traffic = bench.load.hold(target, clients, bench.plan.hold_s, warmup_s)
        place, label = (SUITE, server.name), f"{clients} client{'s' if clients > 1 else ''}"
        note = f"{traffic.failures} failed" if traffic.failures else ""
        bench.sheet.add(place, label, traffic.rate, "requests/s", "higher", note)
        bench.sheet.add(place, f"{label}, p50", traffic.percentile_ms(50), "ms", "lower")
        bench.sheet.add(place, f"{label}, p99", traffic.percentile_ms(99), "ms", "lower")
        bench.say(f"    {server.name}, {label}: {traffic.rate:.0f} requests/s, p50 {traffic.percentile_ms(50):.1f} ms")


def _measure_bulk(bench: Bench, server: Ours | Server, *, first: bool) -> None:
    texts = bench.passages
    if server.name == ANTSK:
        if not first:
            return
        texts = texts[:_SLOW_TEXTS]
    seconds = _job_s(server, texts) if isinstance(server, Ours) else _drain_s(bench, server, texts)
    note = "a job, submit to last byte" if isinstance(server, Ours) else "64 texts a request, 4 clients"
    place = (SUITE, server.name)
    bench.sheet.add(place, "bulk", len(texts) / seconds, "texts/s", "higher", f"{note}; {len(texts)} passages")
    bench.sheet.add(place, "bulk in tokens", count_tokens(texts).sum() / seconds, "tokens/s", "higher")
    bench.say(f"    {server.name}, bulk: {len(texts) / seconds:.0f} texts/s")


def _wait_for_rest(bench: Bench, server: Ours | Server) -> None:
    """Wait until the server sleeps, so that the next one has the cores to itself."""
    if not server.program.sleeps_within(_REST_S):
        bench.sheet.leave_out(f"rest of the cores after {server.name}", "it went on working for minutes")


def _job_s(server: Ours, texts: Sequence[str]) -> float:
    return server.run_job(lines(texts)).fetched_s


def _drain_s(bench: Bench, server: Server, texts: Sequence[str]) -> float:
    batches = [texts[start : start + _BULK_TEXTS] for start in range(0, len(texts), _BULK_TEXTS)]
    traffic = bench.load.drain(server.target(batches), _BULK_CLIENTS)
    if traffic.failures:
        bench.sheet.leave_out(f"{server.name}, bulk", f"{traffic.failures} of {len(batches)} requests failed")
    return traffic.seconds
