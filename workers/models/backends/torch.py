"""The torch backend: every device that torch knows, in the precision that the device is good at.

Owns moving a batch to the device and back, and what an out-of-memory error looks like. Owns no batching.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.errors import OutOfMemory
from tasks.vectors import Extra, ExtraParts
from workers.models.backends.base import Heads, Pipeline, Values
from workers.models.backends.heads import deal_out
from workers.models.backends.padding import pad
from workers.models.families import MultiVectorEmbedder
from workers.models.tokenizer import Tokens
from workers.models.weights import Weights

__all__ = ["TorchBackend"]

T = TypeVar("T")
_HALF = (torch.float16, torch.bfloat16)


class TorchBackend:
    """See `workers.models.backends.base.Backend`."""

    kind = "torch"
    parallel = 1
    latency_stream = None

    def __init__(self, weights: Weights, device: str, dtype: str) -> None:
        """Move the weights to the device; they are already in `dtype`."""
        self.device = device
        self.dtype = dtype
        self.dimension = weights.dimension
        self._module = weights.module.to(device)
        self.heads: Heads | None = self if isinstance(weights.module, MultiVectorEmbedder) else None
        self._pad_id = weights.pad_id
        self._reads_types = weights.reads_types
        self._on_gpu = device.startswith("cuda")
        self.pipeline: Pipeline | None = self if self._on_gpu else None
        # Streams and events; those of the CPU do nothing.
        self._api = torch.get_device_module(device)
        self._copies = self._api.Stream()

    def run(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        return self._within_memory(rows, self._forward)

    def start(self, rows: Sequence[Tokens]) -> Values:
        """See `Pipeline.start`. CUDA queues what is launched; only the wait for the values blocks."""
        return self._within_memory(rows, self._launch)

    def run_exact(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run_exact`."""
        return self._in_float32(lambda: self.run(rows))

    def run_all(self, rows: Sequence[Tokens], *, exact: bool = False) -> tuple[NDArray[np.float32], list[ExtraParts]]:
        """See `Heads.run_all`."""
        if exact:
            return self._in_float32(lambda: self.run_all(rows))
        return self._within_memory(rows, self._forward_all)

    def free_memory(self) -> None:
        """See `Backend.free_memory`."""
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _within_memory(self, rows: Sequence[Tokens], forward: Callable[[Sequence[Tokens]], T]) -> T:
        full = False
        try:
            return forward(rows)
        except torch.OutOfMemoryError:
            full = True
        except RuntimeError as error:
            # The CPU's allocator raises a plain RuntimeError.
            full = "not enough memory" in str(error) or "can't allocate memory" in str(error)
            if not full:
                raise
        # Raised outside, so that the error's traceback does not keep the tensors of the failed pass alive.
        raise OutOfMemory(f"{len(rows)} rows of up to {max(map(len, rows))} tokens do not fit on {self.device}")

    def _in_float32(self, run: Callable[[], T]) -> T:
        """Widen half-precision weights in place and narrow them again, without loss.

        What is in float32 anyway, as the frequencies of rotary positions, has to stay as it is: narrowed once, it
        would be off for good.
        """
        module = self._module
        narrow = [one for one in itertools.chain(module.parameters(), module.buffers()) if one.dtype in _HALF]
        dtypes = [one.dtype for one in narrow]
        try:
            for one in narrow:
                one.data = one.data.float()
            return run()
        finally:
            for one, dtype in zip(narrow, dtypes, strict=True):
                one.data = one.data.to(dtype)

    def _forward(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        return self._launch(rows)()

    def _launch(self, rows: Sequence[Tokens]) -> Values:
        """Queue the pass, and the copy of its values to the host. The wait for them is all that blocks."""
        ids, mask, types = self._upload(pad(rows, self._pad_id))
        with torch.inference_mode():
            values = self._module(ids, mask, types if self._reads_types else None)
            home = torch.empty(values.shape, dtype=torch.float32, pin_memory=self._on_gpu)
            home.copy_(values, non_blocking=True)
        landed = self._api.Event()
        landed.record(self._api.current_stream())

        def wait() -> NDArray[np.float32]:
            landed.synchronize()
            return np.asarray(home.numpy())

        return wait

    def _forward_all(self, rows: Sequence[Tokens]) -> tuple[NDArray[np.float32], list[ExtraParts]]:
        module = cast("MultiVectorEmbedder", self._module)
        ids, mask, _ = self._upload(pad(rows, self._pad_id))
        with torch.inference_mode():
            wanted = (self._mark(rows, "sparse"), self._mark(rows, "colbert"))
            computed = [part.cpu().numpy() for part in module.forward_all(ids, mask, *wanted)]
        values, weights, vectors = computed
        return values, _deal_out(rows, weights, vectors, np.asarray(module.silent, np.int32))

    def _mark(self, rows: Sequence[Tokens], kind: Extra) -> torch.Tensor:
        return torch.tensor([kind in row.extras for row in rows], device=self.device)

    def _upload(self, arrays: Sequence[NDArray[np.int64]]) -> list[torch.Tensor]:
        """Copy to the device, on a stream of its own: beside what the device computes."""
        tensors = [torch.from_numpy(array) for array in arrays]
        if not self._on_gpu:
            return tensors
        computing = self._api.current_stream()
        with self._api.stream(self._copies):
            moved = [tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors]
        computing.wait_stream(self._copies)
        for tensor in moved:
            # Else the next copy might be given its memory while this pass still reads it.
            tensor.record_stream(computing)
        return moved


def _deal_out(
    rows: Sequence[Tokens], weights: NDArray[np.float32], vectors: NDArray[np.float32], silent: NDArray[np.int32]
) -> list[ExtraParts]:
    """Give each row its part of what was computed for all of them."""
    found: list[ExtraParts] = []
    weight_at = vector_at = 0
    for row in rows:
        of_row = weights[weight_at : weight_at + len(row)], vectors[vector_at : vector_at + len(row) - 1]
        found.append(deal_out(row, *of_row, silent))
        weight_at += len(row) if "sparse" in row.extras else 0
        vector_at += len(row) - 1 if "colbert" in row.extras else 0
    return found
