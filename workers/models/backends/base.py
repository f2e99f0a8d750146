"""What a backend is: the code that runs one family of models on one device.

Owns the shapes that cross this border. A backend gets token ids and gives numbers: it knows no text, no queue
and no request, and it is called by one thread at a time.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.vectors import ExtraParts
from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["Backend", "Heads", "Pipeline", "Values"]

# Waits for the values of a pass that was started, and raises what `Backend.run` raises. Called once.
Values = Callable[[], NDArray[np.float32]]


class Backend(Protocol):
    """Runs batches of one model. Called by one thread at a time.

    Attributes:
        kind: name of the backend, as a card may ask for it.
        device: `cpu`, `cuda:0`, ...
        dtype: precision of the arithmetic: float32, bfloat16 or float16.
        dimension: length of the vectors; None when the model gives scores.
        parallel: rows that are computed side by side, each on cores of its own; a batch should be a multiple of it.
        counts_padding: whether a pass costs its rows times its longest row; else it costs the tokens of its rows.
        latency_stream: the same weights set up for few rows at a time, which another thread may run while this one
            runs a batch; None where the device does one thing at a time.
        preempts: of a latency stream, whether the device itself computes its passes before those of bulk, which then
            need neither wait nor be short for it.
        pipeline: starts a pass while the one before computes; None where a pass computes in the calling thread.
        heads: the same weights with what gives other kinds of vectors; None where there is none. Same thread.
    """

    kind: str
    device: str
    dtype: str
    dimension: int | None
    parallel: int
    counts_padding: bool
    latency_stream: "Backend | None"
    preempts: bool
    pipeline: "Pipeline | None"
    heads: "Heads | None"

    def run(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """Run one forward pass over rows of similar length.

        Returns:
            float32, shape (n, dimension), normalized if the card says so, or scores in [0, 1] of shape (n,).

        Raises:
            tasks.errors.OutOfMemory: the rows do not fit on the device together.
        """
        ...

    def run_exact(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """Do the same in float32. Slow, and only for rows whose result was not a number.

        Raises:
            tasks.errors.OutOfMemory: the rows do not fit on the device together.
        """
        ...

    def free_memory(self) -> None:
        """Give cached memory back to the device, before a smaller batch is tried."""
        ...


class Pipeline(Protocol):
    """Lets the device compute while the next pass is prepared. Same thread as its backend."""

    def start(self, rows: Sequence[Tokens]) -> Values:
        """Start what `Backend.run` does and return before it is done.

        Two passes may be started and not waited for; they are waited for in the order in which they were started.

        Raises:
            tasks.errors.OutOfMemory: the rows do not fit on the device beside those of the pass before.
        """
        ...


class Heads(Protocol):
    """Gives sparse weights and ColBERT vectors of the forward pass that gives the dense vector anyway."""

    def run_all(self, rows: Sequence[Tokens], *, exact: bool = False) -> tuple[NDArray[np.float32], list[ExtraParts]]:
        """Run one forward pass as `Backend.run`, or `Backend.run_exact`; rows that want no more get only their value.

        Returns:
            the values, and for each row what its `extras` ask for. Weights and vectors that are no numbers stay in,
            for the caller to see.

        Raises:
            tasks.errors.OutOfMemory: the rows do not fit on the device together.
        """
        ...
