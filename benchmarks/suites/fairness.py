"""Suite `fairness`: fifty tenants with 1 to 200 jobs on one fake device, and an idle tenant that comes with one item.

Owns the load and two figures: Jain's index of the tokens that tenants get in ten seconds of a device (Jain, Chiu and
Hawe 1984; 1 is equal), and how many passes begin before that of the one item. The device is fake: its passes of 32,768
tokens count as 40 ms, whatever else this machine does. The engine, the chunk task and Redis are the real ones.
"""

import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from redis import Redis

from benchmarks.bench import Bench
from benchmarks.stacks.cards import fake_cards
from benchmarks.stacks.processes import BUILD, hold_to_cores
from config.catalog import ModelCard
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks import keys
from tasks.bulk.chunk_task import WorkerContext, publish_messages, reap, run_chunk
from tasks.celery import app
from tasks.jobs.blobs import open_blobs
from tasks.jobs.chunking import ChunkLimits, Item, cut_chunks, estimate_tokens
from tasks.jobs.job import NewJob, new_job_id
from tasks.jobs.store import JobStore
from tasks.lanes import Lane, Service
from workers.engine import DeviceEngine
from workers.models.backends.fake import FakeBackend, FakeTokenizer
from workers.models.loaded import LoadedModel
from workers.models.tokenizing.tokenizer import Encoded, Tokens, Truncate

__all__ = ["SUITE", "run"]

SUITE = "fairness"
PLACE = (SUITE, "Twolane")
_LANE = Lane("fake", Service.BULK)
_TENANTS, _MOST_JOBS = 50, 200
# Enough for no tenant to run out: about seven chunks of 48 items in ten seconds.
_ITEMS_PER_10_S = 480
_MAX_TOKENS = 512
_LONG_CHARS, _SHORT_CHARS = 2000, 40
_PASS_TOKENS, _PASS_MS = 32_768, 40
_WINDOW_S = 10.0
_CARD = ModelCard(
    name="fake",
    source="none:",
    family="fake",
    backend="fake",
    capabilities=("dense",),
    dimension=16,
    max_tokens=_MAX_TOKENS,
    pooling="mean",
)
_NEWCOMERS = 10
_STALLED_S = 30.0
_SUBMITTERS = 16


class _Device(FakeBackend):
    """Counts tokens by tenant, which the first word of a text names, the passes and the time that they would take."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.passes = 0
        self.spent_s = 0.0
        self.tokens: Counter[int] = Counter()
        self.started_at: dict[int, int] = {}

    def run(self, rows: Sequence[object]) -> NDArray[np.float32]:  # type: ignore[override]
        """Note whose rows these are, then run them."""
        self.passes += 1
        for row in rows:
            who = int(row.ids[1])  # type: ignore[attr-defined]
            self.tokens[who] += len(row)  # type: ignore[arg-type]
            self.started_at.setdefault(who, self.passes)
        self.spent_s += sum(map(len, rows)) * _PASS_MS / _PASS_TOKENS / 1000  # type: ignore[arg-type]
        time.sleep(0.001)
        return super().run(rows)  # type: ignore[arg-type]


class _Tokenizer(FakeTokenizer):
    """A token for four characters, each the first word's: quick, and as jobs are estimated."""

    def encode(self, texts: Sequence[str], truncate: Truncate) -> list[Encoded]:  # noqa: ARG002
        """See `TextTokenizer.encode`."""
        tokens = [estimate_tokens(text, _MAX_TOKENS) for text in texts]
        ids = [_first_id(text.partition(" ")[0]) for text in texts]
        pairs = zip(ids, tokens, strict=True)
        return [
            Encoded(Tokens(np.array([1] + [one] * (count - 2) + [2], np.int32)), cut=False, asked=count)
            for one, count in pairs
        ]


def run(bench: Bench) -> None:
    """Measure one long run; the windows of ten seconds are its rounds."""
    windows = 2 if bench.plan.quick else 6
    with EmbeddedServer(BUILD / "data" / "fairness") as server:
        hold_to_cores(server.pid, bench.cores.server)
        settings = Settings(
            _env_file=None,
            redis_url=server.url,
            catalog_file=fake_cards(),
            models=("fake",),
            max_batch_tokens=_PASS_TOKENS,
        )
        with Redis.from_url(server.url) as redis:
            fill = _Submitter(redis, settings)
            fill.submit_backlog((windows + 2) * _ITEMS_PER_10_S)
            with _worker(settings, redis) as device:
                seen, waits = _watch(device, fill, windows)
    jain = [_jain([after[tenant] - before[tenant] for tenant in fill.tenants]) for before, after in pairwise(seen)]
    note = f"{_TENANTS} tenants with 1 to {_MOST_JOBS} jobs, windows of {_WINDOW_S:.0f} s of the device"
    for index in jain:
        bench.sheet.add(PLACE, "Jain's index of tokens per tenant", index, "", "higher", note)
    note = f"{len(waits)} idle tenants with one item each, from its acceptance; 1 is the next pass that begins"
    bench.sheet.add(PLACE, "passes until an idle tenant's item is computed, p50", np.median(waits), "", "lower", note)
    bench.sheet.add(PLACE, "passes until an idle tenant's item is computed, worst", max(waits), "", "lower", note)
    bench.say(f"    Jain's index {min(jain):.3f} to {max(jain):.3f}; passes {np.median(waits):.0f}, worst {max(waits)}")


