"""What models take in memory, as measured: on a GPU by torch's allocator, on a CPU by the size of the process.

Owns measuring and giving freed memory back to the system. Imports no device library by itself.
"""

import ctypes
import gc
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from workers.models.backends.base import Backend

__all__ = ["MemoryGauge", "release_memory", "weight_bytes"]

# As `workers.models.folders.folder` knows them; a model's modules may have weights in folders of their own.
_WEIGHTS: Sequence[Sequence[str]] = ("*.safetensors", "*/*.safetensors"), ("pytorch_model*.bin", "*/pytorch_model*.bin")


class MemoryGauge:
    """Measures from its making on what a model takes: weights, and working memory of the passes that warmed it up.

    What other models compute meanwhile is counted in, so a model that is loaded beside busy ones seems larger.
    """

    def __init__(self) -> None:
        release_memory()
        self._process_bytes = psutil.Process().memory_info().rss
        self._device_bytes = 0
        if cuda := _cuda():
            cuda.reset_peak_memory_stats()
            self._device_bytes = cuda.memory_allocated()

    def measure(self, backend: Backend, weights: int) -> int:
        """Return the bytes that the model takes on its device.

        Args:
            backend: of the model.
            weights: bytes of its files, which the least counts for on a CPU: memory that was freed before may be used
                again, and does not show.
        """
        if backend.device.startswith("cuda") and (cuda := _cuda()):
            return int(cuda.max_memory_allocated()) - self._device_bytes
        return max(psutil.Process().memory_info().rss - self._process_bytes, weights)


def weight_bytes(folder: Path) -> int:
    """Return the size of the weights that lie in a model's folder."""
    for patterns in _WEIGHTS:
        if files := {path for pattern in patterns for path in folder.glob(pattern)}:
            return sum(path.stat().st_size for path in files)
    return 0


def release_memory() -> None:
    """Give what nobody uses back to device and system; without it a model that was unloaded still takes its place."""
    gc.collect()
    if cuda := _cuda():
        cuda.empty_cache()
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _cuda() -> Any:
    """Return `torch.cuda` if this process uses it; else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
