"""Suite `jobs`: what jobs cost beside the model: per chunk, per item, per byte, and after a crash.

Owns the measurements with fake models. Redis' memory is what it says of itself.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from redis import Redis

from benchmarks.bench import Bench
from benchmarks.corpus import lines, repeat
from benchmarks.load.watch import MemoryWatch
from benchmarks.stacks.cards import FAKE_SLOW, FAKE_WIDE, fake_cards
from benchmarks.stacks.host import Hosted
from benchmarks.stacks.ours import Ours
from benchmarks.stacks.processes import BUILD, hold_to_cores
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks.jobs.store import JobStore

__all__ = ["SUITE", "run"]

SUITE = "jobs"
PLACE = (SUITE, "Twolane")
_CHUNK_TEXTS = 20 * 256
_MEMORY_TEXTS = 20_000
_SLOW_CHUNK_TEXTS = 16
_SETTLE_S = 1.0
_LOOK_S = 0.01

_T = TypeVar("_T")


def run(bench: Bench) -> None:
    """Measure each in turn."""
    _measure_chunks(bench)
    env = {"TWOLANE_CATALOG_FILE": str(fake_cards())}
    with Ours("stack-fake", bench.cores.server, env, model="fake") as ours:
        for _ in range(bench.plan.rounds):
            _measure_job(bench, ours)
        _measure_many(bench, ours)
    with Ours("stack-wide", bench.cores.server, env, model=FAKE_WIDE) as ours:
        for _ in range(bench.plan.rounds):
            _measure_read(bench, ours)
        _measure_memory(bench, ours)
    slow = {**env, "TWOLANE_CHUNK_ITEMS": str(_SLOW_CHUNK_TEXTS)}
    with Ours("stack-slow", bench.cores.server, slow, model=FAKE_SLOW) as ours:
        for _ in range(bench.plan.rounds):
            _measure_recovery(bench, ours)


def _measure_chunks(bench: Bench) -> None:
    folder = BUILD / "data" / "chunks"
    with EmbeddedServer(folder) as server:
        hold_to_cores(server.pid, bench.cores.server)
        arguments = {"redis_url": server.url, "data_dir": str(folder.absolute())}
        env = {"TWOLANE_REDIS_URL": server.url}
        target = "benchmarks.devices.chunk_overhead:ChunkOverhead"
        with Hosted("chunk-overhead", target, arguments, bench.cores.server, env) as hosted:
            for _ in range(bench.plan.rounds):
                path = BUILD / "chunks.npy"
                hosted.run(list(repeat(bench.passages, _CHUNK_TEXTS)), save=path)
                spent_ms = np.load(path)
                note = f"{len(spent_ms)} chunks of {_CHUNK_TEXTS // len(spent_ms)} passages, 384 dimensions"
                bench.sheet.add(PLACE, "a chunk without the model, p50", np.median(spent_ms), "ms", "lower", note)
                bench.sheet.add(PLACE, "a chunk without the model, p99", np.quantile(spent_ms, 0.99), "ms", "lower")
    bench.say(f"    a chunk without the model: {np.median(spent_ms):.1f} ms")


def _measure_job(bench: Bench, ours: Ours) -> None:
    count = bench.plan.fake_items
    run = ours.run_job(lines(repeat(bench.corpus.queries, count)))
    note = f"{count:,} short texts, fake model, submit to last byte of npy"
    bench.sheet.add(PLACE, "job with the fake model", count / run.fetched_s, "items/s", "higher", note)
    bench.sheet.add(PLACE, "job with the fake model: upload", count / run.accepted_s, "items/s", "higher")
    computing_s = run.ended_s - run.accepted_s
    bench.sheet.add(PLACE, "job with the fake model: after the upload", count / computing_s, "items/s", "higher")
    bench.say(f"    fake job: {count / run.fetched_s:,.0f} items/s")


def _measure_many(bench: Bench, ours: Ours) -> None:
    """A very long job: what it takes of the web's and Redis' memory while it runs."""
    count = 10 * bench.plan.fake_items
    with Redis.from_url(ours.redis_url) as redis, MemoryWatch(ours.web()) as web:
        before, peak = _used_bytes(redis), 0
        started_s = time.perf_counter()
        job = ours.submit(lines(repeat(bench.corpus.queries, count)))
        while ours.job(job["id"])["status"] in {"queued", "running"}:
            peak = max(peak, _used_bytes(redis) - before)
            time.sleep(0.25)
        seconds = time.perf_counter() - started_s
    note = f"{count:,} short texts"
    bench.sheet.add(PLACE, "long job", count / seconds, "items/s", "higher", note)
    bench.sheet.add(PLACE, "long job: web memory rose by", web.highest_mb - web.first_mb, "MB", "lower", note)
    bench.sheet.add(PLACE, "long job: Redis' memory rose by", peak / 1e6, "MB", "lower", f"{note}, 64 dimensions")
    bench.say(f"    {note}: {count / seconds:,.0f} items/s, store +{peak / 1e6:.0f} MB")


def _measure_read(bench: Bench, ours: Ours) -> None:
    count = bench.plan.fake_items
    job = ours.submit(lines(repeat(bench.corpus.queries, count)))
    ours.wait(job["id"])
    started_s = time.perf_counter()
    size = len(ours.fetch(job["id"]))
    rate = size / 1e6 / (time.perf_counter() - started_s)
    bench.sheet.add(PLACE, "results read as npy", rate, "MB/s", "higher", f"{size / 1e6:.0f} MB")
    bench.say(f"    npy: {rate:.0f} MB/s")


def _measure_memory(bench: Bench, ours: Ours) -> None:
    """Redis' memory for waiting texts (the worker is stopped meanwhile) and for finished vectors."""
    texts = list(repeat(bench.passages, _MEMORY_TEXTS))
    text_bytes = sum(len(text.encode()) for text in texts)
    with Redis.from_url(ours.redis_url) as redis:
        with _frozen(ours):
            before = _used_bytes(redis)
            job = ours.submit(lines(texts))
            queued = _used_bytes(redis) - before
        ours.wait(job["id"])
        stored = _used_bytes(redis) - before
    vector_bytes = len(texts) * 384 * 4
    note = f"{len(texts):,} passages"
    bench.sheet.add(PLACE, "store per queued text", queued / len(texts), "bytes", "lower", note)
    bench.sheet.add(PLACE, "store by raw bytes, queued text", queued / text_bytes, "x", "lower", note)
    bench.sheet.add(PLACE, "store per finished vector", stored / len(texts), "bytes", "lower", note)
    bench.sheet.add(PLACE, "store by raw bytes, finished vector", stored / vector_bytes, "x", "lower", note)
    bench.say(f"    store: {queued / text_bytes:.2f} of the text, {stored / vector_bytes:.3f} of the vectors")