class _Submitter:
    """Creates jobs as the web tier does."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._store, self._blobs = JobStore(redis, settings), open_blobs(redis, settings)
        self._limits = ChunkLimits.of(settings, _MAX_TOKENS)
        self.tenants: list[int] = []

    def submit_backlog(self, items: int) -> None:
        """Give every tenant so many items, in one job or in many."""
        for number in range(_TENANTS):
            jobs = 1 + (_MOST_JOBS - 1) * number // (_TENANTS - 1)
            name = f"tenant{number}"
            self.tenants.append(_first_id(name))
            with ThreadPoolExecutor(_SUBMITTERS) as pool:
                list(pool.map(lambda _: self.submit(name, -(-items // jobs), _LONG_CHARS), range(jobs)))  # noqa: B023

    def submit(self, name: str, items: int, chars: int) -> None:
        """Create a job; its texts begin with the tenant's name, and differ: equal ones are computed once."""
        job_id, records = new_job_id(), []
        texts = [Item(f"{name} {number} ".ljust(chars, "x")) for number in range(items)]
        for record, chunk in cut_chunks(texts, self._limits):
            self._blobs.put_input(job_id, record.index, chunk)
            records.append(record)
        tokens = sum(record.tokens for record in records)
        self._store.create(NewJob(job_id, name, "embeddings", "fake", _LANE, items, tokens), records)
        publish_messages(self._store.leases, _LANE, len(records))


def _watch(device: _Device, submitter: _Submitter, windows: int) -> tuple[list[Counter[int]], list[int]]:
    """Return the tokens of each tenant at the ends of the windows, and the passes that newcomers waited for."""
    _wait(device, _WINDOW_S / 2)
    seen, asked = [Counter(device.tokens)], dict[int, int]()
    for window in range(windows):
        until_s = device.spent_s + _WINDOW_S
        for number in range(_NEWCOMERS):
            name = f"idle{window}x{number}"
            # Counted from its acceptance: creating it waits for the disk, and passes go on meanwhile.
            submitter.submit(name, 1, _SHORT_CHARS)
            asked[_first_id(name)] = device.passes
            _wait(device, _WINDOW_S / _NEWCOMERS / 2)
        _wait(device, until_s - device.spent_s)
        seen.append(Counter(device.tokens))
    return seen, [max(0, device.started_at.get(who, device.passes + 1) - passes) for who, passes in asked.items()]


def _wait(device: _Device, seconds: float) -> None:
    until_s, passes, moved_s = device.spent_s + seconds, device.passes, time.monotonic()
    while device.spent_s < until_s:
        time.sleep(0.001)
        if device.passes != passes:
            passes, moved_s = device.passes, time.monotonic()
        elif time.monotonic() - moved_s > _STALLED_S:
            raise RuntimeError(f"the device was idle for {_STALLED_S:.0f} s: the tenants have run out of work")


@contextmanager
def _worker(settings: Settings, redis: Redis) -> Iterator[_Device]:
    """Take chunk messages with as many threads as a worker has."""
    app.finalize()
    device, stop = _Device(_CARD), threading.Event()
    model = LoadedModel(_CARD, _Tokenizer(_CARD), device, "fake:benchmark")
    with DeviceEngine(settings, {"fake": model}) as engine:
        engine.warm_up()
        leases = JobStore(redis, settings).leases
        app.twolane = context = WorkerContext(
            leases, open_blobs(redis, settings), engine, settings, "bench", dimensions={"fake": 16}
        )

        def take() -> None:
            while not stop.is_set():
                if redis.brpop([keys.lane_messages(_LANE)], timeout=0.2):
                    run_chunk(_LANE.model)

        def look_after() -> None:
            while not stop.wait(1.0):
                reap(leases, _LANE)

        threads = [threading.Thread(target=take) for _ in range(settings.chunks_in_flight + 1)]
        threads.append(threading.Thread(target=look_after))
        for thread in threads:
            thread.start()
        try:
            yield device
        finally:
            stop.set()
            context.sharing.held.close()
            for thread in threads:
                thread.join()


def _first_id(name: str) -> int:
    return zlib.crc32(name.encode()) % 2**30 + 100


def _jain(amounts: Sequence[float]) -> float:
    values = np.asarray(amounts, np.float64)
    return float(values.sum() ** 2 / (len(values) * (values**2).sum()))
