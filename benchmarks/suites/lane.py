"""Suite `lane`: how fast a search box stays while a corpus is being embedded on the same cores.

Owns three conditions, measured in turn: an idle device, a saturating job with two lanes, and the same job with the
lanes switched off (`TWOLANE_LANES=false`: one queue in the order of arrival). Interactive requests come at a fixed rate
and their latency counts from when they were due, so that a stall is charged in full.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

from benchmarks.bench import Bench
from benchmarks.corpus import lines, repeat
from benchmarks.load.loadgen import Traffic
from benchmarks.stacks.ours import Ours
from config.settings import Settings

__all__ = ["SUITE", "run", "saturated"]

SUITE = "lane"
OURS, FIFO = "Twolane", "one FIFO (lanes off)"
_RATE = 5.0
_JOB_TEXTS = 60_000  # more than any condition works off; the rest is cancelled
_LOOK_S = 0.15  # often enough for whole chunks, seldom enough not to load the web process


@dataclass
class _Progress:
    """Items that a job had completed at each moment at which the count changed."""

    seen: list[tuple[float, int]] = field(default_factory=list)

    def rate(self) -> float:
        """Return items per second between the first and the last change: chunks come in whole."""
        if len(self.seen) < 3:
            return float("nan")
        (first_s, first), (last_s, last) = self.seen[1], self.seen[-1]
        return (last - first) / (last_s - first_s)


def run(bench: Bench) -> None:
    """Measure the three conditions in turn, and what bulk keeps of its rate."""
    with ExitStack() as stack:
        two_lanes = bench.try_start("the stack", lambda: Ours("stack-lane", bench.cores.server))
        if two_lanes is None:
            return
        stack.enter_context(two_lanes)
        one_queue = None
        if "lanes" in Settings.model_fields:
            off = {"TWOLANE_LANES": "false"}
            one_queue = bench.try_start("the stack, lanes off", lambda: Ours("stack-fifo", bench.cores.server, off))
        else:
            bench.sheet.leave_out(FIFO, "this version has no setting `lanes`")
        if one_queue is not None:
            stack.enter_context(one_queue)
        for number in range(bench.plan.rounds):
            bench.say(f"  round {number + 1} of {bench.plan.rounds}")
            _measure_two_lanes(bench, two_lanes)
            if one_queue is not None:
                _measure_one_queue(bench, one_queue)


def _measure_two_lanes(bench: Bench, ours: Ours) -> None:
    idle = _pace(bench, ours)
    _write(bench, OURS, "idle", idle)
    with saturated(bench, ours) as undisturbed:
        time.sleep(bench.plan.pace_s)
    with saturated(bench, ours) as disturbed:
        busy = _pace(bench, ours)
    _write(bench, OURS, "under bulk", busy)
    with saturated(bench, ours):
        held = bench.load.hold(ours.target([[q] for q in bench.corpus.queries]), 1, bench.plan.hold_s)
    _write(bench, OURS, "under bulk, 1 client closed loop", held)
    place = (SUITE, OURS)
    bench.sheet.add(place, "bulk alone", undisturbed.rate(), "texts/s", "higher")
    bench.sheet.add(place, f"bulk at {_RATE:.0f} interactive requests/s", disturbed.rate(), "texts/s", "higher")
    bench.sheet.add(place, "bulk kept", 100 * disturbed.rate() / undisturbed.rate(), "%", "higher")
    rise = busy.percentile_ms(99) / idle.percentile_ms(99)
    bench.sheet.add(place, "p99 under bulk by p99 idle", rise, "x", "lower")


def _measure_one_queue(bench: Bench, ours: Ours) -> None:
    with saturated(bench, ours) as progress:
        busy = _pace(bench, ours)
    _write(bench, FIFO, "under bulk", busy)
    metric = f"bulk at {_RATE:.0f} interactive requests/s"
    bench.sheet.add((SUITE, FIFO), metric, progress.rate(), "texts/s", "higher")


def _pace(bench: Bench, ours: Ours) -> Traffic:
    target = ours.target([[query] for query in bench.corpus.queries])
    return bench.load.pace(target, _RATE, bench.plan.pace_s)


def _write(bench: Bench, subject: str, condition: str, traffic: Traffic) -> None:
    note = f"{traffic.failures} failed" if traffic.failures else ""
    for name, percent in (("p50", 50), ("p99", 99)):
        value = traffic.percentile_ms(percent)
        bench.sheet.add((SUITE, subject), f"{condition}, {name}", value, "ms", "lower", note)
    worst = float(np.max(traffic.latencies_ms, initial=0.0))
    bench.sheet.add((SUITE, subject), f"{condition}, worst", worst, "ms", "lower")
    p50, p99 = traffic.percentile_ms(50), traffic.percentile_ms(99)
    bench.say(f"    {subject}, {condition}: p50 {p50:.1f} ms, p99 {p99:.1f} ms {note}")


@contextmanager
def saturated(bench: Bench, ours: Ours, texts: int = _JOB_TEXTS) -> Iterator[_Progress]:
    """Keep a job running that is longer than the block, and watch how fast it goes; it is cancelled at the end."""
    passages = bench.corpus.passages[: bench.plan.job_passages]
    job = ours.submit(lines(repeat(passages, texts)))
    progress, stop = _Progress(), threading.Event()
    watcher = threading.Thread(target=_watch, args=(ours, job["id"], progress, stop), daemon=True)
    try:
        _wait_for_start(ours, job["id"])
        watcher.start()
        yield progress
    finally:
        stop.set()
        if watcher.ident is not None:
            watcher.join()
        state = ours.job(job["id"])
        if state["status"] == "running":
            ours.cancel(job["id"])
        else:
            bench.sheet.leave_out("a saturated device", f"the job was {state['status']} before the measurement ended")
        while ours.job(job["id"])["status"] in {"running", "cancelling"}:
            time.sleep(_LOOK_S)


def _wait_for_start(ours: Ours, job_id: str) -> None:
    while not ours.job(job_id)["counts"]["completed"]:
        time.sleep(_LOOK_S)


def _watch(ours: Ours, job_id: str, progress: _Progress, stop: threading.Event) -> None:
    while not stop.wait(_LOOK_S):
        done = ours.job(job_id)["counts"]["completed"]
        if not progress.seen or progress.seen[-1][1] != done:
            progress.seen.append((time.perf_counter(), done))
