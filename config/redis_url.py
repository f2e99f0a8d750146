"""The one reading of a Redis URL: what it says, and the form in which each of our two client libraries understands it.

Owns the schemes and options that are known, and the sentence about any other. redis-py and Celery's kombu disagree
about databases, sockets, options and the checking of certificates; neither gets an URL that a person wrote.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

__all__ = ["RedisAddress"]

_SCHEMES = {
    "redis": "redis",
    "valkey": "redis",
    "rediss": "rediss",
    "valkeys": "rediss",
    "unix": "unix",
    "redis+socket": "unix",
    "sentinel": "sentinel",
    "redis+sentinel": "sentinel",
}
_DEFAULT_PORT, _SENTINEL_PORT = 6379, 26_379
_PLACES = frozenset({"db", "virtual_host", "username", "password"})
_SENTINEL = frozenset({"sentinel_username", "sentinel_password"})
_TLS_FILES = frozenset({"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password"})
# As redis-py spells them, and as Celery's documentation does.
_CHECKS = {name: name for name in ("none", "optional", "required")}
_CHECKS |= {f"cert_{name}": name for name in tuple(_CHECKS)}
_SWITCHES = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is and how it is entered.

    Attributes:
        scheme: `redis`, `rediss` (TLS), `unix` or `sentinel`.
        path: of the socket; empty: `host` and `port` are used.
        tls: options of redis-py for TLS; without any, certificate and name of the host are checked.
        sentinels: hosts and ports of the Sentinels that know the primary of `service`; none: it is at `host`, `port`.
        sentinel_login: `username` and `password` of the Sentinels themselves, as far as they have any.
    """

    scheme: str
    host: str = "localhost"
    port: int = _DEFAULT_PORT
    path: str = ""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: Mapping[str, str | bool] = field(default_factory=dict)
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_login: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read an URL.

        Raises:
            ValueError: it cannot be used; the sentence names REDIS_URL and repeats no user and no password.
        """
        parts = _split(url.strip())
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        scheme, tls = _SCHEMES[parts.scheme], _read_tls(options)
        known = _PLACES | _TLS_FILES | {"ssl_cert_reqs", "ssl_check_hostname"}
        if unknown := sorted(options.keys() - known - (_SENTINEL if scheme == "sentinel" else frozenset())):
            raise _refuse(f"has the option `{unknown[0][:40]}`, which is not known here")
        if tls and scheme != "rediss":
            raise _refuse("has options for TLS, which need rediss://")
        place: dict[str, Any] = _PLACE_READERS.get(scheme, _read_host)(parts)
        if scheme == "sentinel":
            place["sentinel_login"] = {name[9:]: options[name] for name in sorted(_SENTINEL & options.keys())}
        return cls(
            scheme=scheme,
            db=_read_db(parts.path.strip("/") if scheme in {"redis", "rediss"} else "", options),
            username=unquote(parts.username or "") or options.get("username", ""),
            password=unquote(parts.password or "") or options.get("password", ""),
            tls=tls,
            **place,
        )

    @property
    def url(self) -> str:
        """The URL for redis-py."""
        if self.scheme == "unix":
            return f"unix://{self._user_info}{quote(self.path)}?db={self.db}"
        if self.sentinels:
            login = {f"sentinel_{name}": value for name, value in self.sentinel_login.items()}
            hosts = ",".join(_write_host(*one) for one in self.sentinels)
            options = urlencode({"db": self.db, **login})
            return f"sentinel://{self._user_info}{hosts}/{quote(self.service, safe='')}?{options}"
        options = urlencode(
            {name: str(value).lower() if value in (True, False) else value for name, value in self.tls.items()}
        )
        return f"{self.scheme}://{self._user_info}{self._netloc}/{self.db}" + (f"?{options}" if options else "")

    @property
    def celery_url(self) -> str:
        """The URL for Celery; what it says of TLS goes beside it, see `celery_tls`."""
        if self.scheme == "unix":
            return f"redis+socket://{self._user_info}{quote(self.path)}?virtual_host={self.db}"
        if self.sentinels:
            urls = [f"sentinel://{self._user_info}{_write_host(*one)}/{self.db}" for one in self.sentinels]
            return ";".join(urls)
        return f"{self.scheme}://{self._user_info}{self._netloc}/{self.db}"

    @property
    def celery_options(self) -> dict[str, Any]:
        """What Celery's transport has to know besides of Sentinels."""
        if not self.sentinels:
            return {}
        return {"master_name": self.service, "sentinel_kwargs": dict(self.sentinel_login)}

    @property
    def celery_tls(self) -> dict[str, str | bool] | None:
        """The setting `broker_use_ssl`: without it kombu checks no certificate. None: there is no TLS."""
        if self.scheme != "rediss":
            return None
        return {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **self.tls}

    @property
    def _netloc(self) -> str:
        return _write_host(self.host, self.port)

    @property
    def _user_info(self) -> str:
        if not self.username and not self.password:
            return ""
        return f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@"


