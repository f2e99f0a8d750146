"""The launcher with real processes that die, hang and give up; what they run is replaced, so that it is quick."""

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from config import supervisor
from config.settings import Settings
from config.supervisor import EXIT_CONFIG
from tests.support.nvidia_smi import TWO_GPUS, put_on_path
from tests.support.polling import wait_until
from workers import launch
from workers.hardware import Device, choose_devices
from workers.launch import Launcher

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes every worker run this piece of Python."""

    def replace(code: str) -> None:
        monkeypatch.setattr(launch, "_command", lambda device: [sys.executable, "-c", code])

    return replace


def make(*devices: str, stop_s: float = 8.0) -> Launcher:
    settings = Settings(_env_file=None, worker_stop_s=stop_s)
    return Launcher(settings, [Device(name, uuid=f"GPU-{name}") for name in devices])


def in_thread(launcher: Launcher) -> tuple[threading.Thread, list[int]]:
    """Run the launcher; the list gets its exit code. The thread lives as long as its children must."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(launcher.run()))
    thread.start()
    return thread, codes


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "-c" in _arguments(child)]


def _arguments(process: psutil.Process) -> list[str]:
    """The command line of a process; none of one that has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # also what is raised of a zombie
        return []


def test_a_worker_that_keeps_dying_is_started_again_with_growing_delays(
    runs: Callable[[str], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 0.1)
    runs("raise SystemExit(3)")
    with caplog.at_level(logging.WARNING, "workers.launch"):
        launcher = make("cpu")
        thread, codes = in_thread(launcher)
        wait_until(lambda: len(caplog.messages) >= 3)
        launcher.stop()
        thread.join()
    assert codes == [0]
    assert [message.split("again in ")[1] for message in caplog.messages[:3]] == ["0.1 s", "0.2 s", "0.4 s"]
    assert "with code 3" in caplog.messages[0]


def test_the_delay_is_short_again_after_a_healthy_minute(
    runs: Callable[[str], None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 0.1)
    monkeypatch.setattr(supervisor, "_HEALTHY_AFTER_S", 0.0)
    runs("raise SystemExit(3)")
    with caplog.at_level(logging.WARNING, "workers.launch"):
        launcher = make("cpu")
        thread, _ = in_thread(launcher)
        wait_until(lambda: len(caplog.messages) >= 3)
        launcher.stop()
        thread.join()
    assert {message.split("again in ")[1] for message in caplog.messages} == {"0.1 s"}


def test_a_worker_that_cannot_start_with_these_settings_is_not_tried_again(runs: Callable[[str], None]) -> None:
    runs(f"raise SystemExit({EXIT_CONFIG})")
    assert make("gpu0", "gpu1").run() == EXIT_CONFIG


def test_every_worker_sees_its_own_device_and_its_share_of_the_cores(
    runs: Callable[[str], None], capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(monkeypatch, tmp_path, TWO_GPUS)
    mine = sorted(os.sched_getaffinity(0))
    settings = Settings(_env_file=None, device="cuda:1,cuda:0", cpu_affinity=",".join(map(str, mine)))
    # Of the settings that a worker reads, as it does: its one GPU is the first that it sees.
    runs(
        "import os; from config.settings import Settings; from workers.cores import plan_cores; s = Settings();"
        "print(os.environ['CUDA_VISIBLE_DEVICES'], s.device, s.threads, plan_cores(s)[0].threads, flush=True);"
        f"raise SystemExit({EXIT_CONFIG})"
    )
    Launcher(settings, choose_devices(settings, {})).run()
    share = max(1, len(mine) // 2)
    said = sorted(capfd.readouterr().out.splitlines())
    assert [line.split()[:2] for line in said] == [["GPU-aaaa", "cuda"], ["GPU-bbbb", "cuda"]]
    assert all(int(number) >= share for line in said for number in line.split()[2:])


@pytest.fixture
def second_fails(runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    """A launcher with a worker that runs and one that always dies; gone at the end."""
    monkeypatch.setattr(supervisor, "_FIRST_DELAY_S", 0.02)
    monkeypatch.setattr(launch, "_LONGEST_DELAY_S", 0.1)
    runs("import os, time; os.environ['CUDA_VISIBLE_DEVICES'] == 'GPU-gpu1' and os._exit(3); time.sleep(60)")
    launcher = make("gpu0", "gpu1", stop_s=0.1)
    thread, _ = in_thread(launcher)
    yield launcher
    launcher.stop()
    thread.join()


def failures(launcher: Launcher, ready: set[str]) -> int:
    """How often the second device failed, seen while these workers are ready."""
    return launcher.look(ready)[1].failures


def running(name: str) -> set[str]:
    """The ids of the workers that run, if they have this name."""
    return {f"{name}.{os.getpid()}@{socket.gethostname()}#{child.pid}" for child in children()}


def test_a_device_that_keeps_failing_is_set_aside_while_another_one_is_ready(
    second_fails: Launcher, caplog: pytest.LogCaptureFixture
) -> None:
    wait_until(lambda: failures(second_fails, set()) > 6)
    assert second_fails.look(set())[1].state == "starting", "nobody is ready: it is not set aside"
    well = running("gpu0")
    wait_until(lambda: [report.state for report in second_fails.look(well)] == ["ready", "set_aside"])
    told = second_fails.look(well)[1]
    assert (told.device, told.reason) == ("gpu1", "its worker ended with code 3")
    assert "device gpu1 is set aside" in caplog.text
    # The last one that was ready is gone: it is tried again at once.
    wait_until(lambda: failures(second_fails, set()) > told.failures + 1)


def test_a_device_that_was_set_aside_is_tried_again_after_a_while(
    second_fails: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_ASIDE_S", 0.3)
    wait_until(children)
    wait_until(lambda: failures(second_fails, running("gpu0")) > launch._MOST_FAILURES)


def test_failures_are_forgotten_when_the_worker_was_ready_for_a_minute(
    runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch, "_STEADY_S", 0.0)
    (tmp_path / "fail").touch()
    runs(f"import pathlib, time; time.sleep(60 if not pathlib.Path('{tmp_path}/fail').exists() else 0); exit(3)")
    launcher = make("cpu", stop_s=0.1)
    thread, _ = in_thread(launcher)
    wait_until(lambda: launcher.look(())[0].failures >= 1)
    (tmp_path / "fail").unlink()
    wait_until(lambda: launcher.look(running("cpu"))[0].failures == 0)
    launcher.stop()
    thread.join()


def test_a_worker_that_does_not_stop_is_killed_when_its_time_is_over(runs: Callable[[str], None]) -> None:
    runs(STUBBORN)
    launcher = make("cpu", stop_s=0.5)
    thread, codes = in_thread(launcher)
    wait_until(children)
    launcher.stop()
    thread.join(20)
    assert codes == [0]
    wait_until(lambda: children() == [])


def test_the_second_stop_means_at_once(runs: Callable[[str], None]) -> None:
    runs(STUBBORN)
    launcher = make("cpu", stop_s=600.0)
    thread, codes = in_thread(launcher)
    wait_until(children)
    launcher.stop()
    launcher.stop()
    thread.join(20)
    assert codes == [0]
    wait_until(lambda: children() == [])
