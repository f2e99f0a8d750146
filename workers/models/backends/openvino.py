"""The OpenVINO backend: every family on a CPU, in bfloat16 where the CPU has it.

Owns how a batch is spread over the cores. Measured on two cores with MiniLM: two streams of one thread each compute
10-16% more tokens per second than one stream of two threads, provided that both get the same share; one short row is
a third faster with all threads in one stream. So the model is compiled in both variants. Bulk batches run in the
streams; the other variant is the latency stream. Both may run at once, so a short request does not wait for the batch
before it: the system's scheduler gives it the cores in between, at no measurable cost for the batch.

Many short requests at once are better off in the streams: each stream pads its rows on its own, and no thread waits for
another after every operation. With 64 clients, 14% more requests a second, and 10% less of the processor's time for
each. So the latency stream runs a batch of several rows in the streams while no bulk batch uses them.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.errors import OutOfMemory
from tasks.vectors import ExtraParts
from workers.models.backends.base import Heads, Pipeline, Values
from workers.models.backends.padding import pad
from workers.models.backends.token_outputs import deal_out
from workers.models.export import MODEL, import_openvino
from workers.models.shapes import ShapeCache, split_evenly
from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["OpenVinoBackend", "Traits", "compile_exported"]

T = TypeVar("T")
# From so many rows for each stream on, a batch of the latency stream is faster in the streams.
_SPREAD_ROWS = 4
_HINTS = {"bfloat16": "bf16", "float32": "f32"}


@dataclass(frozen=True, slots=True)
class Traits:
    """What was written beside the exported model, see `workers.models.export`, and how long a row may be."""

    pad_id: int
    fallback_id: int
    reads_types: bool
    dimension: int | None
    pooling: str
    max_tokens: int
    # Ids of tokens that have no sparse weight; None: the graph has no heads.
    silent: tuple[int, ...] | None = None


class OpenVinoBackend:
    """See `workers.models.backends.base.Backend`. One thread per instance; instances share the graph."""

    kind = "openvino"
    device = "cpu"
    counts_padding = True
    preempts = False

    def __init__(
        self,
        graph: "_Graph",
        variant: "_CompiledVariant",
        spare: "_CompiledVariant | None",
        latency_stream: "OpenVinoBackend | None",
    ) -> None:
        """Run batches in a variant of one's own, and large ones in a spare one that belongs to another instance."""
        self.dtype = graph.dtype
        self.dimension = graph.traits.dimension
        self.parallel = variant.streams
        self.latency_stream = latency_stream
        # The latency stream runs one pass at a time.
        self.pipeline: Pipeline | None = self if spare is None else None
        self._graph = graph
        # One cache for each class of work: short requests would have to use the shapes of long bulk rows.
        self._shapes = ShapeCache(graph.traits.max_tokens)
        self._variant, self._spare = variant, spare
        self.heads: Heads | None = None if graph.traits.silent is None else self
        self._all_requests: dict[str, Any] = {}

    def run(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        return _within_memory(rows, lambda: self._run_rows(rows))

    def start(self, rows: Sequence[Tokens]) -> Values:
        """See `Pipeline.start`. A stream takes its part of this pass as soon as it is done with the one before."""
        wait = _within_memory(rows, lambda: self._start_rows(rows))
        return lambda: _within_memory(rows, wait)

    def run_exact(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run_exact`."""
        return self._graph.run_exact(rows, self._shapes)

    def run_all(self, rows: Sequence[Tokens], *, exact: bool = False) -> tuple[NDArray[np.float32], list[ExtraParts]]:
        """See `Heads.run_all`."""
        dtype = "float32" if exact else self.dtype
        if dtype not in self._all_requests:
            self._all_requests[dtype] = self._graph.create_all_request(dtype)
        return _within_memory(rows, lambda: self._graph.run_all(self._all_requests[dtype], rows, self._shapes))

    def free_memory(self) -> None:
        """See `Backend.free_memory`. There is nothing to free: OpenVINO keeps what the largest batch needed."""

    def _run_rows(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        spare = self._spare
        if spare is not None and len(rows) >= _SPREAD_ROWS * spare.streams and not spare.busy:
            # The queue cuts bulk rows to fit the streams; these differ in length and come in any number.
            ends = split_evenly([len(row) for row in rows], spare.streams)
            return self._start_parts(_cut(rows, [0, *ends]), spare)()
        return self._start_rows(rows)()

    def _start_rows(self, rows: Sequence[Tokens]) -> Values:
        return self._start_parts(_split(rows, self.parallel), self._variant)

    def _start_parts(self, parts: Sequence[Sequence[Tokens]], variant: "_CompiledVariant") -> Values:
        """Start one part per stream."""
        requests = variant.take()

        def wait() -> NDArray[np.float32]:
            try:
                for request in requests[: len(parts)]:
                    request.wait()
                return np.concatenate([_output(*pair) for pair in zip(requests, parts, strict=False)])
            finally:
                variant.give_back(requests)

        try:
            for request, part in zip(requests, parts, strict=False):
                request.start_async(self._graph.inputs(part, self._shapes), share_inputs=True)
        except BaseException:
            variant.give_back(requests)
            raise
        return wait


class _CompiledVariant:
    """The graph compiled for a number of streams. A pass has its own set of requests, one per stream. Thread-safe."""

    def __init__(self, compiled: Any, streams: int) -> None:
        self.streams = streams
        self._compiled = compiled
        # Only appended to and popped from, which needs no lock.
        self._sets = list[list[Any]]()
        self._idle = list[list[Any]]()

    @property
    def busy(self) -> bool:
        """Whether a pass is running."""
        return len(self._idle) < len(self._sets)

    def take(self) -> list[Any]:
        """Return a set of requests that no pass uses."""
        try:
            return self._idle.pop()
        except IndexError:
            requests = [self._compiled.create_infer_request() for _ in range(self.streams)]
            self._sets.append(requests)
            return requests

    def give_back(self, requests: list[Any]) -> None:
        """Take back the set of a pass that ended or failed."""
        for request in requests:
            # A request that still runs must not be used again, or its inputs freed; its caller has seen the error.
            with suppress(Exception):
                request.wait()
        self._idle.append(requests)


class _Graph:
    """An exported model in memory, to be compiled in several variants. Thread-safe."""

    def __init__(self, folder: Path, traits: Traits, dtype: str, threads: int) -> None:
        self.traits = traits
        self.dtype = dtype
        self._threads = threads
        openvino = import_openvino()
        self._core = openvino.Core()
        self._all = self._core.read_model(folder / MODEL)
        # The same nodes up to the first output: what only the heads need is left out, and the constants are shared.
        parts = self._all.get_results()[:1], self._all.get_parameters()
        self._model = self._all if traits.silent is None else openvino.Model(*parts)
        self._compiled: dict[str, Any] = {}
        self._exact: Any = None
        self._lock = threading.Lock()

    def compile(self, dtype: str, streams: int) -> _CompiledVariant:
        """Compile for the value alone; together the streams use all threads."""
        return _CompiledVariant(self._compile(self._model, dtype, streams), streams)

    def create_all_request(self, dtype: str) -> Any:
        """Return a request that gives all kinds of vectors.

        Its model is compiled when it is first asked for: it is a copy of the weights, which most workers never need.
        """
        with self._lock:
            if dtype not in self._compiled:
                self._compiled[dtype] = self._compile(self._all, dtype, streams=1)
            return self._compiled[dtype].create_infer_request()

    def _compile(self, model: Any, dtype: str, streams: int) -> Any:
        config = {
            "INFERENCE_PRECISION_HINT": _HINTS[dtype],
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": streams,
            # The worker's parent chose the cores; OpenVINO would pin to the first ones of the machine.
            "ENABLE_CPU_PINNING": False,
        }
        return self._core.compile_model(model, "CPU", config)

    def run_exact(self, rows: Sequence[Tokens], shapes: ShapeCache) -> NDArray[np.float32]:
        """Run in float32; that model is compiled when it is first needed."""
        with self._lock:
            if self._exact is None:
                self._exact = self._compile(self._model, "float32", streams=1).create_infer_request()
            self._exact.infer(self.inputs(rows, shapes), share_inputs=True)
            return _output(self._exact, rows)

    def run_all(
        self, request: Any, rows: Sequence[Tokens], shapes: ShapeCache
    ) -> tuple[NDArray[np.float32], list[ExtraParts]]:
        """Run a request that was compiled with the heads."""
        request.infer(self.inputs(rows, shapes), share_inputs=True)
        weights, vectors = (request.get_output_tensor(at).data for at in (1, 2))
        silent = np.asarray(self.traits.silent, np.int32)
        extras = [
            deal_out(row, weights[at, : len(row)], vectors[at, 1 : len(row)], silent) for at, row in enumerate(rows)
        ]
        return _output(request, rows), extras

    def inputs(self, rows: Sequence[Tokens], shapes: ShapeCache) -> dict[str, NDArray[np.int64]]:
        """Pad rows to the inputs of the model, in a shape worth having: a new one costs more than some padding."""
        shape = shapes.choose(len(rows), max(map(len, rows)))
        ids, mask, types = pad(rows, self.traits.pad_id, shape)
        inputs = {"input_ids": ids, "attention_mask": mask}
        return inputs | {"token_type_ids": types} if self.traits.reads_types else inputs


def compile_exported(folder: Path, traits: Traits, dtype: str, threads: int) -> OpenVinoBackend:
    """Return a backend with its latency stream, both on the same `threads` cores; `dtype` is float32 or bfloat16."""
    graph = _Graph(folder, traits, dtype, threads)
    streams, whole = (graph.compile(dtype, count) for count in (threads, 1))
    latency_stream = OpenVinoBackend(graph, whole, spare=streams, latency_stream=None)
    return OpenVinoBackend(graph, streams, spare=None, latency_stream=latency_stream)


def _within_memory(rows: Sequence[Tokens], run: Callable[[], T]) -> T:
    full = False
    try:
        return run()
    except MemoryError:
        full = True
    except RuntimeError as error:
        # OpenVINO wraps the allocator's error into its own.
        full = "bad_alloc" in str(error) or "allocate" in str(error)
        if not full:
            raise
    raise OutOfMemory(f"{len(rows)} rows of up to {max(map(len, rows))} tokens do not fit into memory")


def _output(request: Any, rows: Sequence[Tokens]) -> NDArray[np.float32]:
    """Copy the values of the rows: the tensor belongs to the request and changes with its next pass."""
    return np.array(request.get_output_tensor(0).data[: len(rows)], np.float32)


def _split(rows: Sequence[Tokens], streams: int) -> list[Sequence[Tokens]]:
    """Cut a batch into one part of neighbours per stream."""
    return _cut(rows, np.linspace(0, len(rows), min(streams, len(rows)) + 1).round().astype(int).tolist())


def _cut(rows: Sequence[Tokens], edges: Sequence[int]) -> list[Sequence[Tokens]]:
    return [rows[start:end] for start, end in itertools.pairwise(edges)]
