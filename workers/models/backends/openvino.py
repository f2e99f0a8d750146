"""The OpenVINO backend: every family on a CPU, in bfloat16 where the CPU has it.

Owns how a batch is spread over the cores. Measured on two cores with MiniLM: two streams of one thread each compute
10-16% more tokens per second than one stream of two threads, provided that both get the same share; one short row is
a third faster with all threads in one stream. So the model is compiled both ways and each batch goes the faster one.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import OutOfMemory
from workers.models.backends.base import Tokens
from workers.models.backends.padding import pad
from workers.models.export import MODEL, import_openvino

__all__ = ["OpenVinoBackend", "Traits"]

# What one stream with all threads reaches of the speed of one stream per thread.
_JOINT_EFFICIENCY = 0.87
_HINTS = {"bfloat16": "bf16", "float32": "f32"}


@dataclass(frozen=True, slots=True)
class Traits:
    """What was written beside the exported model, see `workers.models.export`."""

    pad_id: int
    fallback_id: int
    reads_types: bool
    dimension: int | None
    pooling: str


class OpenVinoBackend:
    """See `workers.models.backends.base.Backend`."""

    kind = "openvino"
    device = "cpu"

    def __init__(self, folder: Path, traits: Traits, dtype: str, threads: int) -> None:
        """Compile the exported model of `folder` for `threads` cores; `dtype` is float32 or bfloat16."""
        self.dtype = dtype
        self.dimension = traits.dimension
        self._traits, self._threads = traits, threads
        openvino = import_openvino()
        self._core = openvino.Core()
        self._model = self._core.read_model(folder / MODEL)
        self._joint = self._compile(dtype, streams=1)[0]
        self._streams = self._compile(dtype, streams=threads) if threads > 1 else [self._joint]
        self._exact: Any = None

    def run(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        parts = _split(rows, len(self._streams))
        full = False
        try:
            return self._run_joint(self._joint, rows) if len(parts) == 1 else self._run_parts(parts)
        except MemoryError:
            full = True
        except RuntimeError as error:
            # OpenVINO wraps the allocator's error into its own.
            full = "bad_alloc" in str(error) or "allocate" in str(error)
            if not full:
                raise
        raise OutOfMemory(f"{len(rows)} rows of up to {max(map(len, rows))} tokens do not fit into memory")

    def run_exact(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run_exact`. The float32 model is compiled when it is first needed."""
        if self._exact is None:
            self._exact = self._compile("float32", streams=1)[0]
        return self._run_joint(self._exact, rows)

    def free_memory(self) -> None:
        """See `Backend.free_memory`."""

    def _compile(self, dtype: str, streams: int) -> list[Any]:
        """Return one request per stream."""
        config = {
            "INFERENCE_PRECISION_HINT": _HINTS[dtype],
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": streams,
            # The worker's parent chose the cores; OpenVINO would pin to the first ones of the machine.
            "ENABLE_CPU_PINNING": False,
        }
        compiled = self._core.compile_model(self._model, "CPU", config)
        return [compiled.create_infer_request() for _ in range(streams)]

    def _run_joint(self, request: Any, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        request.infer(self._inputs(rows), share_inputs=True)
        return _output(request)

    def _run_parts(self, parts: Sequence[Sequence[Tokens]]) -> NDArray[np.float32]:
        requests = self._streams[: len(parts)]
        inputs = [self._inputs(part) for part in parts]
        started = []
        try:
            for request, batch in zip(requests, inputs, strict=True):
                request.start_async(batch, share_inputs=True)
                started.append(request)
        finally:
            # Also after a failure: a request that still runs must not be used, or its inputs freed.
            for request in started:
                request.wait()
        return np.concatenate([_output(request) for request in requests])

    def _inputs(self, rows: Sequence[Tokens]) -> dict[str, NDArray[np.int64]]:
        ids, mask, types = pad(rows, self._traits.pad_id)
        inputs = {"input_ids": ids, "attention_mask": mask}
        return inputs | {"token_type_ids": types} if self._traits.reads_types else inputs


def _output(request: Any) -> NDArray[np.float32]:
    """Copy the result: the tensor belongs to the request and changes with its next pass."""
    return np.array(request.get_output_tensor(0).data, np.float32)


def _split(rows: Sequence[Tokens], streams: int) -> list[Sequence[Tokens]]:
    """Cut a batch into one part per stream, or leave it whole where the parts would be too unequal to pay."""
    if streams == 1 or len(rows) < 2:
        return [rows]
    edges = np.linspace(0, len(rows), min(streams, len(rows)) + 1).round().astype(int).tolist()
    parts = [rows[start:end] for start, end in itertools.pairwise(edges)]
    largest = max(len(part) * max(map(len, part)) for part in parts)
    whole = len(rows) * max(map(len, rows))
    return parts if largest * streams * _JOINT_EFFICIENCY < whole else [rows]
