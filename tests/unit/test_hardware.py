"""Devices are chosen from what the machine says, before any device library is loaded."""

import importlib
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from config.settings import Settings
from tasks.errors import ConfigError, WorkError
from tests.support.nvidia_smi import SLICED, TWO_GPUS, put_on_path
from workers import hardware
from workers.boot import _choose_hardware
from workers.hardware import Device, choose_devices, count_chunks, memory_share, place_workers
from workers.launch import Launcher
from workers.models import registry

GPUS = [Device("gpu0", "GPU-aaaa"), Device("gpu1", "GPU-bbbb")]


def make(**fields: Any) -> Settings:
    return Settings(_env_file=None, **fields)


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(monkeypatch, tmp_path, TWO_GPUS)


@pytest.fixture
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("two_gpus")
def test_every_gpu_gets_a_worker_that_sees_no_other_and_has_no_choice() -> None:
    devices = choose_devices(make(), {})
    assert devices == GPUS
    assert [device.environment for device in devices] == [
        {"CUDA_VISIBLE_DEVICES": "GPU-aaaa", "TWOLANE_DEVICE": "cuda"},
        {"CUDA_VISIBLE_DEVICES": "GPU-bbbb", "TWOLANE_DEVICE": "cuda"},
    ]


@pytest.mark.usefixtures("two_gpus")
def test_a_list_of_devices_gives_those_alone() -> None:
    assert choose_devices(make(device="cuda:1"), {}) == GPUS[1:]
    assert choose_devices(make(device="cuda:1, cuda:0"), {}) == GPUS[::-1]
    with pytest.raises(ConfigError, match="2 GPU"):
        choose_devices(make(device="cuda:2"), {})
    with pytest.raises(ConfigError, match="auto, cpu, cuda"):
        choose_devices(make(device="rocm:0"), {})
    with pytest.raises(ConfigError, match="WORKERS_PER_DEVICE"):
        choose_devices(make(device="cuda:1,cuda:1"), {})


def test_the_slices_of_a_gpu_stand_for_it_by_names_that_do_not_shift(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(monkeypatch, tmp_path, SLICED)
    first, second, whole = choose_devices(make(), {})
    assert (first, second) == (Device("mig-11112222", "MIG-11112222-d268"), Device("mig-33334444", "MIG-33334444-d268"))
    assert whole == GPUS[1]
    put_on_path(monkeypatch, tmp_path, "".join(line for line in SLICED.splitlines(True) if "MIG-1111" not in line))
    assert choose_devices(make(), {}) == [second, whole]
    old = "MIG-GPU-5c89852c-d268/7/0"
    assert choose_devices(make(), {"CUDA_VISIBLE_DEVICES": old}) == [Device("mig-5c89852c-7-0", old)]


@pytest.mark.usefixtures("two_gpus")
def test_what_was_made_visible_from_outside_is_not_exceeded() -> None:
    assert choose_devices(make(), {"CUDA_VISIBLE_DEVICES": "1"}) == GPUS[1:]
    assert choose_devices(make(), {"CUDA_VISIBLE_DEVICES": "GPU-b,1"}) == GPUS[1:]
    assert choose_devices(make(), {"CUDA_VISIBLE_DEVICES": "MIG-9"}) == [Device("mig-9", "MIG-9")]
    assert choose_devices(make(), {"CUDA_VISIBLE_DEVICES": "7"}) == [Device("gpu7", "7")]
    for hidden in ("", "-1"):
        assert choose_devices(make(), {"CUDA_VISIBLE_DEVICES": hidden}) == [Device("cpu")]


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_processor_is_the_one_device() -> None:
    assert choose_devices(make(), {}) == [Device("cpu")]
    assert choose_devices(make(), {"CUDA_VISIBLE_DEVICES": "0"}) == [Device("gpu0", "0")], "the driver may be alone"
    with pytest.raises(ConfigError, match="no NVIDIA GPU"):
        choose_devices(make(device="cuda"), {})


def test_a_gpu_that_is_lost_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lost = "Unable to determine the device handle for GPU 0000:3b:00.0: Unknown Error\n"
    put_on_path(monkeypatch, tmp_path, lost + TWO_GPUS, code=15)
    with caplog.at_level(logging.WARNING, "workers.hardware"):
        assert choose_devices(make(), {}) == GPUS
    assert "code 15: Unable to determine the device handle" in caplog.text


def test_a_driver_that_does_not_answer_is_no_silent_choice_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_on_path(monkeypatch, tmp_path, "NVIDIA-SMI has failed\n", code=9)
    with caplog.at_level(logging.WARNING, "workers.hardware"):
        assert choose_devices(make(), {}) == [Device("cpu")]
    assert "code 9: NVIDIA-SMI has failed" in caplog.text


@pytest.mark.usefixtures("two_gpus")
def test_a_worker_for_the_processor_sees_no_gpu() -> None:
    (device,) = choose_devices(make(device="cpu"), {})
    assert device.environment == {"CUDA_VISIBLE_DEVICES": "", "TWOLANE_DEVICE": "cpu"}


def test_a_gpu_is_near_the_cores_that_its_bus_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buses = "GPU-aaaa, 00000000:17:00.0\nGPU-bbbb, 00000000:CA:00.0\n"
    for bus, cores in {"0000:17:00.0": "0-1,4\n", "0000:ca:00.0": "2-3\n"}.items():
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "local_cpulist").write_text(cores, "utf-8")
    monkeypatch.setattr(hardware, "_PCI", tmp_path)
    put_on_path(monkeypatch, tmp_path, SLICED, buses=buses)
    assert [device.cores for device in choose_devices(make(), {})] == [{0, 1, 4}, {0, 1, 4}, {2, 3}]
    put_on_path(monkeypatch, tmp_path, TWO_GPUS, buses="GPU-aaaa, [N/A]\n")
    assert [device.cores for device in choose_devices(make(), {})] == [frozenset()] * 2


