"""`/v1/admin/usage`: what each API key has used, by day."""

import datetime as dt
from typing import Annotated, Literal

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, Field

from app.access.auth import current_authenticator
from app.http.errors import documented
from app.http.responses import json_response
from app.services import services
from tasks.presence.counters import KeyUsage, read_usage

__all__ = ["blueprint"]

blueprint = APIBlueprint(
    "admin_usage", __name__, abp_tags=[Tag(name="admin", description="For keys with `admin = true`")]
)
_EPOCH = dt.date(1970, 1, 1)


class _Period(BaseModel):
    days: Annotated[int, Field(ge=1, le=400)] = Field(30, description="Days until today, by UTC.")
    tenant: str | None = Field(None, max_length=64, description="Only this tenant's keys.")


class UsageObject(BaseModel):
    """What one key has used in one day."""

    object: Literal["usage"]
    day: dt.date
    tenant: str
    key: str | None = Field(description="The key's id; null where the server runs without keys.")
    key_name: str | None
    items: int
    tokens: int
    device_s: float = Field(description="Seconds of devices' time.")


class UsageList(BaseModel):
    """The newest day first; days without any work are left out."""

    object: Literal["list"]
    data: list[UsageObject]
    has_more: bool


@blueprint.get("/v1/admin/usage", responses=documented(UsageList))
def list_usage(query: _Period) -> Response:
    """List the items, tokens and device seconds of each key by day. Counts are at most a few seconds old."""
    live = services()
    live.counters.flush()
    authenticator = current_authenticator()
    records = {} if authenticator.is_open else authenticator.records()
    names = {key_id: record.key.name for key_id, record in records.items()}
    used = [one for one in read_usage(live.redis, query.days) if query.tenant in {None, one.tenant}]
    data = [_render(one, names.get(one.key_id)) for one in used]
    return json_response({"object": "list", "data": data, "has_more": False})


def _render(used: KeyUsage, key_name: str | None) -> dict[str, object]:
    return {
        "object": "usage",
        "day": (_EPOCH + dt.timedelta(used.day)).isoformat(),
        "tenant": used.tenant,
        "key": used.key_id or None,
        "key_name": key_name,
        "items": used.items,
        "tokens": used.tokens,
        "device_s": round(used.device_s, 3),
    }
