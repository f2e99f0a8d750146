"""Which processor cores each worker of a machine may use, and with how many threads it computes.

Owns the arithmetic of cores: one is left for the web process and Redis, a worker gets those on the side of the memory
where its GPU is, and hyper-threads of one core stay together. Imports no device library; chooses no device.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from config.settings import Settings
from tasks.errors import ConfigError

__all__ = ["Cores", "parse_affinity", "plan_cores", "read_core_list", "usable_cores"]

_CPUS = Path("/sys/devices/system/cpu")
# Every thread pool that a device library may open reads one of these when it is loaded.
# The last is our own setting: OpenVINO and torch get their threads by it.
_THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"),
    "TWOLANE_THREADS",
)
# From this many cores on, one is left for the web process and Redis.
_SPARE_CORE_FROM = 4
# A worker's own Python and its threads take turns on a single core: then the system distributes them better.
_LEAST_PINNED = 2


@dataclass(frozen=True, slots=True)
class Cores:
    """What one worker may use of the processor.

    Attributes:
        threads: threads of one computation.
        affinity: the cores that it is pinned to; empty: not pinned.
    """

    threads: int
    affinity: frozenset[int] = frozenset()

    @property
    def environment(self) -> dict[str, str]:
        """What the worker's process must find in its environment before it loads a device library or its settings."""
        threads = {name: str(self.threads) for name in _THREAD_VARIABLES}
        # The list of the settings is shared out among the workers, and each checks its own part only.
        pinned = {"TWOLANE_CPU_AFFINITY": ",".join(map(str, sorted(self.affinity)))} if self.affinity else {}
        return {**threads, **pinned}

    def pin(self) -> None:
        """Keep the calling process on its cores, where the platform can do that."""
        if self.affinity and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.affinity)


def usable_cores() -> int:
    """Return how many cores this process may run on, which a pinned worker's parent has chosen."""
    return len(_allowed_cores())


def plan_cores(settings: Settings, near: Sequence[frozenset[int]] = (frozenset(),)) -> list[Cores]:
    """Return what each worker of this machine may use.

    One worker whose device is near all cores is not pinned, unless `cpu_affinity` says so; where there are four cores
    or more, it computes with one less. Several workers share out the cores of `cpu_affinity`, or all but one, and each
    is pinned to its share.

    Args:
        settings: `cpu_affinity`, and `threads` where the operator chose a number.
        near: for each worker the cores that are near its device; empty: all are.

    Raises:
        ConfigError: `cpu_affinity` is not a list of cores of this machine.
    """
    listed, allowed = parse_affinity(settings.cpu_affinity), _allowed_cores()
    if not listed <= allowed:
        raise ConfigError(f"TWOLANE_CPU_AFFINITY={settings.cpu_affinity}: this process may use {sorted(allowed)}")
    cores = listed or allowed
    spare = 1 if not listed and len(allowed) >= _SPARE_CORE_FROM else 0
    if len(near) == 1 and (not near[0] or cores <= near[0]):
        return [Cores(settings.threads or len(cores) - spare, listed)]
    shares = _share_out(_whole_cores(cores)[spare:], [wish & cores or cores for wish in near])
    return [_plan_share(share, len(cores) // len(near), listed, settings.threads) for share in shares]


def _plan_share(share: frozenset[int], even: int, listed: frozenset[int], threads: int) -> Cores:
    affinity = share if len(share) >= _LEAST_PINNED else listed
    return Cores(threads or len(share) or max(1, even), affinity)


def _share_out(wholes: Sequence[frozenset[int]], near: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    """Deal whole cores to the workers in turns, each from those near its device, the least wanted ones first.

    A worker for which nothing near is left gets from the rest; where there are fewer cores than workers, some get none.
    """
    wanted = Counter(whole for whole in wholes for wish in near if whole & wish)
    left = sorted(wholes, key=lambda whole: (wanted[whole], min(whole)))
    shares: list[frozenset[int]] = [frozenset() for _ in near]
    taking = list(range(len(near)))
    while taking:
        taking = [at for at in taking if _take(left, shares, at, near[at])]
    for at, share in enumerate(shares):
        if not share and left:
            shares[at] = left.pop()
    return shares


def _take(left: list[frozenset[int]], shares: list[frozenset[int]], at: int, wish: frozenset[int]) -> bool:
    whole = next((whole for whole in left if whole & wish), None)
    if whole is None:
        return False
    left.remove(whole)
    shares[at] |= whole
    return True


def _whole_cores(cores: frozenset[int]) -> list[frozenset[int]]:
    """Return the cores in groups of hyper-threads that share one, by their numbers."""
    return sorted({_siblings(core) & cores or frozenset({core}) for core in cores}, key=min)


def _siblings(core: int) -> frozenset[int]:
    try:
        return read_core_list((_CPUS / f"cpu{core}" / "topology" / "thread_siblings_list").read_text("utf-8"))
    except (OSError, ValueError):
        return frozenset({core})


def parse_affinity(text: str) -> frozenset[int]:
    """Return the cores of a list as `0-3` or `0,2`; none for an empty one.

    Raises:
        ConfigError: it is not such a list.
    """
    try:
        return read_core_list(text)
    except ValueError as error:
        raise ConfigError(f"TWOLANE_CPU_AFFINITY={text}: use a list of cores as 0-3 or 0,2") from error


def read_core_list(text: str) -> frozenset[int]:
    """Return the cores of a list as the kernel writes it: `0-3,8`.

    Raises:
        ValueError: it is not such a list.
    """
    return frozenset(core for part in filter(None, map(str.strip, text.split(","))) for core in _read_range(part))


def _read_range(part: str) -> Iterable[int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise ValueError(f"{part} is no core and no range of cores")
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _allowed_cores() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
