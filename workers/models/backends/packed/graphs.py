"""The latency stream of a GPU: small passes recorded as CUDA graphs, replayed on a stream of the highest priority.

Owns the buckets that are recorded and the memory that they read. Launching the kernels of a small pass one by one costs
several times what they take; a recorded pass is one launch. The card runs kernels of a stream of higher priority first,
and a graph keeps the priority of the stream on which it was captured: so a small pass need not wait for a bulk pass,
however long that is.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.vectors import ExtraParts
from workers.models.backends.base import Backend, Heads, Pipeline
from workers.models.backends.device_memory import copy_back
from workers.models.backends.packed.backend import PackedBackend
from workers.models.backends.packed.flat import Flat, Shape, write_rows
from workers.models.backends.packed.model import PackedModel
from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["BUCKETS", "CudaRecorder", "GraphStream", "Recorder", "choose_bucket"]

log = logging.getLogger(__name__)

# Each is twice the one before: a pass computes at most twice its tokens, and short ones are bound by launching.
BUCKETS = (
    *(Shape(16, 1), Shape(32, 1), Shape(64, 4), Shape(128, 8)),
    *(Shape(256, 16), Shape(512, 32), Shape(1024, 64), Shape(2048, 128)),
)
# torch maps it to the highest priority that the card has.
_HIGHEST_PRIORITY = -100
# Kernels are chosen and workspaces taken in the first passes, which must not happen while one is recorded.
_PASSES_BEFORE_RECORDING = 3


def choose_bucket(buckets: Sequence[Shape], rows: Sequence[Tokens]) -> Shape | None:
    """Return the bucket with the fewest tokens that holds these rows, or None."""
    wanted = Shape.of(rows)
    return min((bucket for bucket in buckets if bucket.holds(wanted)), default=None)


class Recorder(Protocol):
    """Turns a function that queues kernels over fixed memory into one that queues them all again."""

    def record(self, compute: Callable[[], None]) -> Callable[[], object]:
        """Return the function that repeats what `compute` does, faster."""
        ...

    def on_stream(self) -> contextlib.AbstractContextManager[object]:
        """Let the calling thread queue its work where the recorded passes run."""
        ...


class CudaRecorder:
    """Captures CUDA graphs on a stream of the highest priority; all of them share one pool of memory."""

    def __init__(self, device: str) -> None:
        self._stream = torch.cuda.Stream(device=device, priority=_HIGHEST_PRIORITY)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Callable[[], None]) -> Callable[[], object]:
        """See `Recorder.record`.

        Raises:
            RuntimeError: the pass does something that cannot be captured.
        """
        torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            for _ in range(_PASSES_BEFORE_RECORDING):
                compute()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process may allocate meanwhile.
        mode = "thread_local"
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
            compute()
        replay: Callable[[], object] = graph.replay
        return replay

    def on_stream(self) -> contextlib.AbstractContextManager[object]:
        """See `Recorder.on_stream`."""
        stream: contextlib.AbstractContextManager[object] = torch.cuda.stream(self._stream)
        return stream


class _RecordedPass:
    """One bucket: a pass over memory that never moves."""

    def __init__(self, model: PackedModel, dtype: torch.dtype, bucket: Shape, device: str) -> None:
        # One row more than the bucket has, for the tokens that are left over.
        self._shape = Shape(bucket.tokens, bucket.rows + 1)
        self._model, self._dtype = model, dtype
        on_gpu = device.startswith("cuda")
        self._written = torch.zeros(self._shape.size, dtype=torch.int32, pin_memory=on_gpu)
        write_rows([], self._shape, self._written.numpy())
        self._read = self._written.to(device)
        self._values = torch.empty(0)
        self._replay: Callable[[], object] = self._compute

    def record(self, recorder: Recorder) -> None:
        """Record the pass."""
        self._replay = recorder.record(self._compute)

    def run(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """Compute rows that the bucket holds, on the current stream."""
        write_rows(rows, self._shape, self._written.numpy())
        self._read.copy_(self._written, non_blocking=True)
        self._replay()
        return copy_back(self._values)()[: len(rows)]

    def _compute(self) -> None:
        self._values = self._model.values(Flat.over(self._read, self._shape, self._shape.tokens), self._dtype)


class GraphStream:
    """See `Backend.latency_stream`. Called by one thread at a time, which may be another than the bulk passes'.

    Rows that no bucket holds are computed as bulk rows are, but on this stream: their kernels go first as well.
    """

    kind = "packed"
    parallel = 1
    counts_padding = False
    preempts = True
    latency_stream: Backend | None = None
    # The card has one small pass at a time to compute.
    pipeline: Pipeline | None = None

    def __init__(self, model: PackedModel, bulk: PackedBackend, recorder: Recorder, buckets: Sequence[Shape]) -> None:
        """Record a pass for each bucket.

        Raises:
            RuntimeError: a pass cannot be recorded, or there is no memory for it (`torch.OutOfMemoryError`).
        """
        self.device, self.dtype, self.dimension = bulk.device, bulk.dtype, bulk.dimension
        self.heads: Heads | None = None if bulk.heads is None else self
        self._recorder = recorder
        self._eager = PackedBackend(model, bulk)
        precision: torch.dtype = getattr(torch, self.dtype)
        # The largest first: the smaller ones find their memory in its pool.
        self._passes = {
            bucket: _RecordedPass(model, precision, bucket, self.device) for bucket in sorted(buckets, reverse=True)
        }
        with torch.inference_mode():
            for one in self._passes.values():
                one.record(recorder)

    def run(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        bucket = choose_bucket(list(self._passes), rows)
        with self._recorder.on_stream():
            if bucket is None:
                return self._eager.run(rows)
            with torch.inference_mode():
                return self._passes[bucket].run(rows)

    def run_exact(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run_exact`."""
        with self._recorder.on_stream():
            return self._eager.run_exact(rows)

    def run_all(self, rows: Sequence[Tokens], *, exact: bool = False) -> tuple[NDArray[np.float32], list[ExtraParts]]:
        """See `Heads.run_all`."""
        with self._recorder.on_stream():
            return self._eager.run_all(rows, exact=exact)

    def free_memory(self) -> None:
        """See `Backend.free_memory`."""
        self._eager.free_memory()
