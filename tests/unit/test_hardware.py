"""Devices and cores are chosen from what the machine says, before any device library is loaded."""

import os
import stat
from pathlib import Path

import pytest

from config.settings import Settings
from tasks.errors import ConfigError
from workers import hardware as pinning
from workers.boot import _choose_cores
from workers.hardware import Cores, Device, choose_devices, parse_affinity, parse_gpu_list, plan_cores

TWO_GPUS = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
"""
SLICED = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
  MIG 3g.40gb     Device  0: (UUID: MIG-1111)
  MIG 3g.40gb     Device  1: (UUID: MIG-2222)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
"""


def with_device(device: str) -> Settings:
    return Settings(_env_file=None, device=device)


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program on PATH that answers as nvidia-smi does on a machine with two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && cat <<'EOF'\n{TWO_GPUS}EOF\n", "utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_gpus_are_named_by_uuid_and_a_sliced_one_by_its_slices() -> None:
    assert parse_gpu_list(TWO_GPUS) == ["GPU-aaaa", "GPU-bbbb"]
    assert parse_gpu_list(SLICED) == ["MIG-1111", "MIG-2222", "GPU-bbbb"]
    assert parse_gpu_list("NVIDIA-SMI has failed\n") == []


@pytest.mark.usefixtures("two_gpus")
def test_every_gpu_gets_a_worker_that_sees_no_other() -> None:
    devices = choose_devices(with_device("auto"), {})
    assert devices == [Device("gpu0", "GPU-aaaa"), Device("gpu1", "GPU-bbbb")]
    assert [device.environment for device in devices] == [
        {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"},
        {"CUDA_VISIBLE_DEVICES": "GPU-bbbb"},
    ]


@pytest.mark.usefixtures("two_gpus")
def test_a_list_of_devices_gives_those_alone() -> None:
    assert choose_devices(with_device("cuda:1"), {}) == [Device("gpu1", "GPU-bbbb")]
    assert len(choose_devices(with_device("cuda:1,cuda:0"), {})) == 2
    with pytest.raises(ConfigError, match="2 GPU"):
        choose_devices(with_device("cuda:2"), {})
    with pytest.raises(ConfigError, match="auto, cpu, cuda"):
        choose_devices(with_device("rocm:0"), {})


@pytest.mark.usefixtures("two_gpus")
def test_what_was_made_visible_from_outside_is_not_exceeded() -> None:
    assert choose_devices(with_device("auto"), {"CUDA_VISIBLE_DEVICES": "1"}) == [Device("gpu0", "GPU-bbbb")]
    assert choose_devices(with_device("auto"), {"CUDA_VISIBLE_DEVICES": "MIG-9"}) == [Device("gpu0", "MIG-9")]
    for hidden in ("", "-1"):
        assert choose_devices(with_device("auto"), {"CUDA_VISIBLE_DEVICES": hidden}) == [Device("cpu")]


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_processor_is_the_one_device() -> None:
    assert choose_devices(with_device("auto"), {}) == [Device("cpu")]
    with pytest.raises(ConfigError, match="no NVIDIA GPU"):
        choose_devices(with_device("cuda"), {})


@pytest.mark.usefixtures("two_gpus")
def test_a_worker_for_the_processor_sees_no_gpu() -> None:
    (device,) = choose_devices(with_device("cpu"), {})
    assert device.environment == {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("text", "cores"), [("", set()), ("0-3", {0, 1, 2, 3}), ("0,2", {0, 2}), (" 1 , 4-5 ", {1, 4, 5})]
)
def test_a_list_of_cores_is_read(text: str, cores: set[int]) -> None:
    assert parse_affinity(text) == cores


@pytest.mark.parametrize("text", ["a", "3-1", "1-", "0;1"])
def test_a_bad_list_of_cores_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="TWOLANE_CPU_AFFINITY"):
        parse_affinity(text)


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, 1, 1), (2, 1, 2), (4, 1, 3), (16, 4, 3), (4, 8, 1)])
def test_cores_are_shared_and_one_is_left_for_the_web_where_there_are_four(
    cores: int, workers: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning, "_allowed_cores", lambda: frozenset(range(cores)))
    assert plan_cores(Settings(_env_file=None), workers) == Cores(threads)


def test_threads_and_affinity_of_the_settings_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "_allowed_cores", lambda: frozenset(range(8)))
    assert plan_cores(Settings(_env_file=None, cpu_affinity="0-1")) == Cores(2, frozenset({0, 1}))
    assert plan_cores(Settings(_env_file=None, cpu_affinity="0-1", threads=5)).threads == 5
    with pytest.raises(ConfigError, match="may use"):
        plan_cores(Settings(_env_file=None, cpu_affinity="7-8"))


def test_a_worker_computes_with_the_threads_that_were_planned_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.hardware._allowed_cores", lambda: frozenset(range(8)))
    for name in Cores(1).environment:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert _choose_cores(Settings(_env_file=None)).threads == 7, "one that was started by hand"
    for name, value in plan_cores(Settings(_env_file=None, threads=0), workers=2).environment.items():
        monkeypatch.setenv(name, value)
    assert Settings(_env_file=None).threads == 3, "one of two that the launcher started"
