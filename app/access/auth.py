"""Who is asking: the tenant of a request, from its API key, and what the tenant may see.

Owns the reading of the `Authorization` and `api-key` headers, the list of open paths and the model allow-lists. The
keys themselves are read by `config.keyring`; what a key has used up is counted by `app.access.limits`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, cast

from flask import Flask, current_app, g, request

from app.access.browser_guard import BrowserGuard
from app.access.key_store import KeyRecord, KeyStore, key_id
from app.http.places import current_place
from app.http.request_ids import current_request_id, note_facts
from app.http.spans import current_traceparent
from config.catalog import Catalog, ModelCard
from config.keyring import Key, KeyringError, KeyringFile
from config.settings import Settings
from tasks.errors import AuthenticationError, ConfigError, Conflict, ModelNotFound, NoWorker, PermissionDenied
from tasks.jobs.job import WEIGHTS, StoreQuota
from tasks.jobs.origin import Origin, set_origin

__all__ = [
    "OPEN_TENANT",
    "Authenticator",
    "Tenant",
    "check_rights",
    "current_authenticator",
    "current_tenant",
    "find_card",
    "hash_key",
    "look_up_card",
    "protect",
    "visible_cards",
]

# Probes come from machines without a key, and a browser that opens a page sends none.
_OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/health", "/favicon.ico", "/docs", "/openapi.json"})
_OPEN_FOLDERS = ("/docs/", "/static/")
# Work may be sent to `/`, by clients of text-embeddings-inference, and work needs a key.
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# What belongs to the operator, not to a tenant.
_ADMIN_PATHS = frozenset({"/metrics", "/v1/workers"})
_ADMIN_FOLDER = "/v1/admin/"
_CONSOLE = "/console"
_KEY = "twolane-authenticator"
_FAIR = StoreQuota(fair=True)


@dataclass(frozen=True, slots=True)
class Tenant:
    """The owner of jobs, files, batches, caches and idempotency keys, with the rights and limits of the key in use.

    Attributes:
        name: what job records name as `tenant`.
        key_id: a short name of the key for counters and logs; it gives nothing of the key away.
        read_only: whether the key may only look.
        key_name: what the operator calls it; empty: nothing.
        models: lower-case names and aliases that the key may use; None: all.
        requests_per_minute: None: no limit; likewise the other limits.
        quota: what the tenant's jobs may keep in Redis.
        share: weight of the tenant in turns between tenants.
        cache, dedupe: whether cached values are used where a request does not say.
    """

    name: str
    key_id: str = ""
    priority: Literal["low", "normal", "high"] = "normal"
    models: frozenset[str] | None = None
    admin: bool = False
    read_only: bool = False
    key_name: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_queued_items: int | None = None
    quota: StoreQuota = _FAIR
    share: int = WEIGHTS["normal"]
    cache: bool = False
    dedupe: bool = False

    @property
    def actor(self) -> str:
        """What logs and job events name as the one who asked."""
        return f"{self.name}/{self.key_name or self.key_id[:8] or 'open'}"

    def require_admin(self) -> None:
        """Let only an operator's key pass.

        Raises:
            PermissionDenied: the key is a tenant's.
        """
        if not self.admin:
            raise PermissionDenied("This needs a key with `admin = true`.")

    def may_use(self, card: ModelCard) -> bool:
        """Tell whether the key's allow-list names this model, by its name or an alias."""
        return self.models is None or not self.models.isdisjoint(name.lower() for name in (card.name, *card.aliases))

    def write_rights(self) -> dict[str, object]:
        """Return what later work on behalf of this key has to know, as JSON values."""
        models = sorted(self.models) if self.models is not None else None
        limits = {"priority": self.priority, "models": models, "max_queued_items": self.max_queued_items}
        uses = {"share": self.share, "cache": self.cache, "dedupe": self.dedupe, "key_id": self.key_id}
        return {**limits, **uses, "quota": asdict(self.quota)}

    @classmethod
    def from_rights(cls, name: str, rights: Mapping[str, Any]) -> Self:
        """Return the tenant that `write_rights` described."""
        models = rights.get("models")
        allowed = frozenset(models) if models is not None else None
        queued = rights.get("max_queued_items")
        return cls(
            name,
            key_id=rights.get("key_id", ""),
            priority=rights.get("priority", "normal"),
            models=allowed,
            max_queued_items=queued,
            quota=StoreQuota(**rights.get("quota", {})),
            share=rights.get("share", WEIGHTS["normal"]),
            cache=rights.get("cache", False),
            dedupe=rights.get("dedupe", False),
        )


