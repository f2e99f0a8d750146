"""One POST to an address that was checked: no redirect, no proxy, no second resolution, an end in time.

Owns the connection of one attempt. The standard library's client is enough: what matters here is what it must not do.
"""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future

from app.webhooks.targets import ForbiddenTarget, Target, find_addresses
from tasks.jobs.outbox import Attempt

__all__ = ["post"]

_GONE = 410


def post(target: Target, headers: Mapping[str, str], body: bytes, timeout_s: float, *, allow_private: bool) -> Attempt:
    """Send the body and return what became of it; never raises for what the other side does.

    Args:
        target: where to.
        headers: besides `Host` and the length.
        body: what is sent.
        timeout_s: for the whole of it, however slowly names are resolved or the receiver drips.
        allow_private: whether addresses that are not public may be connected to.
    """
    until_s = time.monotonic() + timeout_s
    try:
        addresses = _resolve(target, timeout_s, allow_private=allow_private)
        left_s = max(0.001, until_s - time.monotonic())
        status = _exchange(_Connection(target, addresses, left_s), target, headers, body, left_s)
    except ForbiddenTarget as error:
        return Attempt(error=f"the webhook's URL {error}")
    except TimeoutError:
        return Attempt(error="the receiver did not answer in time")
    except (OSError, http.client.HTTPException) as error:
        return Attempt(error=f"the receiver could not be reached ({type(error).__name__})")
    if 200 <= status < 300:
        return Attempt(answer=status)
    return Attempt(answer=status, error=f"the receiver answered {status}", final=status == _GONE)


def _resolve(target: Target, timeout_s: float, *, allow_private: bool) -> list[str]:
    """Return the addresses in time: the C library has no limit of ours, so it is asked in a thread that may be left."""
    found: Future[list[str]] = Future()

    def ask() -> None:
        try:
            found.set_result(find_addresses(target, allow_private=allow_private))
        except (ForbiddenTarget, OSError) as error:
            found.set_exception(error)

    threading.Thread(target=ask, name="twolane-webhook-dns", daemon=True).start()
    return found.result(timeout_s)


class _Connection(http.client.HTTPConnection):
    """Connects to the given addresses and to nothing else; the certificate must be that of the URL's host."""

    def __init__(self, target: Target, addresses: list[str], timeout_s: float) -> None:
        super().__init__(target.host, target.port, timeout=timeout_s)
        self._target, self._addresses = target, addresses
        self._ended = False

    def connect(self) -> None:
        """Take the first address that answers; all share the time."""
        error: OSError = OSError("the name has no address")
        for address in self._addresses:
            try:
                self.sock = socket.create_connection((address, self.port), self.timeout)
                break
            except OSError as failure:
                error = failure
                if self._ended:
                    break
        else:
            raise error
        if self.sock is None or self._ended:
            raise TimeoutError
        if self._target.tls:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self._target.host)

    def cut(self) -> None:
        """End the exchange from another thread: reads and writes stop waiting."""
        self._ended = True
        if (sock := self.sock) is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

    @property
    def was_cut(self) -> bool:
        return self._ended


def _exchange(
    connection: _Connection, target: Target, headers: Mapping[str, str], body: bytes, timeout_s: float
) -> int:
    """Return the status of the answer; its body is nothing to us."""
    # The library's timeout begins anew with every byte.
    alarm = threading.Timer(timeout_s, connection.cut)
    alarm.daemon = True
    alarm.start()
    try:
        connection.request("POST", target.path, body, {"Host": target.authority, **headers})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        if connection.was_cut:
            raise TimeoutError from error
        raise
    finally:
        alarm.cancel()
        connection.close()
    # Half an answer reads like a whole one: the library takes an end within the headers for their end.
    if connection.was_cut:
        raise TimeoutError
    return status
