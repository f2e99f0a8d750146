"""`/v1/admin/keys`: list, make, revoke and rotate API keys while the server runs."""

from typing import Annotated, Any, Literal

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, ConfigDict, Field

from app.access.auth import current_authenticator, current_tenant
from app.access.key_store import KeyRecord, find_record
from app.http.bodies import read_model
from app.http.errors import documented
from app.http.responses import json_response
from app.services import services
from tasks.errors import Conflict, NotFound

__all__ = ["blueprint", "render_key", "revoke_key"]

blueprint = APIBlueprint(
    "admin_keys", __name__, abp_tags=[Tag(name="admin", description="For keys with `admin = true`")]
)

_DAY_S = 86_400.0
_LONGEST_GRACE_S = 30 * _DAY_S


class _KeyPath(BaseModel):
    key_id: str = Field(max_length=64)


class KeyRequest(BaseModel):
    """A new key: whose it is and what it may do, as in the keys file."""

    model_config = ConfigDict(extra="forbid")

    tenant: str = Field(max_length=64)
    name: str | None = Field(None, description="What logs and the console call the key.")
    admin: bool = False
    read_only: Annotated[bool, Field(description="The key may look and not change.")] = False
    priority: Literal["low", "normal", "high"] = "normal"
    models: list[str] | None = Field(None, description="The only models it may use; null: all.")
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_queued_items: int | None = None
    max_stored_bytes: int | None = None
    cache: bool = False
    dedupe: bool = False


class _Rotation(BaseModel):
    grace_s: Annotated[float, Field(ge=0, le=_LONGEST_GRACE_S)] = Field(_DAY_S, description="The old key ends then.")


class KeyObject(BaseModel):
    """An API key, without the key itself."""

    id: str
    object: Literal["api_key"]
    tenant: str
    name: str | None
    admin: bool
    read_only: bool
    priority: str
    models: list[str] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_queued_items: int | None
    max_stored_bytes: int | None
    source: Literal["file", "api"]
    valid: bool
    created_at: float | None
    created_by: str | None
    revoked_at: float | None
    revoked_by: str | None
    valid_until: float | None
    secret: str | None = Field(None, description="Only in the answer to the call that made it.")


class KeyList(BaseModel):
    """All keys."""

    object: Literal["list"]
    data: list[KeyObject]
    has_more: bool


@blueprint.get("/v1/admin/keys", responses=documented(KeyList, Conflict))
def list_keys() -> Response:
    """List the keys of the file and those that were made here, those that have ended too."""
    records = current_authenticator().records().values()
    return json_response({"object": "list", "data": [render_key(record) for record in records], "has_more": False})


@blueprint.post("/v1/admin/keys", responses=documented(KeyObject, Conflict))
def make_key() -> Response:
    """Make a key; `secret` is shown now and never again."""
    current_authenticator().records()
    body = read_model(request, services().settings.max_body_bytes, KeyRequest)
    secret, record = current_authenticator().store.make(body.model_dump(), current_tenant().actor)
    return json_response({**render_key(record), "secret": secret})


@blueprint.post("/v1/admin/keys/<key_id>/revoke", responses=documented(KeyObject, NotFound, Conflict))
def revoke_key_by_id(path: _KeyPath) -> Response:
    """Revoke a key for good, one of the file too. May be repeated."""
    return json_response(render_key(revoke_key(path.key_id)))


@blueprint.post("/v1/admin/keys/<key_id>/rotate", responses=documented(KeyObject, NotFound, Conflict))
def rotate_key(path: _KeyPath) -> Response:
    """Make a key with the same rights, with its `secret`; the old one ends after `grace_s`."""
    body = read_model(request, services().settings.max_body_bytes, _Rotation)
    authenticator = current_authenticator()
    record = find_record(authenticator.records(), path.key_id)
    secret, made = authenticator.store.rotate(record, current_tenant().actor, body.grace_s)
    return json_response({**render_key(made), "secret": secret})


def revoke_key(key_id: str) -> KeyRecord:
    """Revoke a key.

    Raises:
        NotFound: there is no such key.
        Conflict: it is the one in use, without which its holder could not undo it.
    """
    authenticator, tenant = current_authenticator(), current_tenant()
    record = find_record(authenticator.records(), key_id)
    if record.id == tenant.key_id:
        raise Conflict("this is the key that you are using: revoke it with another admin's key")
    return authenticator.store.revoke(record, tenant.actor)


def render_key(record: KeyRecord) -> dict[str, Any]:
    """Return the key object; nothing of the key itself is in it."""
    key = record.key
    return {
        "id": record.id,
        "object": "api_key",
        **key.model_dump(exclude={"sha256", "cache", "dedupe"}),
        "source": record.source,
        "valid": record.is_valid,
        "created_at": record.created_at,
        "created_by": record.created_by or None,
        "revoked_at": record.revoked_at,
        "revoked_by": record.revoked_by or None,
        "valid_until": record.valid_until,
    }
