"""Suite `web`: what the web tier itself costs: its start, its memory, and its part of a short request's time.

Owns also the check that a job and a synchronous call give the same vector for the same text.
"""

import sys
import time
from contextlib import ExitStack

import numpy as np

from benchmarks.bench import Bench
from benchmarks.corpus import lines, repeat
from benchmarks.load.watch import MemoryWatch, loads_library, resident_mb
from benchmarks.stacks.host import Hosted
from benchmarks.stacks.ours import MODEL, Ours
from benchmarks.stacks.processes import BUILD, Program, answers
from stack.embedded_redis import EmbeddedServer, free_port

__all__ = ["SUITE", "run"]

SUITE = "web"
PLACE = (SUITE, "Twolane")
_SHORT_TEXTS = 200
_SAME_TEXTS = 300
_UPLOAD_PASSAGE_CHARS = 200


def run(bench: Bench) -> None:
    """Measure the web process alone, then within a running stack."""
    for _ in range(bench.plan.rounds):
        _measure_start(bench)
    with ExitStack() as stack:
        ours = stack.enter_context(Ours("stack-web", bench.cores.server))
        data = str((BUILD / "data" / "bare").absolute())
        arguments = {"model": MODEL, "data_dir": data}
        engine = stack.enter_context(
            Hosted("engine-web", "benchmarks.devices.bare_engine:BareEngine", arguments, bench.cores.server)
        )
        for _ in range(bench.plan.rounds):
            _measure_overhead(bench, ours, engine)
        _measure_process(bench, ours)
        _compare_lanes(bench, ours)
        _measure_upload(bench, ours)


def _measure_start(bench: Bench) -> None:
    """From the start of the interpreter to the first good answer of `/livez`, as `python -m app`."""
    port = free_port()
    with EmbeddedServer(BUILD / "data" / "web-alone") as server:
        settings = {"TWOLANE_REDIS_URL": server.url, "PORT": str(port), "TWOLANE_PORT": str(port)}
        started_s = time.perf_counter()
        with Program("web-alone", [sys.executable, "-m", "app"], bench.cores.server, settings) as web:
            while not answers(port, "/livez"):
                if web.process.poll() is not None or time.perf_counter() - started_s > 60:
                    raise RuntimeError(f"the web process did not start: {web.tail()}")
                time.sleep(0.005)
            seconds = time.perf_counter() - started_s
    bench.sheet.add(PLACE, "start to first answer", seconds, "s", "lower")
    bench.say(f"    web process: first answer after {seconds:.2f} s")


def _measure_overhead(bench: Bench, ours: Ours, engine: Hosted) -> None:
    """Compare a request over HTTP with the same text given to an engine in process, both one at a time."""
    texts = bench.corpus.queries[:_SHORT_TEXTS]
    bare_ms = float(np.median(engine.run_each(texts).each_ms))
    target = ours.target([[text] for text in texts])
    http_ms = bench.load.hold(target, 1, max(2.0, bench.plan.hold_s / 2), warmup_s=0.5).percentile_ms(50)
    bench.sheet.add(PLACE, "one short text, engine in process, p50", bare_ms, "ms", "lower")
    bench.sheet.add(PLACE, "one short text over HTTP, p50", http_ms, "ms", "lower")
    bench.sheet.add(PLACE, "hop and HTTP", http_ms - bare_ms, "ms", "lower")
    bench.say(f"    one short text: {bare_ms:.2f} ms bare, {http_ms:.2f} ms over HTTP")


def _measure_process(bench: Bench, ours: Ours) -> None:
    largest = max(ours.web(), key=lambda process: process.memory_info().rss)
    bench.sheet.add(PLACE, "resident, web process", resident_mb([largest]), "MB", "lower", "after the interactive load")
    bench.sheet.add(PLACE, "resident, web tier with its parent", resident_mb(ours.web()), "MB", "lower")
    has_torch = any(loads_library(process, "libtorch") for process in ours.web())
    bench.sheet.add(PLACE, "torch loaded", float(has_torch), "of 1", "lower", "read from the running process's maps")


def _compare_lanes(bench: Bench, ours: Ours) -> None:
    """Embed the same texts one by one through the interactive lane and together through a job."""
    texts = bench.corpus.passages[:_SAME_TEXTS]
    job = ours.run_job(lines(texts)).vectors.astype(np.float64)
    single = np.concatenate([ours.embed([text]) for text in texts]).astype(np.float64)
    cosines = (job * single).sum(1) / np.linalg.norm(job, axis=1) / np.linalg.norm(single, axis=1)
    note = f"worst of {len(texts)}"
    bench.sheet.add(PLACE, "interactive and job, cosine", float(cosines.min()), "cosine", note=note)


def _measure_upload(bench: Bench, ours: Ours) -> None:
    """Stream a large corpus in and watch the web tier's memory; the job is cancelled, its size is what matters."""
    short = [text[:_UPLOAD_PASSAGE_CHARS] for text in bench.passages]
    count = bench.plan.upload_lines
    started_s = time.perf_counter()
    with MemoryWatch(ours.web(), every_s=0.02) as watch:
        job = ours.submit(lines(repeat(short, count)))
    seconds = time.perf_counter() - started_s
    ours.cancel(job["id"])
    note = f"{count:,} lines"
    bench.sheet.add(PLACE, "rise of memory during an upload", watch.highest_mb - watch.first_mb, "MB", "lower", note)
    bench.sheet.add(PLACE, "upload to 202", count / seconds, "lines/s", "higher", note)
    bench.say(f"    upload of {note}: {seconds:.1f} s, memory rose by {watch.highest_mb - watch.first_mb:.0f} MB")
