"""Which devices this machine has, and which processor cores a worker may use: decided before torch is imported.

Owns reading `nvidia-smi` and `/proc/cpuinfo`, and the arithmetic of cores. Imports no device library: the launcher
stays small, and a device is chosen by the environment of the worker's process, outside Python.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from config.settings import Settings
from tasks.errors import ConfigError

__all__ = [
    "Cores",
    "Device",
    "choose_devices",
    "cpu_has_bfloat16",
    "parse_affinity",
    "parse_gpu_list",
    "plan_cores",
    "usable_cores",
]

_CPUINFO = Path("/proc/cpuinfo")
_LIST_TIMEOUT_S = 20.0
_GPU_LINE = re.compile(r"^GPU \d+:.*\(UUID: (?P<uuid>GPU-[^)]+)\)")
_SLICE_LINE = re.compile(r"^\s+MIG .*\(UUID: (?P<uuid>MIG-[^)]+)\)")
# Every thread pool that a device library may open reads one of these when it is loaded.
# The last is our own setting: OpenVINO and torch get their threads by it.
_THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"),
    "TWOLANE_THREADS",
)
# From this many cores on, one is left for the web process and the server.
_SPARE_CORE_FROM = 4


@dataclass(frozen=True, slots=True)
class Device:
    """One device for one worker.

    Attributes:
        name: short name, part of the worker's name: `cpu`, `gpu0`, ...
        uuid: value of CUDA_VISIBLE_DEVICES; empty for the CPU, which hides every GPU.
    """

    name: str
    uuid: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What the worker's process must find in its environment to see this device and no other."""
        return {"CUDA_VISIBLE_DEVICES": self.uuid}


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
        return {name: str(self.threads) for name in _THREAD_VARIABLES}

    def pin(self) -> None:
        """Keep the calling process on its cores, where the platform can do that."""
        if self.affinity and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.affinity)


def choose_devices(settings: Settings, environ: Mapping[str, str]) -> list[Device]:
    """Return the devices that get a worker each, by `Settings.device`.

    Raises:
        ConfigError: a device was asked for that is not here.
    """
    if settings.device == "cpu":
        return [Device("cpu")]
    gpus = [Device(f"gpu{number}", uuid) for number, uuid in enumerate(_visible_gpus(environ))]
    if settings.device == "auto":
        return gpus or [Device("cpu")]
    if not gpus:
        raise ConfigError(f"TWOLANE_DEVICE={settings.device}, but no NVIDIA GPU is visible here")
    if settings.device == "cuda":
        return gpus
    return [_numbered(gpus, wish.strip(), settings.device) for wish in settings.device.split(",")]


def _numbered(gpus: Sequence[Device], wish: str, setting: str) -> Device:
    match = re.fullmatch(r"cuda:(\d+)", wish)
    if match is None:
        raise ConfigError(f"TWOLANE_DEVICE={setting}: use auto, cpu, cuda or a list as cuda:0,cuda:1")
    number = int(match.group(1))
    if number >= len(gpus):
        raise ConfigError(f"TWOLANE_DEVICE={setting}, but this process sees {len(gpus)} GPU(s)")
    return gpus[number]


def _visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES may be set to, one value for each GPU that this process may use."""
    allowed = environ.get("CUDA_VISIBLE_DEVICES")
    present = _present_gpus()
    if allowed is None:
        return present
    # Someone chose already, by number or by UUID. A number counts the devices of the machine.
    chosen = [item.strip() for item in allowed.split(",") if item.strip()]
    return [
        present[int(item)] if item.isdigit() and int(item) < len(present) else item for item in chosen if item != "-1"
    ]


def _present_gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=_LIST_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpu_list(listed.stdout)


def parse_gpu_list(text: str) -> list[str]:
    """Return the UUIDs in the output of `nvidia-smi -L`; of a GPU that is cut into slices, those of its slices."""
    uuids: list[str] = []
    whole = False  # whether the last entry is a GPU of which no slice was seen yet
    for line in text.splitlines():
        if gpu := _GPU_LINE.match(line):
            uuids.append(gpu["uuid"])
            whole = True
        elif slice_ := _SLICE_LINE.match(line):
            if whole:
                uuids.pop()
            whole = False
            uuids.append(slice_["uuid"])
    return uuids


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
    return len(_allowed_cores())


def plan_cores(settings: Settings, workers: int = 1) -> Cores:
    """Return what each of so many workers on this machine may use.

    With `threads = 0` the workers share the cores that this process may use; where there are four or more, one is left
    for the web process and the server, which else take turns with the computation on every core.

    Raises:
        ConfigError: `cpu_affinity` is not a list of cores of this machine.
    """
    affinity = parse_affinity(settings.cpu_affinity)
    allowed = _allowed_cores()
    if not affinity <= allowed:
        raise ConfigError(f"TWOLANE_CPU_AFFINITY={settings.cpu_affinity}: this process may use {sorted(allowed)}")
    usable = len(affinity) or (len(allowed) - 1 if len(allowed) >= _SPARE_CORE_FROM else len(allowed))
    return Cores(settings.threads or max(1, usable // workers), affinity)


def parse_affinity(text: str) -> frozenset[int]:
    """Return the cores of a list as `0-3` or `0,2`; none for an empty one.

    Raises:
        ConfigError: it is not such a list.
    """
    cores: set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or int(match.group(2) or match.group(1)) < int(match.group(1)):
            raise ConfigError(f"TWOLANE_CPU_AFFINITY={text}: use a list of cores as 0-3 or 0,2")
        cores |= set(range(int(match.group(1)), int(match.group(2) or match.group(1)) + 1))
    return frozenset(cores)


def _allowed_cores() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
