"""What torch's backends share in moving values between a device and the host.

Owns what an out-of-memory error looks like in torch, and how values are copied back while the device computes on.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.errors import OutOfMemory
from workers.models.backends.base import Values
from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["copy_back", "within_memory"]

T = TypeVar("T")


def within_memory(rows: Sequence[Tokens], device: str, run: Callable[[], T]) -> T:
    """Return what `run` returns for these rows.

    Raises:
        tasks.errors.OutOfMemory: they do not fit on the device together.
    """
    full = False
    try:
        return run()
    except torch.OutOfMemoryError:
        full = True
    except RuntimeError as error:
        # The CPU's allocator raises a plain RuntimeError.
        full = "not enough memory" in str(error) or "can't allocate memory" in str(error)
        if not full:
            raise
    # Raised outside, so that the error's traceback does not keep the tensors of the failed pass alive.
    raise OutOfMemory(f"{len(rows)} rows of up to {max(map(len, rows))} tokens do not fit on {device}")


def copy_back(values: torch.Tensor) -> Values:
    """Queue the copy of a device's values to the host, behind what computes them; the wait is all that blocks."""
    # Streams and events; those of the CPU do nothing.
    api = torch.get_device_module(values.device)
    home = torch.empty(values.shape, dtype=torch.float32, pin_memory=values.is_cuda)
    home.copy_(values, non_blocking=True)
    landed = api.Event()
    landed.record(api.current_stream())

    def wait() -> NDArray[np.float32]:
        landed.synchronize()
        return np.asarray(home.numpy())

    return wait
