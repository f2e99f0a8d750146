"""What a chunk costs without the model: the real task on the real store, with an engine that answers at once.

Loaded by `benchmarks.stacks.host`; runs in the worker's place, on the measured cores.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config.catalog import load_catalog
from config.settings import Settings
from tasks.bulk.chunk_task import WorkerContext, run_chunk
from tasks.celery import app
from tasks.connections import connect
from tasks.engine import Outcomes, Work
from tasks.jobs.blobs import open_blobs
from tasks.jobs.chunking import ChunkLimits, Item, cut_chunks
from tasks.jobs.job import NewJob, new_job_id
from tasks.jobs.store import JobStore
from tasks.lanes import Lane, Service

__all__ = ["ChunkOverhead"]

_MODEL = "all-MiniLM-L6-v2"


class _InstantEngine:
    """Knows all the answers already."""

    def __init__(self, dimension: int) -> None:
        self._values = np.full((4096, dimension), dimension**-0.5, np.float32)
        self._passes = count(1)

    def submit(self, work: Work) -> Future[Outcomes]:
        """Return a future that has ended."""
        n = len(work.texts)
        future: Future[Outcomes] = Future()
        future.set_result(Outcomes(self._values[:n], np.full(n, 64, np.int32), np.zeros(n, np.bool_)))
        return future

    def progress(self) -> int:
        """Say that the device moves."""
        return next(self._passes)


class ChunkOverhead:
    """Runs a job chunk by chunk; `run` returns the ms of each, from claim to completion and the next ticket."""

    def __init__(self, redis_url: str, data_dir: str) -> None:
        self._settings = Settings(_env_file=None, redis_url=redis_url, data_dir=Path(data_dir), models=(_MODEL,))
        card = load_catalog().find(_MODEL)
        if card is None or card.dimension is None:
            raise ValueError(f"{_MODEL} is not in the catalogue")
        self._card = card
        redis = connect(redis_url, name="bench")
        self._store, self._blobs = JobStore(redis, self._settings), open_blobs(redis, self._settings)
        engine = _InstantEngine(card.dimension)
        app.twolane = WorkerContext(
            self._store.leases,
            self._blobs,
            engine,
            self._settings,
            "bench",
            dimensions={card.name: card.dimension or 0},
        )

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Return ms, one for each chunk of the texts, shape (chunks,)."""
        job_id, chunks = self._create(items)
        lane = Lane(self._card.slug, Service.BULK)
        spent_ms = []
        for _ in range(chunks):
            started_s = time.perf_counter()
            run_chunk(lane.model)
            spent_ms.append((time.perf_counter() - started_s) * 1000)
        job = self._store.get(job_id)
        if job.counts.completed != len(items):
            raise RuntimeError(f"the job was not worked off: {job}")
        return np.array(spent_ms, dtype=np.float32)

    def _create(self, texts: Sequence[str]) -> tuple[str, int]:
        job_id = new_job_id()
        limits = ChunkLimits.of(self._settings, self._card.max_tokens)
        records = []
        for record, items in cut_chunks(map(Item, texts), limits):
            self._blobs.put_input(job_id, record.index, items)
            records.append(record)
        lane = Lane(self._card.slug, Service.BULK)
        tokens = sum(record.tokens for record in records)
        job = NewJob(job_id, "default", "embeddings", self._card.name, lane, len(texts), tokens)
        self._store.create(job, records)
        return job_id, len(records)
