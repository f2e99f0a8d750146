"""The torch backend: every device that torch knows, in the precision that the device is good at.

Runs the modules of `families` over padded rows: the reference for every other way, and the way for every model that
those do not know. Owns moving a padded batch to the device. Owns no batching.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.vectors import Extra, ExtraParts
from workers.models.backends.base import Backend, Heads, Pipeline, Values
from workers.models.backends.device_memory import copy_back, within_memory
from workers.models.backends.padding import pad
from workers.models.backends.token_outputs import deal_out_all
from workers.models.families import MultiVectorEmbedder
from workers.models.tokenizing.tokenizer import Tokens
from workers.models.weights import Weights

__all__ = ["TorchBackend"]

T = TypeVar("T")
_HALF = (torch.float16, torch.bfloat16)


class TorchBackend:
    """See `workers.models.backends.base.Backend`."""

    kind = "torch"
    parallel = 1
    counts_padding = True
    preempts = False
    latency_stream: Backend | None = None

    def __init__(self, weights: Weights, device: str, dtype: str) -> None:
        """Move the weights to the device; they are already in `dtype`."""
        self.device = device
        self.dtype = dtype
        self.dimension = weights.dimension
        self._module = weights.module.to(device)
        self.heads: Heads | None = self if isinstance(weights.module, MultiVectorEmbedder) else None
        self._pad_id = weights.pad_id
        self._reads_types = weights.reads_types
        self._takes_layers = getattr(weights.module, "takes_layers", False)
        self._on_gpu = device.startswith("cuda")
        if self._on_gpu:
            # cuDNN's attention makes a plan for each new shape of a batch, and every batch of a corpus has a new one:
            # 87 ms for the first pass of a shape and 11 for the next (H200, torch 2.11), against 11 and 9 without it.
            torch.backends.cuda.enable_cudnn_sdp(enabled=False)
        self.pipeline: Pipeline | None = self if self._on_gpu else None
        # Streams and events; those of the CPU do nothing.
        self._api = torch.get_device_module(device)
        self._copies = self._api.Stream()

    def run(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        return within_memory(rows, self.device, partial(self._forward, rows))

    def start(self, rows: Sequence[Tokens]) -> Values:
        """See `Pipeline.start`. CUDA queues what is launched; only the wait for the values blocks."""
        return within_memory(rows, self.device, partial(self._launch, rows))

    def run_exact(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run_exact`."""
        return self._in_float32(lambda: self.run(rows))

    def run_all(self, rows: Sequence[Tokens], *, exact: bool = False) -> tuple[NDArray[np.float32], list[ExtraParts]]:
        """See `Heads.run_all`."""
        if exact:
            return self._in_float32(lambda: self.run_all(rows))
        return within_memory(rows, self.device, partial(self._forward_all, rows))

    def free_memory(self) -> None:
        """See `Backend.free_memory`."""
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _in_float32(self, run: Callable[[], T]) -> T:
        """Widen half-precision weights in place and narrow them again, without loss.

        What is in float32 anyway, as the frequencies of rotary positions, has to stay as it is: narrowed once, it
        would be off for good.
        """
        module = self._module
        if any(type(one.data) is not torch.Tensor for one in module.parameters()):
            # Weights of 8 or 4 bits hold no more than they give.
            return run()
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
        more = {}
        if self._takes_layers:
            more["layers"] = torch.tensor([row.cutoff_layer for row in rows])
        with torch.inference_mode():
            return copy_back(self._module(ids, mask, types if self._reads_types else None, **more))

    def _forward_all(self, rows: Sequence[Tokens]) -> tuple[NDArray[np.float32], list[ExtraParts]]:
        module = cast("MultiVectorEmbedder", self._module)
        ids, mask, _ = self._upload(pad(rows, self._pad_id))
        with torch.inference_mode():
            wanted = (self._mark(rows, "sparse"), self._mark(rows, "colbert"))
            computed = [part.cpu().numpy() for part in module.forward_all(ids, mask, *wanted)]
        values, weights, vectors = computed
        return values, deal_out_all(rows, weights, vectors, module.silent)

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
