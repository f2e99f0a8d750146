"""The memory of running processes over time.

Owns the sampling. Resident memory is read from the kernel, so nothing in the watched processes is disturbed.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import psutil

__all__ = ["MemoryWatch", "loads_library", "resident_mb"]


def resident_mb(processes: Sequence[psutil.Process]) -> float:
    """Return the resident memory of these processes together, in MB (10^6 bytes)."""
    return sum(process.memory_info().rss for process in processes) / 1e6


def loads_library(process: psutil.Process, name: str) -> bool:
    """Return whether a shared library whose path has this word is mapped into a running process."""
    return any(name in line for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines())


class MemoryWatch:
    """Samples the resident memory of some processes until the block ends.

    Attributes:
        samples: (seconds since the start, MB).
    """

    def __init__(self, processes: Sequence[psutil.Process], every_s: float = 0.1) -> None:
        self.samples: list[tuple[float, float]] = []
        self._processes, self._every_s = list(processes), every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def highest_mb(self) -> float:
        """The largest sample."""
        return max(mb for _, mb in self.samples)

    @property
    def first_mb(self) -> float:
        """The sample before the work began."""
        return self.samples[0][1]

    def mean_mb(self, start: float, stop: float) -> float:
        """Return the mean over a part of the time, given as fractions of it."""
        length_s = self.samples[-1][0]
        chosen = [mb for at_s, mb in self.samples if start * length_s <= at_s <= stop * length_s]
        return sum(chosen) / len(chosen)

    def __enter__(self) -> Self:
        self.samples.append((0.0, resident_mb(self._processes)))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        started_s = time.perf_counter()
        while not self._stop.wait(self._every_s):
            self.samples.append((time.perf_counter() - started_s, resident_mb(self._processes)))
