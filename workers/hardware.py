"""Which devices this machine has for workers, decided once and before torch is imported.

Owns reading `nvidia-smi` and `/proc/cpuinfo`, and what a worker's environment says of its device. Imports no device
library: the launcher stays small, and a device is chosen by the environment of the worker's process, outside Python.
`workers.cores` decides which cores a worker gets.
"""

import logging
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from config.settings import Settings
from tasks.errors import ConfigError
from workers.cores import read_core_list

__all__ = ["Device", "choose_devices", "count_chunks", "cpu_has_bfloat16", "memory_share", "place_workers"]

_log = logging.getLogger(__name__)

_CPUINFO = Path("/proc/cpuinfo")
_PCI = Path("/sys/bus/pci/devices")
_LIST_TIMEOUT_S = 20.0
_GPU_LINE = re.compile(r"^GPU (?P<number>\d+):.*\(UUID: (?P<uuid>GPU-[^)]+)\)")
_SLICE_LINE = re.compile(r"^\s+MIG .*\(UUID: (?P<uuid>MIG-[^)]+)\)")
# Chunks that a GPU's worker holds have so many tokens: several full passes, and the texts of the next ones.
_GPU_TOKENS_IN_FLIGHT = 131_072
# What several workers on one GPU leave of its memory for their CUDA contexts.
_SHARED_MEMORY = 0.9


@dataclass(frozen=True, slots=True)
class Device:
    """One device, or one worker's place on it.

    Attributes:
        name: short name, part of the worker's name: `cpu`; `gpu0` by the number that nvidia-smi shows; `mig-` and the
            beginning of its UUID, since the numbers of slices shift when others are made. With several workers
            on it `gpu0-1`, `gpu0-2`, ...
        uuid: value of CUDA_VISIBLE_DEVICES; empty for the CPU, which hides every GPU.
        cores: the cores of the machine that are on its side of the memory; empty: not known, or all.
    """

    name: str
    uuid: str = ""
    cores: frozenset[int] = frozenset()

    @property
    def kind(self) -> str:
        """`cuda` or `cpu`: what the worker's own settings say, in which there is one device to see and no choice."""
        return "cuda" if self.uuid else "cpu"

    @property
    def environment(self) -> dict[str, str]:
        """What the worker's process must find in its environment to see this device and no other."""
        return {"CUDA_VISIBLE_DEVICES": self.uuid, "TWOLANE_DEVICE": self.kind}


@dataclass(frozen=True, slots=True)
class _Listed:
    """A line of `nvidia-smi -L`: a GPU, or a slice and the GPU that it is cut from."""

    device: Device
    gpu: str


def choose_devices(settings: Settings, environ: Mapping[str, str]) -> list[Device]:
    """Return the devices that are to be used, by `Settings.device`.

    Raises:
        ConfigError: a device was asked for that is not here.
    """
    if settings.device == "cpu":
        return [Device("cpu")]
    gpus = _visible_gpus(environ)
    if settings.device == "auto":
        return gpus or [Device("cpu")]
    if not gpus:
        raise ConfigError(f"TWOLANE_DEVICE={settings.device}, but no NVIDIA GPU is visible here")
    if settings.device == "cuda":
        return gpus
    chosen = [_numbered(gpus, wish.strip(), settings.device) for wish in settings.device.split(",")]
    if len(set(chosen)) < len(chosen):
        raise ConfigError(
            f"TWOLANE_DEVICE={settings.device} names a GPU twice; for several workers set TWOLANE_WORKERS_PER_DEVICE"
        )
    return chosen


def place_workers(settings: Settings, devices: Sequence[Device]) -> list[Device]:
    """Return one entry for each worker: every device, or with several workers a device `gpu0-1`, `gpu0-2`, ..."""
    count = settings.workers_per_device
    if count == 1:
        return list(devices)
    return [replace(device, name=f"{device.name}-{at}") for device in devices for at in range(1, count + 1)]


def memory_share(settings: Settings) -> float:
    """Return the share of a GPU's memory that one worker may take; 1: no limit."""
    if settings.device_memory_share:
        return settings.device_memory_share
    return 1.0 if settings.workers_per_device == 1 else _SHARED_MEMORY / settings.workers_per_device


def _numbered(gpus: Sequence[Device], wish: str, setting: str) -> Device:
    match = re.fullmatch(r"cuda:(\d+)", wish)
    if match is None:
        raise ConfigError(f"TWOLANE_DEVICE={setting}: use auto, cpu, cuda or a list as cuda:0,cuda:1")
    number = int(match.group(1))
    if number >= len(gpus):
        raise ConfigError(f"TWOLANE_DEVICE={setting}, but this process sees {len(gpus)} GPU(s)")
    return gpus[number]


