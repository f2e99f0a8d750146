"""Keys: who has one, a new one, one less. A key that was made is on the page that made it, and nowhere else."""

from typing import Any

from flask import request, url_for
from pydantic import ValidationError
from werkzeug.wrappers import Response

from app.access.auth import current_authenticator, current_tenant
from app.access.key_store import KeyRecord, find_record
from app.admin.key_routes import KeyRequest, revoke_key
from app.console.actions import go_back
from app.console.session_guard import blueprint, render
from app.http.bodies import explain_invalid
from tasks.errors import Conflict, InvalidRequest, TwolaneError

_GRACES_S = {"0": 0.0, "3600": 3600.0, "86400": 86_400.0, "604800": 604_800.0}
_LIMITS = ("requests_per_minute", "tokens_per_minute", "max_queued_items", "max_stored_bytes")


@blueprint.get("/keys")
def show_keys() -> str:
    """Show all keys."""
    return _render()


@blueprint.post("/keys/new")
def make_key() -> str | tuple[str, int]:
    """Make a key and show it, once."""
    try:
        current_authenticator().records()
        secret, record = current_authenticator().store.make(_read_form().model_dump(), current_tenant().actor)
    except (InvalidRequest, Conflict) as error:
        return _render(problem=error), 400
    return _render(secret, record)


@blueprint.post("/keys/rotate")
def rotate_key() -> str | tuple[str, int]:
    """Make a key in the place of another, and show it, once."""
    authenticator, grace_s = current_authenticator(), _GRACES_S.get(request.form.get("grace_s", ""), 86_400.0)
    try:
        record = find_record(authenticator.records(), request.form.get("id", ""))
        secret, made = authenticator.store.rotate(record, current_tenant().actor, grace_s)
    except TwolaneError as error:
        return _render(problem=error), 400
    return _render(secret, made)


@blueprint.post("/keys/revoke")
def end_key() -> Response:
    """Revoke a key."""
    try:
        record = revoke_key(request.form.get("id", ""))
    except TwolaneError as error:
        return go_back(f"{error.message[:1].upper()}{error.message[1:]}.")
    return go_back(f"The key {record.key.name or record.id[:8]} of {record.key.tenant} opens nothing any more.")


def _render(secret: str = "", made: KeyRecord | None = None, problem: TwolaneError | None = None) -> str:
    try:
        records = list(current_authenticator().records().values())
    except Conflict as error:
        records, problem = [], error
    records.sort(key=lambda record: (not record.is_valid, record.key.tenant, record.key.name or ""))
    said = problem.message if problem is not None else ""
    back = url_for("console.show_keys")
    return render("keys.html", records=records, secret=secret, made=made, problem=said, form=request.form, back=back)


def _read_form() -> KeyRequest:
    """Return what the form says; an empty field is none.

    Raises:
        InvalidRequest: a number is none; what the others hold is checked with the key.
    """
    form = request.form
    models = [name.strip() for name in form.get("models", "").split(",") if name.strip()]
    fields: dict[str, Any] = {name: form[name].strip() for name in (*_LIMITS, "name") if form.get(name, "").strip()}
    fields |= {name: name in form for name in ("admin", "read_only")}
    fields |= {"tenant": form.get("tenant", "").strip(), "priority": form.get("priority", "normal")}
    try:
        return KeyRequest.model_validate({**fields, "models": models or None})
    except ValidationError as error:
        raise explain_invalid(error) from error
