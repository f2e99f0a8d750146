"""The command `twolane` as a process of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.polling import wait_until

__all__ = ["run_program", "start_program", "stop_after_parts"]

ROOT = Path(__file__).parents[2]


def start_program(url: str, folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("TWOLANE_")}
    environment = {**own, "PYTHONPATH": str(ROOT / "client"), "TWOLANE_URL": url, "COLUMNS": "160"}
    return subprocess.Popen(
        [sys.executable, "-m", "twolane", *arguments],
        cwd=folder,
        env=environment,
        stdin=options.pop("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_program(url: str, folder: Path, *arguments: str, given: str | None = None) -> tuple[int, list[Any], str]:
    """Run a command with `--json`; return its exit code, its lines, and what it wrote to standard error."""
    stdin = subprocess.DEVNULL if given is None else subprocess.PIPE
    with start_program(url, folder, "--json", *arguments, stdin=stdin) as process:
        output, errors = process.communicate(given, timeout=120)
    return process.returncode, [json.loads(line) for line in output.splitlines()], errors


def stop_after_parts(process: subprocess.Popen[str], folder: Path, parts: int, how: int = signal.SIGKILL) -> str:
    """End the command when so many parts are in the folder of its output; return its standard error."""
    wait_until(lambda: len(list(folder.glob("*.arrow"))) >= parts or process.poll() is not None, 60, 0.005)
    assert process.poll() is None, process.communicate()
    process.send_signal(how)
    return process.communicate(timeout=60)[1]
