"""Suite `abuse`: what one well-behaved caller and the probes notice while many others misbehave.

Owns the conditions: slow readers, slow senders, callers of a model that takes 300 ms for one call, and bodies that are
costly to understand. In each the same paced small calls are measured, a probe asks `/livez` every 200 ms, and the
memory of the web process is watched. Both models are fake: what is measured is the web.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.bench import Bench
from benchmarks.load.loadgen import Traffic
from benchmarks.load.watch import MemoryWatch
from benchmarks.stacks.cards import fake_card
from benchmarks.stacks.ours import Ours
from benchmarks.stacks.processes import BUILD, Program, answers, wait_until

__all__ = ["SUITE", "run"]

SUITE = "abuse"
_RATE = 20.0
_SECONDS = 20.0
_LEAD_S = 5.0  # until all abusers are connected
_LONGEST_END_S = 90.0
_JOB_ITEMS = 60_000
_KINDS = '"dense", "rerank"'


@dataclass(frozen=True, slots=True)
class _Condition:
    """Who misbehaves: their kind, how many there are, and a detail of that kind."""

    subject: str
    kind: str
    count: int
    detail: str = ""


def run(bench: Bench) -> None:
    """Measure the quiet server, then each condition, on one stack."""
    settings = _settings()
    with Ours("stack-abuse", bench.cores.server, settings, model="fake") as ours, _slow_worker(bench, ours, settings):
        job = ours.submit(b'"text %d"\n' % number for number in range(_JOB_ITEMS))
        ours.wait(job["id"])
        _measure(bench, ours, _Condition("nobody", "callers", 0))
        for condition in _conditions(bench, job["id"]):
            _measure(bench, ours, condition)


def _settings() -> dict[str, str]:
    catalog = BUILD / "abuse.toml"
    catalog.parent.mkdir(parents=True, exist_ok=True)
    quick, slow = (fake_card(name, 384, f"latency_ms = {ms}", _KINDS) for name, ms in (("fake", 2), ("slow", 300)))
    catalog.write_text(quick + slow)
    return {"TWOLANE_CATALOG_FILE": str(catalog.absolute()), "TWOLANE_MAX_BATCH_TOKENS": "2048"}


@contextmanager
def _slow_worker(bench: Bench, ours: Ours, settings: Mapping[str, str]) -> Iterator[None]:
    """Serve the slow model with a worker of its own: its passes delay nobody on the other one's device."""
    more = {"TWOLANE_REDIS_URL": ours.redis_url, "TWOLANE_MODELS": "slow", "TWOLANE_DATA_DIR": str(ours.data)}
    with Program(
        "abuse-slow", [sys.executable, "-m", "workers.launch"], bench.cores.server, {**settings, **more}
    ) as worker:
        wait_until(lambda: _is_ready(ours, "slow"), worker)
        ours.call("POST", "/v1/embeddings", json.dumps({"model": "slow", "input": "a first call"}).encode())
        yield


def _is_ready(ours: Ours, model: str) -> bool:
    ready: bool = ours.call("GET", f"/v1/models/{model}")["ready"]
    return ready


def _conditions(bench: Bench, job_id: str) -> Iterator[_Condition]:
    path = f"/v1/jobs/{job_id}/results?format=ndjson"
    counts = (128,) if bench.plan.quick else (128, 500, 2000)
    callers = (300,) if bench.plan.quick else (300, 3000)
    yield from (_Condition(f"{count} slow readers", "readers", count, path) for count in counts)
    yield from (_Condition(f"{count} slow bodies", "senders", count) for count in counts)
    yield from (_Condition(f"{count} callers of a slow model", "callers", count) for count in callers)
    for name in ("brackets", "metadata", "blank lines", "query"):
        yield _Condition(f"4 callers with {name}", "amplifiers", 4, name)


def _measure(bench: Bench, ours: Ours, condition: _Condition) -> None:
    place = (SUITE, condition.subject)
    seconds = bench.plan.pace_s if bench.plan.quick else _SECONDS
    target = ours.target([[f"a small call {number}"] for number in range(50)])
    with (
        MemoryWatch(ours.web()) as memory,
        _abused(bench, ours, condition, seconds) as abusers,
        _probed(ours) as probes,
    ):
        traffic = bench.load.pace(target, _RATE, seconds)
    bench.sheet.add(place, "small calls, p99", traffic.percentile_ms(99), "ms", "lower")
    bench.sheet.add(place, "small calls that failed", traffic.failures, "", "lower")
    bench.sheet.add(place, "probes that failed", probes.failed, "", "lower", f"of {probes.asked}")
    bench.sheet.add(place, "probes, worst", probes.worst_ms, "ms", "lower")
    bench.sheet.add(place, "web, highest", memory.highest_mb, "MB", "lower")
    _write_abusers(bench, place, condition, abusers)
    _say(bench, condition, traffic, probes, memory.highest_mb, abusers)


def _write_abusers(
    bench: Bench, place: tuple[str, str], condition: _Condition, found: dict[str, dict[str, float]]
) -> None:
    for name, value in found.get("refused_ms", {}).items():
        bench.sheet.add(place, f"refusals, {name}", value, "ms", "lower")
    if condition.kind == "callers" and condition.count:
        admitted = {status: count for status, count in found["statuses"].items() if status not in {"429", "503"}}
        share = 100 * admitted.get("200", 0) / max(1, sum(admitted.values()))
        bench.sheet.add(place, "admitted calls that succeeded", share, "%", "higher")


def _say(
    bench: Bench,
    condition: _Condition,
    traffic: Traffic,
    probes: "_Probes",
    mb: float,
    found: dict[str, dict[str, float]],
) -> None:
    bench.say(
        f"    {condition.subject}: p99 {traffic.percentile_ms(99):.0f} ms, answers {dict(traffic.statuses)}; "
        f"probes {probes.failed} of {probes.asked} failed, worst {probes.worst_ms:.0f} ms; web {mb:.0f} MB; {found}"
    )


@contextmanager
def _abused(bench: Bench, ours: Ours, condition: _Condition, seconds: float) -> Iterator[dict[str, dict[str, float]]]:
    """Have the abusers at work while the block runs; what became of them is there at its end."""
    found: dict[str, dict[str, float]] = {}
    if not condition.count:
        yield found
        return
    words = [condition.kind, str(ours.port), str(condition.count), str(seconds + _LEAD_S), condition.detail]
    command = [sys.executable, "-m", "benchmarks.load.abusers", *words]
    with Program("abusers", command, bench.cores.client) as program:
        time.sleep(_LEAD_S)
        yield found
        program.process.wait(_LONGEST_END_S)
        found.update(json.loads(program.tail().splitlines()[-1]))


@dataclass
class _Probes:
    """Probes of `/livez`, each on a connection of its own, as an orchestrator makes them."""

    asked: int = 0
    failed: int = 0
    worst_ms: float = 0.0


@contextmanager
def _probed(ours: Ours) -> Iterator[_Probes]:
    probes, stop = _Probes(), threading.Event()

    def probe() -> None:
        while not stop.wait(0.2):
            began_s = time.perf_counter()
            probes.failed += not answers(ours.port, "/livez")
            probes.asked += 1
            probes.worst_ms = max(probes.worst_ms, (time.perf_counter() - began_s) * 1000)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    try:
        yield probes
    finally:
        stop.set()
        thread.join()
