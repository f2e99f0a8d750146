"""A TCP proxy that breaks the line on purpose: silence, cuts, lost replies, replies held back.

It stands between a process of ours and the server. What it knows of the protocol is that a request is answered after it
was carried out; so a reply that is seen here and not passed on belongs to something that has happened.
"""

import contextlib
import random
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

__all__ = ["Proxy"]

_BLOCK_BYTES = 2**16
_LOOK_S = 0.05


def _nothing() -> None:
    pass


@dataclass(eq=False)
class _Trap:
    """Waits for some bytes to pass."""

    pattern: bytes
    act: Callable[[], None]
    cut: bool
    left: int = 1


class Proxy:
    """Forwards 127.0.0.1:`port` to a port of this machine until the end of the `with` block.

    Args:
        upstream_port: where the server listens.
    """

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.lost = 0
        self._open = threading.Event()
        self._open.set()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._request_traps: list[_Trap] = []
        self._reply_traps: list[_Trap] = []
        self._dice: tuple[random.Random, float] | None = None
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """As a client of the server needs it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def freeze(self) -> None:
        """Pass nothing on any more; connections stay and new ones are taken: the server is half open."""
        self._open.clear()

    def thaw(self) -> None:
        """Pass everything on again, what came meanwhile too."""
        self._open.set()

    def cut(self) -> None:
        """Close all connections; new ones are taken."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.close()

    def lose_reply_to(self, pattern: bytes, act: Callable[[], None] = _nothing, times: int = 1) -> None:
        """Of the next requests that contain these bytes, let the reply come this far, call `act` and cut the line."""
        self._request_traps.append(_Trap(pattern, act, cut=True, left=times))

    def hold_reply(self, pattern: bytes, act: Callable[[], None] = _nothing) -> None:
        """Never pass on the next reply that contains these bytes; the connection stays open."""
        self._reply_traps.append(_Trap(pattern, act, cut=False))

    def lose_replies(self, probability: float, seed: int) -> None:
        """From now on lose a part of all replies, and cut the line each time; 0 ends it."""
        self._dice = (random.Random(seed), probability) if probability else None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._open.set()
        self._thread.join()
        self._listener.close()
        self.cut()
        with self._lock:
            links = list(self._links)
        for link in links:
            link.thread.join()

    def _accept(self) -> None:
        while not self._stop.is_set():
            if not select.select([self._listener], [], [], _LOOK_S)[0]:
                continue
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self._upstream_port), timeout=5)
            except OSError:
                client.close()
                continue
            link = _Link(self, client, server)
            with self._lock:
                self._links.add(link)
            link.thread.start()

    def forget(self, link: "_Link") -> None:
        with self._lock:
            self._links.discard(link)

    def wait_until_open(self) -> bool:
        """Wait while frozen; return whether the proxy goes on."""
        while not self._open.wait(_LOOK_S):
            if self._stop.is_set():
                return False
        return not self._stop.is_set()

    def spring_request(self, data: bytes) -> _Trap | None:
        """Return the trap that a request falls into."""
        return self._spring(self._request_traps, data)

    def spring_reply(self, data: bytes) -> _Trap | None:
        """Return the trap that a reply falls into."""
        trap = self._spring(self._reply_traps, data)
        if trap is None and self._dice is not None and self._dice[0].random() < self._dice[1]:
            trap = _Trap(b"", _nothing, cut=True)
        return trap

    def _spring(self, traps: list[_Trap], data: bytes) -> _Trap | None:
        with self._lock:
            for trap in traps:
                if trap.pattern in data:
                    trap.left -= 1
                    if not trap.left:
                        traps.remove(trap)
                    return trap
        return None


class _Link:
    """One connection, its two sockets and the thread that serves both ways."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._request_tail = b""
        self._armed: _Trap | None = None
        self.thread = threading.Thread(target=self._run, name="proxy-link", daemon=True)

    def close(self) -> None:
        """End the connection on both sides."""
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except OSError:
            pass
        finally:
            self._proxy.forget(self)
            self._client.close()
            self._server.close()

    def _step(self) -> bool:
        readable, _, _ = select.select([self._client, self._server], [], [], 1.0)
        if not self._proxy.wait_until_open():
            return False
        for source in readable:
            data = source.recv(_BLOCK_BYTES)
            if not data:
                return False
            passed = self._pass_request(data) if source is self._client else self._pass_reply(data)
            if not passed:
                return False
        return True

    def _pass_request(self, data: bytes) -> bool:
        seen = self._request_tail + data
        self._armed = self._armed or self._proxy.spring_request(seen)
        # A pattern may lie across two blocks; what has sprung a trap must not spring the next one.
        self._request_tail = b"" if self._armed else seen[-200:]
        self._server.sendall(data)
        return True

    def _pass_reply(self, data: bytes) -> bool:
        trap = self._armed or self._proxy.spring_reply(data)
        if trap is None:
            self._client.sendall(data)
            return True
        self._armed = None
        self._proxy.lost += 1
        trap.act()
        if not trap.cut:
            self._hold()
        return False

    def _hold(self) -> None:
        """Keep the connection open and silent until its client is gone."""
        while self._proxy.wait_until_open():
            readable, _, _ = select.select([self._client], [], [], _LOOK_S)
            if readable and not self._client.recv(_BLOCK_BYTES):
                return
            time.sleep(_LOOK_S)