def _visible_gpus(environ: Mapping[str, str]) -> list[Device]:
    """Return the GPUs and slices that this process may use."""
    allowed = environ.get("CUDA_VISIBLE_DEVICES")
    listed = _read_list(_list()) if allowed not in {"", "-1"} else []
    if allowed is not None:
        # Someone chose already, by number or by UUID. A number counts the devices of the machine.
        chosen = [item.strip() for item in allowed.split(",") if item.strip()]
        listed = list(dict.fromkeys(_find(listed, item) for item in chosen if item != "-1"))
    buses = _buses() if listed else {}
    return [replace(one.device, cores=_cores_near(buses.get(one.gpu, ""))) for one in listed]


def _find(listed: Sequence[_Listed], item: str) -> _Listed:
    """Return what an entry of CUDA_VISIBLE_DEVICES means; the driver may know one that nvidia-smi did not list."""
    if item.isdigit():
        return listed[int(item)] if int(item) < len(listed) else _Listed(Device(f"gpu{item}", item), "")
    # As CUDA itself does, take the beginning of a UUID for the whole.
    known = [one for one in listed if one.device.uuid.startswith(item)]
    return known[0] if known else _Listed(Device(_slug(item), item), "")


def _slug(uuid: str) -> str:
    """Return a name of a UUID as `MIG-5c89852c-d268-..`, or of older drivers' `MIG-GPU-5c89852c-d268-../7/0`."""
    kind, _, rest = uuid.partition("-")
    first, *instance = rest.removeprefix("GPU-").split("/")
    return "-".join(filter(None, [kind.lower(), first.split("-")[0], *instance]))


def _read_list(text: str) -> list[_Listed]:
    """Return what the output of `nvidia-smi -L` lists; of a GPU that is cut into slices, the slices."""
    found: list[_Listed] = []
    for line in text.splitlines():
        if gpu := _GPU_LINE.match(line):
            found.append(_Listed(Device(f"gpu{gpu['number']}", gpu["uuid"]), gpu["uuid"]))
        elif (slice_ := _SLICE_LINE.match(line)) and found:
            whole = found[-1].gpu
            if found[-1].device.uuid == whole:
                found.pop()
            found.append(_Listed(Device(_slug(slice_["uuid"]), slice_["uuid"]), whole))
    return found


def _list() -> str:
    """Return what nvidia-smi lists, also when it then fails: one GPU that is lost must not cost the others."""
    answer = _ask("-L")
    if answer is None:
        return ""
    if answer.returncode:
        lines = [*answer.stdout.splitlines(), *answer.stderr.splitlines()]
        said = " ".join(line.strip() for line in lines if not _GPU_LINE.match(line) and not _SLICE_LINE.match(line))
        _log.warning("nvidia-smi ended with code %d: %s", answer.returncode, said or "no reason given")
    return answer.stdout


def _buses() -> dict[str, str]:
    """Return the PCI bus ID of each GPU by UUID, as nvidia-smi writes it: 00000000:17:00.0."""
    answer = _ask("--query-gpu=uuid,pci.bus_id", "--format=csv,noheader")
    lines = answer.stdout.splitlines() if answer is not None else []
    return {uuid.strip(): bus.strip() for uuid, comma, bus in (line.partition(",") for line in lines) if comma}


def _ask(*arguments: str) -> "subprocess.CompletedProcess[str] | None":
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=_LIST_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("nvidia-smi cannot be asked for GPUs: %s", error)
        return None


def _cores_near(bus: str) -> frozenset[int]:
    """Return the cores on the side of the device with this PCI bus ID; none where the system does not say."""
    domain, _, rest = bus.lower().partition(":")
    try:
        return read_core_list((_PCI / f"{domain[-4:]}:{rest}" / "local_cpulist").read_text("utf-8"))
    except (OSError, ValueError):
        return frozenset()


@lru_cache(maxsize=1)
def cpu_has_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware; where the system does not say, it does not."""
    try:
        flags = next(line for line in _CPUINFO.read_text("utf-8").splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags.split())


def count_chunks(settings: Settings, device: Device) -> int:
    """Return how many chunks a worker holds at a time: what the operator chose, or on a GPU 131,072 tokens of them."""
    if device.kind == "cpu" or "chunks_in_flight" in settings.model_fields_set:
        return settings.chunks_in_flight
    return max(settings.chunks_in_flight, -(-_GPU_TOKENS_IN_FLIGHT // settings.chunk_tokens))
