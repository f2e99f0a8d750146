"""What a backend is: the code that runs one family of models on one device.

Owns the shapes that cross this border. A backend gets token ids and gives numbers: it knows no text, no queue
and no request, and it is called by one thread at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Backend", "Tokens"]


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """One row for the model, special tokens included.

    Attributes:
        ids: int32, shape (length,).
        second_at: where the second text of a pair begins; 0 for a single text.
    """

    ids: NDArray[np.int32]
    second_at: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class Backend(Protocol):
    """Runs batches of one model. Called by one thread at a time.

    Attributes:
        kind: name of the backend, as a card may ask for it.
        device: `cpu`, `cuda:0`, ...
        dtype: precision of the arithmetic: float32, bfloat16 or float16.
        dimension: length of the vectors; None when the model gives scores.
        parallel: rows that are computed side by side, each on cores of its own; a batch should be a multiple of it.
        express: a second way to run the same weights, quick for few rows, that another thread may use while this one
            runs a batch; None where the device does one thing at a time.
    """

    kind: str
    device: str
    dtype: str
    dimension: int | None
    parallel: int
    express: "Backend | None"

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
