"""Suite `memory`: what each loaded model takes, and whether a worker stays as large as it was.

Owns one long job with the real model and the samples of the worker's memory meanwhile, and loading models into a worker
that has one.
"""

from urllib.parse import quote

from benchmarks.bench import Bench
from benchmarks.corpus import lines, repeat
from benchmarks.load.watch import MemoryWatch, resident_mb
from benchmarks.stacks.cards import COPIES, copies
from benchmarks.stacks.ours import Ours

__all__ = ["SUITE", "run"]

SUITE = "memory"
PLACE = (SUITE, "Twolane")
# Kernels for new shapes are compiled until there are plenty (`ShapeCache`), which is the case after so many texts.
_WARM_SHARE = 10
# Most texts are short, or 200,000 of them would take a quarter of an hour; each twentieth is a passage, so that
# every length keeps coming.
_PASSAGE_EVERY = 20
_LOADING_S = 300.0


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
    _load_more(bench)


def _load_more(bench: Bench) -> None:
    """Load the model again under other names, one by one, and unload it: what each takes and what comes back."""
    env = {"TWOLANE_CATALOG_FILE": str(copies())}
    with Ours("stack-loading", bench.cores.server, env) as ours:
        before = resident_mb(ours.workers())
        for name in (ours.model, *COPIES):
            if name != ours.model:
                ours.order(name, "load", _LOADING_S)
            (worker,) = ours.call("GET", f"/v1/models/{quote(name)}")["workers"]
            bench.sheet.add(PLACE, f"{name}, as the worker measures it", worker["memory_bytes"] / 1e6, "MB", "lower")
            bench.sheet.add(PLACE, f"{name}, loaded and warmed in", worker["load_s"], "s", "lower")
        full = resident_mb(ours.workers())
        for name in COPIES:
            ours.order(name, "unload", _LOADING_S)
        bench.sheet.add(PLACE, f"worker, {len(COPIES)} more models loaded", full, "MB", "lower")
        bench.sheet.add(PLACE, "worker, these unloaded again", resident_mb(ours.workers()), "MB", "lower")
        bench.say(f"    worker: {before:.0f} MB, {full:.0f} MB with {len(COPIES)} more models")
