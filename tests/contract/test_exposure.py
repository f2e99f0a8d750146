"""A server that other machines can reach does not start without keys, however it is started."""

import subprocess
import sys
from pathlib import Path

import pytest

from stack.embedded_redis import free_port
from tests.support.stack_fixture import clean_environment


def run(module: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = clean_environment(data_dir=str(folder / "data"), port=str(free_port()), models="fake", **settings)
    command = [sys.executable, "-m", module]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("module", ["app", "stack.serve"])
def test_no_server_starts_open_to_other_machines(module: str, tmp_path: Path) -> None:
    done = run(module, tmp_path, host="0.0.0.0", redis_url="redis://127.0.0.1:1/0")
    assert done.returncode > 0
    assert "TWOLANE_KEYS_FILE" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("module", ["app", "stack.serve"])
def test_no_server_starts_with_a_bad_keys_file(module: str, tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text('[[keys]]\ntenant = "ada"\nsha256 = "tl-secret"\n')
    done = run(module, tmp_path, keys_file=str(tmp_path / "keys.toml"), redis_url="redis://127.0.0.1:1/0")
    assert done.returncode > 0
    assert "keys[1].sha256" in done.stdout + done.stderr
    assert "tl-secret" not in done.stdout + done.stderr
