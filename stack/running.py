"""A running stack: server, web, workers and Flower as child processes, watched, and ended without a trace.

Owns the order of start and end, and what happens when a child dies: it is started again, unless that cannot help.
"""

import contextlib
import fcntl
import http.client
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import urlsplit

import orjson

from config.supervisor import Sink, SupervisedProcess, stop_all
from stack.embedded_redis import EmbeddedServer
from stack.plan import Plan, StackError

__all__ = ["Stack"]

_POLL_S = 0.1
_PROBE_TIMEOUT_S = 2.0
_GRACE_S = 0.5
_LONGEST_DELAY_S = 10.0
_STARTS_WITHOUT_SUCCESS = 4
_WORKER_RETRY_S = 30.0


class Stack:
    """Starts with `start()`, is watched by `poll()`, ends with `stop()`; all three from one thread.

    Args:
        plan: what runs where.
        sink: gets (name, line) for each line that a child prints.
        outlives_worker: whether it goes on when the worker cannot start.
    """

    def __init__(self, plan: Plan, sink: Sink, *, outlives_worker: bool = False) -> None:
        self.plan = plan
        self._outlives_worker = outlives_worker
        self.ready = False
        self._sink = sink
        self._lock: IO[str] | None = None
        self._server: EmbeddedServer | None = None
        self._children = [
            SupervisedProcess(program, longest_delay_s=_LONGEST_DELAY_S, sink=sink) for program in plan.programs()
        ]

    def start(self) -> Self:
        """Start everything; returns when the server answers and the other processes are on their way.

        Raises:
            StackError: another stack uses the folder, or the server does not start.
        """
        self._lock = _take_folder(self.plan)
        if self.plan.private_server:
            self._start_server()
        for child in self._children:
            child.start()
        return self

    def poll(self) -> None:
        """Start again what died.

        Raises:
            StackError: a part cannot run, however often it is started.
        """
        if self._server is not None and not self._server.running:
            self._sink("server", "ended unexpectedly and is started again; nothing that was accepted is lost")
            self._start_server()
        for child in self._children:
            code = child.poll()
            if code is not None:
                self._judge(child, code)

    def wait_until_ready(self, progress: Callable[[float, str], None], stopping: Callable[[], bool]) -> bool:
        """Watch until every model is ready; False when `stopping()` turned true before.

        Args:
            progress: called all the time with the seconds so far and what is waited for.
            stopping: asked all the time.

        Raises:
            StackError: a part cannot run.
        """
        started_s = time.monotonic()
        while not stopping():
            self.poll()
            self.ready, missing = self.probe()
            if self.ready:
                return True
            progress(time.monotonic() - started_s, missing)
            time.sleep(_POLL_S)
        return False

    def probe(self) -> tuple[bool, str]:
        """Ask the web server whether it is ready; return that, and what it waits for."""
        address = urlsplit(self.plan.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=_PROBE_TIMEOUT_S)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/readyz")
                answer = connection.getresponse()
                body = orjson.loads(answer.read())
            except (OSError, http.client.HTTPException, orjson.JSONDecodeError):
                return False, "the web server"
        return answer.status == http.client.OK, _missing(body)

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """End everything, the server last; a child that hangs is killed. Safe to call twice.

        Args:
            hurry: asked all the time; when it turns true, nothing is waited for any more.
        """
        settings = self.plan.settings
        # The calls that the web server finishes need workers.
        web, others = self._children[:1], self._children[1:]
        stop_all(web, settings.web_stop_s + _GRACE_S, hurry)
        stop_all(others, settings.worker_stop_s + _GRACE_S, hurry)
        self.kill()

    def kill(self) -> None:
        """End the children at once, and the server as soon as its file is written."""
        for child in self._children:
            child.kill()
        server, self._server = self._server, None
        if server is not None:
            server.stop(timeout_s=1.0)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _start_server(self) -> None:
        url = urlsplit(self.plan.settings.redis_url)
        server = EmbeddedServer(self.plan.server_folder, url.port or 0, password=url.password or "")
        try:
            self._server = server.start()
        except RuntimeError as error:
            raise StackError(str(error)) from error
        if server.mended:
            self._sink("server", server.mended)

    def _judge(self, child: SupervisedProcess, code: int) -> None:
        name = child.program.name
        needed = name != "worker" or not self._outlives_worker
        if child.given_up and not needed:
            # Results are read and jobs are taken without it, and its model may be mended meanwhile.
            child.try_again(_WORKER_RETRY_S)
            again = f"its reason stands above; all else goes on, and it is tried again in {_WORKER_RETRY_S:.0f} s"
            self._sink(name, f"the worker cannot start with these settings; {again}")
            return
        if child.given_up:
            raise StackError(f"{name} cannot start with these settings; its reason stands above")
        if needed and not self.ready and child.starts >= _STARTS_WITHOUT_SUCCESS:
            raise StackError(f"{name} ended {child.starts} times before the stack was ready; its reason stands above")
        self._sink(name, f"ended with code {code} and is started again")


def _missing(body: Any) -> str:
    models = body.get("models", {}) if isinstance(body, dict) else {}
    waiting = [name for name, state in models.items() if not state.get("ready")]
    return ", ".join(waiting) or "a worker"


def _take_folder(plan: Plan) -> IO[str]:
    """Hold the data folder for this stack alone; the kernel gives it free when the process ends, however it ends."""
    path: Path = plan.settings.data_dir / "stack.lock"
    lock = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        owner = lock.read().strip() or "another stack"
        lock.close()
        folder = plan.settings.data_dir
        raise StackError(
            f"the data folder {folder} is used by {owner}; for a second stack beside it choose another folder and "
            "port: TWOLANE_DATA_DIR=<folder> PORT=<number>"
        ) from error
    lock.truncate(0)
    lock.write(f"the stack on {plan.url} (process {os.getpid()})\n")
    lock.flush()
    return lock
