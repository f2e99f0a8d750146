"""Texts that take the whole process with them, in real processes."""

import json
import signal
import subprocess
import sys
import textwrap

import pytest

SCRIPT = textwrap.dedent(
    """
    import json, sys
    from config.settings import Settings
    from tasks.engine import Work
    from tests.support.fakes import fake_card, fake_model
    from workers.engine import DeviceEngine

    knobs, text = json.loads(sys.argv[1]), sys.argv[2]
    model = fake_model(fake_card(knobs=knobs))
    engine = DeviceEngine(Settings(_env_file=None, pass_timeout_s=1.0), {"fake": model})
    assert engine.submit(Work("fake", "embeddings", ["harmless"])).result(10).values.any()
    print("alive", flush=True)
    engine.submit(Work("fake", "embeddings", ["harmless", text])).result(30)
    print("survived", flush=True)
    """
)


def run(knobs: dict[str, str], text: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, json.dumps(knobs), text]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_hung_pass_ends_the_process_within_its_limit() -> None:
    done = run({"hang_on": "HANG"}, "a HANG text")
    assert done.stdout.split() == ["alive"]
    assert done.returncode == 70
    assert "limit 1.0 s" in done.stderr


@pytest.mark.parametrize(
    ("knob", "status"), [("exit_on", 3), ("segfault_on", -signal.SIGSEGV)], ids=["exit", "segmentation fault"]
)
def test_a_text_that_kills_the_process_is_not_survived(knob: str, status: int) -> None:
    done = run({knob: "KILL"}, "a KILL text")
    assert done.stdout.split() == ["alive"]
    assert done.returncode == status


def test_the_same_text_without_the_knob_is_harmless() -> None:
    assert run({}, "a KILL text").stdout.split() == ["alive", "survived"]


BROKEN = textwrap.dedent(
    """
    import time
    from config.settings import Settings
    from tasks.engine import Work
    from tests.support.fakes import fake_model
    from workers.engine import DeviceEngine

    model = fake_model(gated=True)
    model.backend.gate.set()
    engine = DeviceEngine(Settings(_env_file=None, pass_timeout_s=1.0), {"fake": model})
    model.backend.broken = RuntimeError("device-side assert triggered")
    assert engine.submit(Work("fake", "embeddings", ["a text"])).result(10).errors
    print("failed", flush=True)
    time.sleep(30)
    print("survived", flush=True)
    """
)


def test_a_device_that_stays_broken_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["failed"]
    assert done.returncode == 70


def test_importing_the_engine_costs_no_torch() -> None:
    code = "import sys, workers.engine, workers.models.registry; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