def _measure_recovery(bench: Bench, ours: Ours) -> None:
    """Seconds from SIGKILL of the worker to the first new claim of a chunk that it held.

    The slow fake model takes 0.4 s for any batch, so a worker is always killed with chunks in its hands. They are
    small, since they are computed text by text afterwards.
    """
    job = ours.submit(lines(repeat(bench.corpus.queries, 40 * _SLOW_CHUNK_TEXTS)))
    with Redis.from_url(ours.redis_url) as redis:
        store = JobStore(redis, Settings(_env_file=None, redis_url=ours.redis_url))
        held = _wait_for(lambda: {c.index for c in store.chunk_table(job["id"]) if c.state == "claimed"})
        ours.workers()[0].kill()
        killed_s = time.perf_counter()
        _wait_for(lambda: any(c.attempts > 1 for c in store.chunk_table(job["id"]) if c.index in held))
        seconds = time.perf_counter() - killed_s
    ended = ours.wait(job["id"])
    lease_s = Settings(_env_file=None).lease_s
    note = f"lease {lease_s:.0f} s; all {ended['counts']['completed']} items done afterwards"
    bench.sheet.add(PLACE, "kill -9 to the next claim of its chunk", seconds, "s", "lower", note)
    bench.say(f"    claimed again {seconds:.1f} s after kill -9")


def _wait_for(look: Callable[[], _T], timeout_s: float = 120.0) -> _T:
    deadline_s = time.monotonic() + timeout_s
    while not (found := look()):
        if time.monotonic() > deadline_s:
            raise RuntimeError("what was waited for did not happen")
        time.sleep(_LOOK_S)
    return found


def _used_bytes(redis: Redis) -> int:
    return int(redis.info("memory")["used_memory"])


@contextmanager
def _frozen(ours: Ours) -> Iterator[None]:
    """Stop the worker for the block, and let it settle before and after."""
    time.sleep(_SETTLE_S)
    workers = ours.workers()
    for worker in workers:
        worker.suspend()
    try:
        yield
    finally:
        for worker in workers:
            worker.resume()
