"""The torch backend: every device that torch knows, in the precision that the device is good at.

Owns moving a batch to the device and back, and what an out-of-memory error looks like. Owns no batching.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.errors import OutOfMemory
from tasks.vectors import Extra, ExtraParts
from workers.models.backends.base import Heads, Tokens
from workers.models.backends.heads import deal_out
from workers.models.backends.padding import pad
from workers.models.families import MultiVectorEmbedder
from workers.models.weights import Weights

__all__ = ["TorchBackend"]

T = TypeVar("T")


class TorchBackend:
    """See `workers.models.backends.base.Backend`."""

    kind = "torch"
    parallel = 1
    express = None

    def __init__(self, weights: Weights, device: str, dtype: str) -> None:
        """Move the weights to the device; they are already in `dtype`."""
        self.device = device
        self.dtype = dtype
        self.dimension = weights.dimension
        self._module = weights.module.to(device)
        self.heads: Heads | None = self if isinstance(weights.module, MultiVectorEmbedder) else None
        self._pad_id = weights.pad_id
        self._reads_types = weights.reads_types
        self._pinned = device.startswith("cuda")

    def run(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        return self._within_memory(rows, self._forward)

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
        """Widen half-precision weights in place and narrow them again, without loss."""
        if self.dtype == "float32":
            return run()
        try:
            self._module.float()
            return run()
        finally:
            self._module.to(getattr(torch, self.dtype))

    def _forward(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        ids, mask, types = (self._move(array) for array in pad(rows, self._pad_id))
        with torch.inference_mode():
            values = self._module(ids, mask, types if self._reads_types else None)
            return np.asarray(values.cpu().numpy(), np.float32)

    def _forward_all(self, rows: Sequence[Tokens]) -> tuple[NDArray[np.float32], list[ExtraParts]]:
        module = cast("MultiVectorEmbedder", self._module)
        ids, mask, _ = (self._move(array) for array in pad(rows, self._pad_id))
        with torch.inference_mode():
            wanted = (self._mark(rows, "sparse"), self._mark(rows, "colbert"))
            computed = [part.cpu().numpy() for part in module.forward_all(ids, mask, *wanted)]
        values, weights, vectors = computed
        return values, _deal_out(rows, weights, vectors, np.asarray(module.silent, np.int32))

    def _mark(self, rows: Sequence[Tokens], kind: Extra) -> torch.Tensor:
        return torch.tensor([kind in row.extras for row in rows], device=self.device)

    def _move(self, array: NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if not self._pinned:
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


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
