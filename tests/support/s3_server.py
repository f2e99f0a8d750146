"""A real S3 server over HTTP for tests: moto's, in a process of its own, so that it can also be stopped."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from s3fs import S3FileSystem

from config.parent_death import tied_to_parent
from stack.embedded_redis import free_port

__all__ = ["S3Server", "running_s3", "use_s3"]

_READY_S = 30.0
BUCKET = "results"


class S3Server:
    """One server with one bucket."""

    def __init__(self) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=tied_to_parent(),  # noqa: PLW1509 - two system calls, no locks
        )
        deadline_s = time.monotonic() + _READY_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(httpx.TransportError):
                httpx.put(f"{self.url}/{BUCKET}").raise_for_status()
                return
            time.sleep(0.05)
        self.close()
        raise AssertionError("the S3 server did not start")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Let it take connections and answer none."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def list(self, query: str = "list-type=2") -> str:
        """What the server itself says that the bucket holds, as XML."""
        return httpx.get(f"{self.url}/{BUCKET}?{query}").text


@contextlib.contextmanager
def running_s3() -> Iterator[S3Server]:
    """A server, gone at the end."""
    server = S3Server()
    try:
        yield server
    finally:
        server.close()


def use_s3(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> None:
    """Let S3 drivers find the server, by AWS' own variables."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "twolane-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of no use")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # No credentials of the developer's, and no question to a cloud's metadata service.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    # A driver keeps its connection for as long as the process lives, and with it the variables that it once read.
    S3FileSystem.clear_instance_cache()
