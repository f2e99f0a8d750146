"""What web pages may not do to a server without keys: reach it under a name of theirs, or send it work.

Owns the check of `Host` and `Origin` on an open server, which binds loopback only. Any page that somebody on this
machine opens can send requests there: by a name that it lets point to 127.0.0.1 (DNS rebinding), and as `text/plain`,
for which a browser asks nobody first. With keys a page knows none, and nothing is checked here.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from werkzeug.sansio.utils import host_is_trusted

from config.keyring import is_loopback
from config.settings import Settings
from tasks.errors import PermissionDenied

__all__ = ["BrowserGuard"]

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Orchestrators probe by whatever address they know.
_PROBES = frozenset({"/livez", "/readyz"})


class BrowserGuard:
    """Refuses requests to an open server that a page of somebody else may have sent.

    Args:
        settings: names of this server besides those of loopback, and origins whose pages may call.
    """

    def __init__(self, settings: Settings) -> None:
        self._names = list(settings.allowed_hosts)
        self._origins = {origin.rstrip("/").lower() for origin in settings.cors_origins}

    def check(self, environ: Mapping[str, Any]) -> None:
        """Look at a request's `Host` and `Origin`.

        Raises:
            PermissionDenied: the name is not this server's, or a page of another origin sends something.
        """
        host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        if environ.get("PATH_INFO") in _PROBES:
            return
        if host and not is_loopback(urlsplit(f"//{host}").hostname or "") and not self._is_ours(host):
            message = f"This server has no API keys and does not answer to the name `{host[:100]}`."
            raise PermissionDenied(f"{message} Its operator adds it to TWOLANE_ALLOWED_HOSTS, or sets up keys.")
        if origin is not None and environ.get("REQUEST_METHOD") not in _SAFE_METHODS and not self._allows(origin, host):
            message = f"This server has no API keys and takes nothing from web pages of `{origin[:100]}`."
            raise PermissionDenied(f"{message} Its operator adds the origin to TWOLANE_CORS_ORIGINS, or sets up keys.")

    def _is_ours(self, host: str) -> bool:
        # To the library an empty list means any name.
        return bool(self._names) and ("*" in self._names or host_is_trusted(host, self._names))

    def _allows(self, origin: str, host: str) -> bool:
        """Return whether pages of the origin are this server's own, or may call."""
        if not self._origins.isdisjoint({"*", origin.lower()}):
            return True
        place = urlsplit(origin).netloc.lower()
        # A proxy may have put another name into `Host` than the one that the page was loaded from.
        return bool(place) and (place == host.lower() or ("*" not in self._names and self._is_ours(place)))
