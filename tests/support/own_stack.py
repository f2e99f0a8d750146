"""A stack of single processes that a test may kill, freeze and cut off one by one: server, web, workers.

Nobody restarts what dies here, unlike in `tests.support.stack_fixture`: each test decides. At the end no process may
be left.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psutil
from redis import Redis

from config.parent_death import tied_to_parent
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer, free_port
from tests.support.fakes import write_fake_card
from tests.support.polling import wait_until
from tests.support.stack_fixture import clean_environment

__all__ = ["OwnStack", "opened_stack"]

_START_S = 90.0
_END_S = 30.0


class OwnStack:
    """The processes of one test, or of one module.

    Args:
        folder: data, logs and working directory.
        options: further options of the server.
        knobs: of the fake model, as in TOML.
        settings: by field name; web and workers get them all.
    """

    def __init__(self, folder: Path, options: Sequence[str], knobs: str, **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        cards = write_fake_card(folder, knobs)
        self.folder = folder
        self.server = EmbeddedServer(folder / "server", options=options)
        quick = {"lease_s": "2", "ticket_timeout_s": "2", "chunk_items": "20", "interactive_max_items": "4"}
        fixed = {"models": "fake", "catalog_file": str(cards), "data_dir": str(folder), "port": str(free_port())}
        self.fields = {**quick, **fixed, **settings}
        self.url = f"http://127.0.0.1:{fixed['port']}"
        self.workers: list[subprocess.Popen[bytes]] = []
        self._web: subprocess.Popen[bytes] | None = None
        self._seen: dict[int, psutil.Process] = {}
        self._numbers = itertools.count()

    @property
    def settings(self) -> Settings:
        """What web and workers see."""
        return Settings(_env_file=None, redis_url=self.server.url, **self.fields)  # type: ignore[arg-type] # strings

    @contextlib.contextmanager
    def redis(self) -> Iterator[Redis]:
        """A client of the server itself, past any proxy."""
        with Redis.from_url(self.server.url, retry=None) as client:
            yield client

    def server_process(self) -> psutil.Process:
        """The server, to be frozen and thawed."""
        return psutil.Process(self.server.pid)

    def start_web(self, redis_url: str = "", **environment: str) -> None:
        """Start the web process and wait until it answers."""
        self._web = self._start("web", ["-m", "app"], redis_url, environment)
        wait_until(self._web_answers, _START_S)

    def kill_web(self) -> None:
        """End the web server with all its processes, as a power cut would."""
        web, self._web = self._web, None
        if web is not None:
            self._kill(web)

    def terminate_web(self) -> subprocess.Popen[bytes]:
        """Ask the web server to end, and return it."""
        web, self._web = self._web, None
        assert web is not None
        web.terminate()
        return web

    def start_worker(self, redis_url: str = "", **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker; it takes some seconds to become ready."""
        name = f"worker-{next(self._numbers)}"
        command = ["-m", "celery", "--quiet", "--app", "workers.boot", "worker", "--hostname", f"{name}@%h"]
        command += ["--pool", "threads", "--without-mingle", "--without-gossip"]
        self.workers.append(self._start(name, command, redis_url, environment))
        return self.workers[-1]

    def wait_until_ready(self, workers: int = 1) -> None:
        """Wait until so many workers have announced themselves."""
        wait_until(lambda: self._ready() >= workers, _START_S, 0.1)

    def stop(self) -> None:
        """End everything and check that nothing is left; thawed first, since a frozen process cannot end."""
        for process in self.workers:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                self._kill(process)
        self.kill_web()
        self.server.stop()
        _, alive = psutil.wait_procs(self._seen.values(), timeout=_END_S)
        assert [process.cmdline() for process in alive] == []

    def log(self) -> str:
        """What all processes have written."""
        return "".join(path.read_text("utf-8", "replace") for path in sorted(self.folder.glob("*.log")))

    def _start(
        self, name: str, command: list[str], redis_url: str, environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        fields = {**self.fields, "redis_url": redis_url or self.server.url}
        with (self.folder / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder,
                env={**clean_environment(**fields), "OMP_NUM_THREADS": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=tied_to_parent(),  # noqa: PLW1509 - two system calls, no locks
            )
        self._seen[process.pid] = psutil.Process(process.pid)
        return process

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            self._seen[member.pid] = member
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(member.pid, signal.SIGKILL)
        process.wait()

    def _web_answers(self) -> bool:
        assert self._web is not None
        assert self._web.poll() is None, self.log()[-4000:]
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/livez", timeout=2).status_code == httpx.codes.OK
        return False

    def _ready(self) -> int:
        dead = [process.args for process in self.workers if process.poll() not in {None, -signal.SIGKILL}]
        assert dead == [], self.log()[-4000:]
        with contextlib.suppress(httpx.HTTPError):
            models = httpx.get(f"{self.url}/readyz", timeout=5).json()["models"]
            return int(models["fake"]["workers"])
        return 0


@contextlib.contextmanager
def opened_stack(
    folder: Path, options: Sequence[str] = (), knobs: str = "latency_ms = 20", **settings: str
) -> Iterator[OwnStack]:
    """A server and nothing else yet; all is ended afterwards."""
    stack = OwnStack(folder, options, knobs, **settings)
    try:
        stack.server.start()
        yield stack
    finally:
        stack.stop()
