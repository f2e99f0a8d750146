"""What this machine's processor is good at. Owns reading that from the system; imports no device library."""

import os
from functools import lru_cache
from pathlib import Path

__all__ = ["cpu_has_bfloat16", "usable_cores"]

_CPUINFO = Path("/proc/cpuinfo")


@lru_cache(maxsize=1)
def cpu_has_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware; where the system does not say, it does not."""
    try:
        flags = next(line for line in _CPUINFO.read_text("utf-8").splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.split())


def usable_cores() -> int:
    """Return how many cores this process may run on, which a pinned worker's parent has chosen."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