# Without a keys file there is one tenant, who may do everything; the server then binds a loopback address only.
OPEN_TENANT = Tenant("default", priority="high", admin=True, quota=StoreQuota())


class Authenticator:
    """Finds the tenant of a request.

    Args:
        settings: which keys file, if any.
        store: the keys that were made or revoked while the server runs.

    Raises:
        ConfigError: the keys file is bad.
    """

    def __init__(self, settings: Settings, store: KeyStore) -> None:
        self.store = store
        try:
            self._file = KeyringFile(settings.keys_file) if settings.keys_file is not None else None
        except KeyringError as error:
            raise ConfigError(str(error)) from error
        self._guard = BrowserGuard(settings) if self._file is None else None

    def check_caller(self, environ: Mapping[str, Any]) -> None:
        """Refuse what a stranger's web page may have sent to a server without keys; `environ` as WSGI has it.

        Raises:
            PermissionDenied: see `BrowserGuard`.
        """
        if self._guard is not None:
            self._guard.check(environ)

    def resolve_tenant(self, authorization: str, bare_key: str = "") -> Tenant:
        """Return the tenant of an `Authorization` header, `Bearer <key>` (RFC 6750); empty: there was none.

        Clients of Azure send the bare key instead, as `api-key`.

        Raises:
            AuthenticationError: there is no key or it is not known; the message does not repeat it.
        """
        if self._file is None:
            return OPEN_TENANT
        if bare_key and not authorization:
            authorization = f"Bearer {bare_key}"
        scheme, _, secret = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise AuthenticationError("No API key provided: send the header `Authorization: Bearer <your key>`.")
        return self.find_tenant(hash_key(secret.strip()))

    @property
    def keeps_old_keys(self) -> bool:
        """Whether the keys file cannot be used now, so that keys which were read before stay valid."""
        return self._file is not None and self._file.keeps_old_keys

    @property
    def is_open(self) -> bool:
        """Whether there are no keys, and one tenant who may do everything."""
        return self._file is None

    def find_tenant(self, digest: str) -> Tenant:
        """Return the tenant of the key with this SHA-256 (hex).

        Raises:
            AuthenticationError: there is no such key, or none any more.
        """
        if self._file is None:
            return OPEN_TENANT
        record = self.store.current().get(digest[:16])
        if record is not None and record.key.sha256 == digest:
            key = record.key if record.is_valid else None
        else:
            key = self._file.current().find_digest(bytes.fromhex(digest))
        if key is None:
            raise AuthenticationError("Incorrect API key provided.")
        return _describe_tenant(key)

    def records(self) -> dict[str, KeyRecord]:
        """Return what is known of all keys, those of the file and those that have ended too, by ID.

        Raises:
            Conflict: this server runs without keys.
        """
        if self._file is None:
            raise Conflict("This server runs without keys: set TWOLANE_KEYS_FILE to have some.")
        return {key_id(key): KeyRecord(key, "file") for key in self._file.current()} | dict(self.store.current())


