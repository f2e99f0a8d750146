"""Devices of a machine with two GPUs, of which one always fails: real launcher, real workers with the fake model."""

import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from flask import Flask

from config import supervisor
from config.settings import Settings
from tasks.connections import connect
from tasks.presence.device_states import DeviceReporter
from tasks.presence.fleet import Fleet
from tests.support.nvidia_smi import TWO_GPUS, put_on_path
from tests.support.polling import wait_until
from tests.support.stack_fixture import clean_environment
from tests.support.web import opened_app
from workers import launch
from workers.hardware import choose_devices
from workers.launch import Launcher

# Runs before anything else in every Python whose path it is on: what a GPU does that breaks under its worker.
BROKEN = "import os\nif os.environ.get('CUDA_VISIBLE_DEVICES') == 'GPU-bbbb': os._exit(9)\n"


@pytest.fixture
def machine(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The launcher of this machine, reporting; stopped at the end."""
    put_on_path(monkeypatch, tmp_path, TWO_GPUS)
    (tmp_path / "sitecustomize.py").write_text(BROKEN, "utf-8")
    fields = {"redis_url": settings.redis_url, "data_dir": str(settings.data_dir), "models": "fake"}
    environment = clean_environment(**fields)
    environment["PYTHONPATH"] += f":{tmp_path}"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(launch, "_LONGEST_DELAY_S", 0.2)
    launcher = Launcher(settings, choose_devices(settings, {}))
    redis = connect(settings.redis_url, name="test-launcher")
    look = partial(launch._look, launcher, Fleet(redis), settings.worker_ttl_s)
    reporter = DeviceReporter(redis, "test", look, settings.worker_ttl_s)
    thread = threading.Thread(target=launcher.run)
    reporter.start()
    thread.start()
    yield
    launcher.stop()
    reporter.stop()
    thread.join()
    redis.close()


@pytest.mark.skipif(sys.platform != "linux", reason="parents of processes are watched on Linux only")
@pytest.mark.usefixtures("machine")
def test_the_rest_serve_while_a_device_that_keeps_failing_is_set_aside(settings: Settings) -> None:
    with opened_app(settings) as app:
        client = app.test_client()
        wait_until(lambda: states(app) == {"gpu0": "ready", "gpu1": "set_aside"}, 90.0)
        (broken,) = [entry for entry in devices(app) if entry["device"] == "gpu1"]
        assert int(broken["failures"]) >= launch._MOST_FAILURES
        assert broken["reason"] == "its worker ended with code 9"
        assert client.get("/readyz").status_code == 200
        assert client.post("/v1/embeddings", json={"model": "fake", "input": "served"}).status_code == 200
        metrics = client.get("/metrics").text
        counts = {"ready": 1, "set_aside": 1, "starting": 0, "refused": 0}
        lines = [f'twolane_devices{{state="{state}"}} {count}.0' for state, count in counts.items()]
        assert [line for line in lines if line not in metrics] == []


def devices(app: Flask) -> list[dict[str, str | int]]:
    found: list[dict[str, str | int]] = (app.test_client().get("/health").json or {}).get("devices", [])
    return found


def states(app: Flask) -> dict[str | int, str | int]:
    return {entry["device"]: entry["state"] for entry in devices(app)}
