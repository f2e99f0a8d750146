"""A running stack for tests: the real processes that `make serve` starts, with a server of its own."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from config.parent_death import tied_to_parent
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer, free_port

__all__ = ["RunningStack", "clean_environment", "running_stack"]

ROOT = Path(__file__).resolve().parents[2]
_READY_S = 120.0
_STOP_S = 20.0


@dataclass(frozen=True)
class RunningStack:
    """Where the stack is, and its processes."""

    url: str
    redis_url: str
    flower_url: str
    settings: Settings
    process: subprocess.Popen[bytes]
    log: Path
    server: EmbeddedServer

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that live now."""
        return [process.pid for process in self._children() if "workers.boot" in _arguments(process)]

    def web_pids(self) -> list[int]:
        """Process ids of the web server that live now, its main process first."""
        return [process.pid for process in self._children() if "app" in _arguments(process)]

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def clean_environment(**settings: str) -> dict[str, str]:
    """The environment for a process of ours: nothing of ours but these settings (names without the prefix)."""
    foreign = {name: value for name, value in os.environ.items() if not name.startswith(("TWOLANE_", "FLOWER_"))}
    for name in ("REDIS_URL", "PORT"):
        foreign.pop(name, None)
    own = {f"TWOLANE_{name.upper()}": value for name, value in settings.items()}
    return {**foreign, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **own}


@contextlib.contextmanager
def running_stack(folder: Path, models: str, **settings: str) -> Iterator[RunningStack]:
    """Start a server and `python -m stack.serve` on it, wait until the models are ready, stop both at the end.

    Args:
        folder: data folder, log and working directory, so that no `.env` of the developer's is read.
        models: as in TWOLANE_MODELS.
        settings: further settings by field name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with EmbeddedServer(folder / "server") as server:
        port, flower_port = free_port(), free_port()
        # Exported models are keyed by their content, so all tests and `make demo` may share them.
        shared = {"models_dir": str(ROOT / "data" / "models")}
        settings = {"port": str(port), "flower_port": str(flower_port), "models": models, **shared, **settings}
        settings |= {"redis_url": server.url, "data_dir": str(folder / "data")}
        log = folder / "stack.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "stack.serve"],
                cwd=folder,
                env=clean_environment(**settings),
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=tied_to_parent(),  # noqa: PLW1509 - two system calls, no locks
            )
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_until_ready(url, process, log)
            fields = Settings(_env_file=None, **settings)  # type: ignore[arg-type] # pydantic reads the strings
            yield RunningStack(url, server.url, f"http://127.0.0.1:{flower_port}", fields, process, log, server)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + _READY_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", timeout=2).status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    raise AssertionError(f"the stack did not become ready; the end of its log:\n{log.read_text('utf-8')[-4000:]}")
