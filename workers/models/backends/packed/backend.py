"""The packed backend: computes real tokens only.

Owns moving flat rows to the device, and the precision of a pass. What is computed is `model`'s, recorded passes are
`graphs`'.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.vectors import ExtraParts
from workers.models.backends.base import Backend, Heads, Pipeline, Values
from workers.models.backends.device_memory import copy_back, within_memory
from workers.models.backends.packed.flat import Flat, Shape, write_rows
from workers.models.backends.packed.model import PackedModel
from workers.models.backends.token_outputs import deal_out_all
from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["PackedBackend"]


class PackedBackend:
    """See `workers.models.backends.base.Backend`. Several instances may share a model, one thread each."""

    kind = "packed"
    parallel = 1
    counts_padding = False
    preempts = False

    def __init__(self, model: PackedModel, like: Backend, latency_stream: Backend | None = None) -> None:
        """Run a model whose weights are on the device already.

        Args:
            model: what computes.
            like: a backend of the same weights: device, precision and dimension are the same.
            latency_stream: see `Backend.latency_stream`.
        """
        self.device, self.dtype, self.dimension = like.device, like.dtype, like.dimension
        self.latency_stream = latency_stream
        self.heads: Heads | None = None if model.heads is None else self
        self._on_gpu = self.device.startswith("cuda")
        self.pipeline: Pipeline | None = self if self._on_gpu else None
        self._model = model
        self._precision: torch.dtype = getattr(torch, self.dtype)

    def run(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run`."""
        return within_memory(rows, self.device, partial(self._compute, rows, self._precision))

    def start(self, rows: Sequence[Tokens]) -> Values:
        """See `Pipeline.start`. CUDA queues what is launched; only the wait for the values blocks."""
        return within_memory(rows, self.device, partial(self._launch, rows, self._precision))

    def run_exact(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """See `Backend.run_exact`. The weights are widened one at a time, as they are used."""
        return within_memory(rows, self.device, partial(self._compute, rows, torch.float32))

    def run_all(self, rows: Sequence[Tokens], *, exact: bool = False) -> tuple[NDArray[np.float32], list[ExtraParts]]:
        """See `Heads.run_all`."""
        dtype = torch.float32 if exact else self._precision
        return within_memory(rows, self.device, partial(self._compute_all, rows, dtype))

    def free_memory(self) -> None:
        """See `Backend.free_memory`."""
        if self._on_gpu:
            torch.cuda.empty_cache()

    def _compute(self, rows: Sequence[Tokens], dtype: torch.dtype) -> NDArray[np.float32]:
        return self._launch(rows, dtype)()

    def _launch(self, rows: Sequence[Tokens], dtype: torch.dtype) -> Values:
        with torch.inference_mode():
            return copy_back(self._model.values(self._upload(rows), dtype))

    def _compute_all(self, rows: Sequence[Tokens], dtype: torch.dtype) -> tuple[NDArray[np.float32], list[ExtraParts]]:
        wanted = (
            torch.tensor([kind in row.extras for row in rows], device=self.device) for kind in ("sparse", "colbert")
        )
        with torch.inference_mode():
            computed = self._model.all_values(self._upload(rows), dtype, *wanted)
            values, weights, vectors = (part.cpu().numpy() for part in computed)
        silent = self._model.heads.silent if self._model.heads is not None else []
        return values, deal_out_all(rows, weights, vectors, silent)

    def _upload(self, rows: Sequence[Tokens]) -> Flat:
        """Copy the rows to the device in one piece. It is queued before the pass, and small beside it."""
        shape = Shape.of(rows)
        array = torch.empty(shape.size, dtype=torch.int32, pin_memory=self._on_gpu)
        write_rows(rows, shape, array.numpy())
        return Flat.over(array.to(self.device, non_blocking=True), shape, max(map(len, rows)))