def hash_key(secret: str) -> str:
    """Return the SHA-256 of a key in hex, by which it is known."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def protect(app: Flask, authenticator: Authenticator) -> None:
    """Let every request of this app through only with a tenant, but for the open paths."""

    def authenticate() -> None:
        authenticator.check_caller(request.environ)
        if request.path == _CONSOLE or request.path.startswith(f"{_CONSOLE}/"):
            return  # it has sessions of its own
        if _is_open(request.path) and request.method in _SAFE_METHODS:
            return
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            # A preflight (Fetch standard, 3.2.2): it brings no key, and its answer says what a page may send.
            return
        g.tenant = tenant = authenticator.resolve_tenant(
            request.headers.get("Authorization", ""), request.headers.get("api-key", "")
        )
        check_rights(tenant, request.method, request.path)

    app.extensions[_KEY] = authenticator
    app.before_request(authenticate)


def current_authenticator() -> Authenticator:
    """Return that of the app that handles the request in progress."""
    return cast("Authenticator", current_app.extensions[_KEY])


def check_rights(tenant: Tenant, method: str, path: str) -> None:
    """Note who is asking, and refuse what the key may not do.

    Raises:
        LaneFull: the tenant's keys hold most places of this kind already.
        PermissionDenied: the path is an operator's, or the key may only read.
    """
    set_origin(Origin(tenant.actor, current_request_id(), current_traceparent()))
    note_facts(tenant=tenant.name, key=tenant.key_name or tenant.key_id[:8])
    if tenant is not OPEN_TENANT:
        current_place().join(f"the keys of {tenant.name}")
    if path in _ADMIN_PATHS or path.startswith(_ADMIN_FOLDER):
        tenant.require_admin()
    if tenant.read_only and method not in _SAFE_METHODS:
        raise PermissionDenied("This key has `read_only = true`: it may look and not change.")


def current_tenant() -> Tenant:
    """Return the tenant of the request in progress.

    Raises:
        AuthenticationError: the path is an open one, so that nobody asked for a key.
    """
    tenant: Tenant | None = g.get("tenant")
    if tenant is None:
        raise AuthenticationError("This path knows no tenant.")
    return tenant


def find_card(catalog: Catalog, name: str, tenant: Tenant | None = None) -> ModelCard:
    """Return the model of that name or alias, if the tenant may use it; None: the tenant of the request in progress.

    Raises:
        ModelNotFound: there is none, or it is not on the key's allow-list; both read alike.
        NoWorker: it was named by ID or folder, and no worker has read yet what it can do.
    """
    card = look_up_card(catalog, name, tenant)
    if not card.complete:
        catalog.want(card)
        raise NoWorker(f"no worker has loaded {card.name} yet", retry_after_s=5)
    return card


def look_up_card(catalog: Catalog, name: str, tenant: Tenant | None = None) -> ModelCard:
    """Return the same, known what it can do or not.

    Raises:
        ModelNotFound: as `find_card`.
    """
    tenant = tenant or current_tenant()
    card = catalog.find(name)
    if card is None or not tenant.may_use(card):
        message = f"The model `{name[:200]}` does not exist or you do not have access to it."
        near = catalog.nearest(name[:200], [served for served in catalog.served if tenant.may_use(served)])
        hint = f" Did you mean {' or '.join(f'`{one}`' for one in near)}?" if near else ""
        raise ModelNotFound(message + hint, param="model")
    return card


def visible_cards(catalog: Catalog) -> list[ModelCard]:
    """Return the models that the tenant may use, in the catalogue's order."""
    tenant = current_tenant()
    return [card for card in catalog if tenant.may_use(card)]


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDERS)


def _describe_tenant(key: Key) -> Tenant:
    return Tenant(
        name=key.tenant,
        key_id=key_id(key),
        priority=key.priority,
        models=frozenset(name.lower() for name in key.models) if key.models is not None else None,
        admin=key.admin,
        read_only=key.read_only,
        key_name=key.name or "",
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
        max_queued_items=key.max_queued_items,
        quota=StoreQuota(key.max_stored_bytes, fair=True),
        share=key.share or WEIGHTS[key.priority],
        cache=key.cache,
        dedupe=key.dedupe,
    )