def _refuse(problem: str) -> ValueError:
    return ValueError(f"REDIS_URL {problem}")


def _split(url: str) -> SplitResult:
    scheme, found, rest = url.partition("://")
    if not found or scheme.lower() not in _SCHEMES:
        raise _refuse(
            "must begin with redis://, rediss:// (TLS), unix:// or sentinel://, as in redis://localhost:6379/0"
        )
    hint = "characters of user and password that mean something in an URL have to be percent-encoded"
    if "#" in rest:
        raise _refuse(f"has a `#`: {hint}, `#` as %23")
    parts = urlsplit(f"{scheme.lower()}://{rest}")
    if ";" in parts.netloc + parts.path:
        raise _refuse("has a `;`: separate Sentinels by commas, as in sentinel://a:26379,b:26379/NAME")
    if "@" in parts.path or "@" in parts.query:
        raise _refuse(f"has an @ behind its address: {hint}, `/` as %2F, `?` as %3F")
    return parts


def _read_host(parts: SplitResult, default_port: int = _DEFAULT_PORT) -> dict[str, Any]:
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _refuse("has a port that is no number up to 65535") from None
    return {"host": unquote(host or "localhost"), "port": port or default_port}


def _read_socket(parts: SplitResult) -> dict[str, Any]:
    if not parts.path:
        raise _refuse("names no socket: write unix:///run/redis.sock")
    return {"path": unquote(parts.path)}


def _read_sentinels(parts: SplitResult) -> dict[str, Any]:
    service = unquote(parts.path.strip("/"))
    hosts = [host for host in parts.netloc.rpartition("@")[2].split(",") if host]
    if not service or "/" in service or not hosts:
        raise _refuse("must name Sentinels and the name that they know the primary by: sentinel://a:26379,b:26379/NAME")
    places = (_read_host(urlsplit(f"//{host}"), _SENTINEL_PORT) for host in hosts)
    return {"sentinels": tuple((place["host"], place["port"]) for place in places), "service": service}


_PLACE_READERS = {"unix": _read_socket, "sentinel": _read_sentinels}


def _write_host(host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host else quote(host)
    return f"{name}:{port}"


def _read_db(path: str, options: Mapping[str, str]) -> int:
    named = [name for name in (path, options.get("db", ""), options.get("virtual_host", "")) if name]
    if not named:
        return 0
    if len(set(named)) > 1:
        raise _refuse("names two databases, in its path and as an option")
    if not named[0].isascii() or not named[0].isdigit():
        raise _refuse("must end with the number of a database, as in redis://localhost:6379/0")
    return int(named[0])


def _read_tls(options: Mapping[str, str]) -> dict[str, str | bool]:
    tls: dict[str, str | bool] = {name: value for name, value in options.items() if name in _TLS_FILES}
    if (check := options.get("ssl_cert_reqs")) is not None:
        if check.lower() not in _CHECKS:
            raise _refuse("has an ssl_cert_reqs that is none of none, optional and required")
        tls["ssl_cert_reqs"] = _CHECKS[check.lower()]
    if (name := options.get("ssl_check_hostname")) is not None:
        if name.lower() not in _SWITCHES:
            raise _refuse("has an ssl_check_hostname that is neither true nor false")
        tls["ssl_check_hostname"] = _SWITCHES[name.lower()]
    return tls
