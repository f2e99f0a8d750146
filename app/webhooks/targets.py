"""Where a webhook may lead: a URL from a caller must not reach what only this machine can (SSRF).

Owns the check of a URL and of every address behind its host. The sender connects to an address that was checked
here, so that a name that resolves to another address between check and connection (DNS rebinding) gains nothing.
"""

import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["ForbiddenTarget", "Target", "find_addresses", "is_public", "parse_target"]

_MAX_CHARS = 2048
# Printable ASCII: no control sign may get into a request line, no two libraries may read a name in two ways.
_PLAIN = re.compile(r"[!-~]+")
_HOST = re.compile(r"[A-Za-z0-9._:-]+")
_PORTS = {"http": 80, "https": 443}
_LOCAL_NAMES = (".localhost", ".local", ".internal")
# Addresses that carry an IPv4 address inside: what they lead to depends on gateways that we do not know.
_TUNNELS = tuple(map(ipaddress.IPv6Network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ForbiddenTarget(ValueError):
    """A URL that we do not send to. The message is for its owner."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart: `path` is what stands in the request line, `authority` what stands in `Host`."""

    tls: bool
    host: str
    port: int
    authority: str
    path: str


def parse_target(url: str, *, allow_private: bool) -> Target:
    """Return the parts of a URL; names are not resolved, addresses written as numbers are checked.

    Raises:
        ForbiddenTarget: it is none that we send to.
    """
    if len(url) > _MAX_CHARS or not _PLAIN.fullmatch(url):
        raise ForbiddenTarget(f"must be at most {_MAX_CHARS} printable ASCII signs; write others percent-encoded")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ForbiddenTarget("must be a URL") from error
    if parts.scheme not in _PORTS or not _HOST.fullmatch(host) or port == 0:
        raise ForbiddenTarget("must be an http or https URL with a host")
    if parts.username is not None or parts.password is not None:
        raise ForbiddenTarget("must not hold a user name or a password")
    if not allow_private:
        _refuse_local(host)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme == "https", host, port or _PORTS[parts.scheme], parts.netloc, path)


def find_addresses(target: Target, *, allow_private: bool) -> list[str]:
    """Resolve the host and return its addresses, if all of them may be connected to.

    Raises:
        ForbiddenTarget: one of them is not public: then none is used.
        OSError: the name cannot be resolved.
    """
    addresses = _resolve(target.host, target.port)
    if not allow_private and not all(is_public(ipaddress.ip_address(address)) for address in addresses):
        raise ForbiddenTarget("leads to an address that is not public")
    return addresses


def is_public(address: Address) -> bool:
    """Return whether anybody on the internet may be meant: not private, loopback, link-local, multicast, reserved."""
    if isinstance(address, ipaddress.IPv6Address) and (
        address.ipv4_mapped is not None or address.is_site_local or any(address in net for net in _TUNNELS)
    ):
        return False
    special = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
    return address.is_global and not (special or address.is_reserved or address.is_unspecified)


def _refuse_local(host: str) -> None:
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(_LOCAL_NAMES):
        raise ForbiddenTarget("leads to an address that is not public")
    try:
        # Without asking anybody: finds 127.1, 2130706433 and 0x7f.1 as well.
        addresses = _resolve(host, 0, socket.AI_NUMERICHOST)
    except OSError:
        return
    if not all(is_public(ipaddress.ip_address(address)) for address in addresses):
        raise ForbiddenTarget("leads to an address that is not public")


def _resolve(host: str, port: int, flags: int = 0) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:  # a label that is too long for the codec of names
        raise OSError(f"{host[:80]} is no host name") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
