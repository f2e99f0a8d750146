"""The real web process of a test: granian and our app, as `python -m app` runs them, without any worker."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from redis import Redis

from stack.embedded_redis import free_port

__all__ = ["Web", "fresh_web"]

ROOT = Path(__file__).resolve().parents[2]


class Web:
    """One running web server."""

    def __init__(self, url: str, folder: Path, **environment: str) -> None:
        self.port = free_port()
        self.url = url
        # What it has written, once it is stopped.
        self.log = b""
        base = {name: value for name, value in os.environ.items() if not name.startswith("TWOLANE_")}
        base |= {"REDIS_URL": url, "PORT": str(self.port), "TWOLANE_MODELS": "fake", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app"], cwd=folder, env=base | environment, stderr=subprocess.PIPE
        )
        self._wait_until_up()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def get(self, path: str) -> Any:
        """The body of a GET."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())

    def worker(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def job_ids(self) -> set[bytes]:
        with Redis.from_url(self.url) as redis:
            return {key.split(b"{")[1].split(b"}")[0] for key in redis.scan_iter(count=1000) if b"{job_" in key}

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        _, self.log = self.process.communicate(timeout=20)
        return self.process.returncode

    def _wait_until_up(self) -> None:
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s and self.process.poll() is None:
            with contextlib.suppress(OSError):
                self.get("/livez")
                return
            time.sleep(0.05)
        self.process.kill()
        raise AssertionError(self.process.communicate()[1].decode())


@contextlib.contextmanager
def fresh_web(url: str, folder: Path, **environment: str) -> Iterator[Web]:
    """A web server on an emptied store, stopped at the end."""
    with Redis.from_url(url) as redis:
        redis.flushall()
    web = Web(url, folder, **environment)
    try:
        yield web
    finally:
        web.stop()
