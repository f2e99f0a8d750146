"""Suite `memory`: whether a worker stays as large as it was.

Owns one long job with the real model and the samples of the worker's memory meanwhile.
"""

from benchmarks.bench import Bench
from benchmarks.corpus import lines, repeat
from benchmarks.ours import Ours
from benchmarks.watch import MemoryWatch, resident_mb

__all__ = ["SUITE", "run"]

SUITE = "memory"
PLACE = (SUITE, "Twolane")
# Kernels for new shapes are compiled until there are plenty (`ShapeCache`), which is the case after so many texts.
_WARM_SHARE = 10
# Most texts are short, or 200,000 of them would take a quarter of an hour; each twentieth is a passage, so that
# every length keeps coming.
_PASSAGE_EVERY = 20


def run(bench: Bench) -> None:
    """Warm the worker, then watch it over a long job and compare the job's first tenth with its last."""
    mixed = list(bench.corpus.queries)
    mixed[::_PASSAGE_EVERY] = bench.passages[: len(mixed[::_PASSAGE_EVERY])]
    count = bench.plan.memory_texts
    with Ours("stack-memory", bench.cores.server) as ours:
        bench.sheet.add(PLACE, "worker, model loaded and warm", resident_mb(ours.workers()), "MB", "lower")
        warm = ours.submit(lines(repeat(mixed, count // _WARM_SHARE)))
        ours.wait(warm["id"])
        with MemoryWatch(ours.workers(), every_s=0.5) as watch:
            job = ours.submit(lines(repeat(mixed, count)))
            ours.wait(job["id"])
    note = f"{count:,} texts, one in {_PASSAGE_EVERY} a passage"
    first, last = watch.mean_mb(0.0, 0.1), watch.mean_mb(0.9, 1.0)
    bench.sheet.add(PLACE, "worker, highest", watch.highest_mb, "MB", "lower", note)
    bench.sheet.add(PLACE, "worker, first tenth", first, "MB", "lower", note)
    bench.sheet.add(PLACE, "worker, last tenth", last, "MB", "lower", note)
    bench.sheet.add(PLACE, "worker, change", 100 * (last / first - 1), "%", "lower", note)
    bench.say(f"    worker: {first:.0f} MB, then {last:.0f} MB, highest {watch.highest_mb:.0f} MB")
