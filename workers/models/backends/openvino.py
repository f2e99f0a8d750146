"""The OpenVINO backend: every family on a CPU, in bfloat16 where the CPU has it.

Owns how a batch is spread over the cores. Measured on two cores with MiniLM: two streams of one thread each compute
10-16% more tokens per second than one stream of two threads, provided that both get the same share; one short row is
a third faster with all threads in one stream. So the model is compiled both ways. Bulk batches take the streams; the
other way is `express`, and since both may run at once, a short request does not wait for the batch before it: the
system's scheduler gives it the cores in between, at no measurable cost for the batch.
"""

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import OutOfMemory
from workers.models.backends.base import Heads, Tokens
from workers.models.backends.padding import pad
from workers.models.export import MODEL, import_openvino
from workers.models.shapes import round_length, round_rows_up

__all__ = ["OpenVinoBackend", "Traits", "compile_exported"]

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


class OpenVinoBackend:
    """See `workers.models.backends.base.Backend`. One thread per instance; instances share the graph."""

    kind = "openvino"
    device = "cpu"
    # The exported graph ends at the dense vector.
    heads: Heads | None = None

    def __init__(self, graph: "_Graph", streams: int, express: "OpenVinoBackend | None") -> None:
        self.dtype = graph.dtype
        self.dimension = graph.traits.dimension
        self.parallel = streams
        self.express = express
        self._graph = graph
        self._requests = graph.compile(graph.dtype, streams)

    def run(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        full = False
        try:
            return self._run_parts(_split(rows, self.parallel))
        except MemoryError:
            full = True
        except RuntimeError as error:
            # OpenVINO wraps the allocator's error into its own.
            full = "bad_alloc" in str(error) or "allocate" in str(error)
            if not full:
                raise
        raise OutOfMemory(f"{len(rows)} rows of up to {max(map(len, rows))} tokens do not fit into memory")

    def run_exact(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run_exact`."""
        return self._graph.run_exact(rows)

    def free_memory(self) -> None:
        """See `Backend.free_memory`. There is nothing to free: OpenVINO keeps what the largest batch needed."""

    def _run_parts(self, parts: Sequence[Sequence[Tokens]]) -> NDArray[np.float32]:
        requests = self._requests[: len(parts)]
        inputs = [self._graph.inputs(part) for part in parts]
        started = []
        try:
            for request, batch in zip(requests, inputs, strict=True):
                request.start_async(batch, share_inputs=True)
                started.append(request)
        finally:
            # Also after a failure: a request that still runs must not be used, or its inputs freed.
            for request in started:
                request.wait()
        return np.concatenate([_output(*pair) for pair in zip(requests, parts, strict=True)])


class _Graph:
    """An exported model in memory, to be compiled in several ways. Thread-safe."""

    def __init__(self, folder: Path, traits: Traits, dtype: str, threads: int) -> None:
        self.traits = traits
        self.dtype = dtype
        self._threads = threads
        self._core = import_openvino().Core()
        self._model = self._core.read_model(folder / MODEL)
        self._exact: Any = None
        self._lock = threading.Lock()

    def compile(self, dtype: str, streams: int) -> list[Any]:
        """Return one request per stream; together they use all threads."""
        config = {
            "INFERENCE_PRECISION_HINT": _HINTS[dtype],
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": streams,
            # The worker's parent chose the cores; OpenVINO would pin to the first ones of the machine.
            "ENABLE_CPU_PINNING": False,
        }
        compiled = self._core.compile_model(self._model, "CPU", config)
        return [compiled.create_infer_request() for _ in range(streams)]

    def run_exact(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """Run in float32; that model is compiled when it is first needed."""
        with self._lock:
            if self._exact is None:
                self._exact = self.compile("float32", streams=1)[0]
            self._exact.infer(self.inputs(rows), share_inputs=True)
            return _output(self._exact, rows)

    def inputs(self, rows: Sequence[Tokens]) -> dict[str, NDArray[np.int64]]:
        """Pad rows to the inputs of the model, in a shape of the grid: a new shape costs more than its padding."""
        least = round_rows_up(len(rows)), round_length(max(map(len, rows)), self.traits.max_tokens)
        ids, mask, types = pad(rows, self.traits.pad_id, least)
        inputs = {"input_ids": ids, "attention_mask": mask}
        return inputs | {"token_type_ids": types} if self.traits.reads_types else inputs


def compile_exported(folder: Path, traits: Traits, dtype: str, threads: int) -> OpenVinoBackend:
    """Return a backend with its express, both on the same `threads` cores; `dtype` is float32 or bfloat16."""
    graph = _Graph(folder, traits, dtype, threads)
    return OpenVinoBackend(graph, threads, express=OpenVinoBackend(graph, 1, express=None))


def _output(request: Any, rows: Sequence[Tokens]) -> NDArray[np.float32]:
    """Copy the values of the rows: the tensor belongs to the request and changes with its next pass."""
    return np.array(request.get_output_tensor(0).data[: len(rows)], np.float32)


def _split(rows: Sequence[Tokens], streams: int) -> list[Sequence[Tokens]]:
    """Cut a batch into one part of neighbours per stream."""
    edges = np.linspace(0, len(rows), min(streams, len(rows)) + 1).round().astype(int).tolist()
    return [rows[start:end] for start, end in itertools.pairwise(edges)]
