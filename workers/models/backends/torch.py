"""The torch backend: every device that torch knows, in the precision that the device is good at.

Owns moving a batch to the device and back, and what an out-of-memory error looks like. Owns no batching.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.errors import OutOfMemory
from workers.models.backends.base import Tokens
from workers.models.backends.padding import pad
from workers.models.weights import Weights

__all__ = ["TorchBackend"]


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
        self._pad_id = weights.pad_id
        self._reads_types = weights.reads_types
        self._pinned = device.startswith("cuda")

    def run(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        full = False
        try:
            return self._forward(rows)
        except torch.OutOfMemoryError:
            full = True
        except RuntimeError as error:
            # The CPU's allocator raises a plain RuntimeError.
            full = "not enough memory" in str(error) or "can't allocate memory" in str(error)
            if not full:
                raise
        # Raised outside, so that the error's traceback does not keep the tensors of the failed pass alive.
        raise OutOfMemory(f"{len(rows)} rows of up to {max(map(len, rows))} tokens do not fit on {self.device}")

    def run_exact(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run_exact`. Half-precision weights are widened in place and narrowed again, without loss."""
        if self.dtype == "float32":
            return self.run(rows)
        try:
            self._module.float()
            return self.run(rows)
        finally:
            self._module.to(getattr(torch, self.dtype))

    def free_memory(self) -> None:
        """See `Backend.free_memory`."""
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _forward(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        ids, mask, types = (self._move(array) for array in pad(rows, self._pad_id))
        with torch.inference_mode():
            values = self._module(ids, mask, types if self._reads_types else None)
            return np.asarray(values.cpu().numpy(), np.float32)

    def _move(self, array: NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if not self._pinned:
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)
