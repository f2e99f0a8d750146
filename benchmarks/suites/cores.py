"""Suite `cores`: how many threads a worker should have, and whether it should be pinned.

Owns the contenders: thread counts from one to all cores, and the default; worker, web process, store and callers share
the cores, as they do for a user. Run it under `taskset` to see a smaller machine. Not part of a whole run: it decides
defaults, and no peer is in it.
"""

import os
from collections.abc import Mapping

from benchmarks.bench import Bench
from benchmarks.corpus import lines, repeat
from benchmarks.stacks.ours import Ours
from benchmarks.suites.lane import saturated

__all__ = ["SUITE", "run"]

SUITE = "cores"
_RATE = 20.0


def run(bench: Bench) -> None:
    """Measure each setting in turn, round by round."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    for number in range(bench.plan.rounds):
        bench.say(f"  round {number + 1} of {bench.plan.rounds}")
        for subject, env in _contenders(cores).items():
            with Ours("stack-cores", cores, env) as ours:
                _measure(bench, ours, subject)


def _contenders(cores: tuple[int, ...]) -> Mapping[str, Mapping[str, str]]:
    found = {"default": {"TWOLANE_THREADS": "0"}}
    for threads in range(1, len(cores) + 1):
        found[f"{threads} threads"] = {"TWOLANE_THREADS": str(threads)}
        pinned = ",".join(map(str, cores[:threads]))
        found[f"{threads} threads on cores of their own"] = {
            "TWOLANE_THREADS": str(threads),
            "TWOLANE_CPU_AFFINITY": pinned,
        }
    return found


def _measure(bench: Bench, ours: Ours, subject: str) -> None:
    place = (SUITE, subject)
    texts = repeat(bench.corpus.passages, bench.plan.passages)
    ours.wait(ours.submit(lines(texts))["id"])  # warm: every shape has come once
    done = ours.run_job(lines(repeat(bench.corpus.passages, 2 * bench.plan.passages)))
    rate = 2 * bench.plan.passages / done.fetched_s
    bench.sheet.add(place, "job alone", rate, "texts/s", "higher")
    target = ours.target([[query] for query in bench.corpus.queries])
    idle = bench.load.pace(target, _RATE, bench.plan.pace_s / 4)
    with saturated(bench, ours) as progress:
        busy = bench.load.pace(target, _RATE, bench.plan.pace_s / 2)
    bench.sheet.add(place, f"job beside {_RATE:.0f} small requests/s", progress.rate(), "texts/s", "higher")
    for condition, traffic in (("idle", idle), ("beside the job", busy)):
        for percent in (50, 99):
            value = traffic.percentile_ms(percent)
            bench.sheet.add(place, f"small request, {condition}, p{percent}", value, "ms", "lower")
    p50, p99 = busy.percentile_ms(50), busy.percentile_ms(99)
    bench.say(f"    {subject}: {rate:.0f} texts/s alone; small requests beside it p50 {p50:.1f} ms, p99 {p99:.1f} ms")
