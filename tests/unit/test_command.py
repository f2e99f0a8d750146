"""`twolane-server` itself; that it runs from a wheel is seen in `tests/client/test_wheels.py`."""

import subprocess
import sys
from pathlib import Path

import pytest

from stack import command


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "stack.command", *arguments]
    root = str(Path(__file__).parents[2])
    environment = {"PYTHONPATH": root, "PATH": ""}
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_help_names_every_program_and_starts_none(tmp_path: Path) -> None:
    done = run("--help", folder=tmp_path)
    assert done.returncode == 0
    assert [name for name in command._PROGRAMS if f"  {name} " not in done.stdout] == []
    assert list(tmp_path.iterdir()) == []


def test_a_program_gets_its_arguments_and_gives_its_exit_code(tmp_path: Path) -> None:
    # A package of the reader's own must not be run in the place of ours.
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "keyring.py").write_text("raise SystemExit(99)", "utf-8")
    done = run("keys", "new", "--tenant", "me", folder=tmp_path)
    assert (done.returncode, 'tenant = "me"' in done.stdout) == (0, True)
    assert run("keys", "new", "--tenant", "not a name", folder=tmp_path).returncode == 2


def test_an_unknown_program_is_refused(tmp_path: Path) -> None:
    done = run("dance", folder=tmp_path)
    assert (done.returncode, "serve" in done.stderr) == (2, True)


def test_what_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = command._Program("app", "", (("no_such_module", "web"), ("sys", "worker")))
    monkeypatch.setitem(command._PROGRAMS, "web", program)
    assert command.main(["web"]) == 1
    assert "pip install 'twolane-server[web]'" in capsys.readouterr().err