def test_several_workers_on_a_gpu_have_names_and_even_parts_of_its_memory() -> None:
    assert place_workers(make(), GPUS) == GPUS
    shared = make(workers_per_device=2)
    assert [place.name for place in place_workers(shared, GPUS)] == ["gpu0-1", "gpu0-2", "gpu1-1", "gpu1-2"]
    assert {place.uuid for place in place_workers(shared, GPUS)} == {"GPU-aaaa", "GPU-bbbb"}
    assert [memory_share(make()), memory_share(shared)] == [1.0, 0.45]
    assert memory_share(make(workers_per_device=2, device_memory_share=0.3)) == 0.3
    with pytest.raises(ValidationError, match="more than the whole device"):
        make(workers_per_device=2, device_memory_share=0.6)


@pytest.mark.usefixtures("two_gpus")
def test_a_worker_that_was_started_by_hand_sees_the_one_gpu_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TWOLANE_") or name.endswith("_NUM_THREADS"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for name in ("TWOLANE_DEVICE", "TWOLANE_THREADS"):
        monkeypatch.setenv(name, "")  # so that they are put back
    assert _choose_hardware(make(device="cuda:1")).device == "cuda"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb"


@pytest.mark.usefixtures("two_gpus")
def test_a_worker_for_a_gpu_without_cuda_refuses_instead_of_computing_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_driver(*_: object, **__: object) -> None:
        raise RuntimeError("No CUDA GPUs are available\nmore words")

    built = SimpleNamespace(cuda=SimpleNamespace(is_built=lambda: False))
    torch = SimpleNamespace(backends=built, ones=no_driver)
    monkeypatch.setattr(importlib, "import_module", lambda name: torch if name == "torch" else None)
    for device in ("auto", "cuda", "cuda:1"):
        with pytest.raises(ConfigError, match="built without CUDA"):
            registry._device(make(device=device))
    built.cuda.is_built = lambda: True
    with pytest.raises(WorkError, match=r"does not start there: No CUDA GPUs are available$"):
        registry._device(make(device="cuda"))
    assert registry._device(make(device="cpu")) == "cpu"


def test_a_worker_on_a_gpu_holds_chunks_of_131072_tokens_unless_the_operator_says_how_many() -> None:
    cpu, gpu = Device("cpu"), Device("gpu0", "GPU-aaaa")
    assert count_chunks(make(), cpu) == 2
    assert count_chunks(make(), gpu) * make().chunk_tokens >= 131_072
    assert count_chunks(make(chunk_tokens=200_000), gpu) == 2
    assert count_chunks(make(chunks_in_flight=3), gpu) == 3
    worker = Launcher(make(redis_url=""), [gpu])._workers[0]
    assert worker.process.program.environment["TWOLANE_CHUNKS_IN_FLIGHT"] == "6"
