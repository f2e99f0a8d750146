"""OpenAI's Batches: a file of requests, computed as jobs, answered as files."""

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from app.access.auth import current_tenant
from app.batches.schemas import BatchHeaders, BatchId, BatchList, BatchObject, BatchPage, BatchRequest
from app.batches.views import view_batch
from app.http.errors import documented
from app.http.responses import json_response
from app.services import Services, services
from app.submission.payload import PayloadHash
from tasks.errors import Conflict, IdempotencyMismatch, InvalidRequest, NotFound
from tasks.files.batches import BatchRecord, NewBatch

__all__ = ["blueprint"]

blueprint = APIBlueprint("batches", __name__, abp_tags=[Tag(name="batches", description="Files of requests")])


@blueprint.post("/v1/batches", responses=documented(BatchObject, NotFound, IdempotencyMismatch))
def create_batch(header: BatchHeaders, body: BatchRequest) -> Response:
    """Have the requests of a file computed.

    Its lines are checked next: a batch with a bad line ends as `failed`, with the line's number.
    """
    live, tenant = services(), current_tenant()
    _check_metadata(live, body.metadata)
    source = live.files.get(body.input_file_id, tenant.name)
    if source.purpose != "batch":
        raise InvalidRequest("the input file's purpose must be batch", param="input_file_id")
    expiry = body.output_expires_after
    new = NewBatch(
        tenant=tenant.name,
        endpoint=body.endpoint,
        input_file_id=source.id,
        completion_window=body.completion_window,
        metadata=body.metadata,
        output_ttl_s=expiry.seconds if expiry is not None else live.settings.file_ttl_s,
        rights=tenant.write_rights(),
    )
    batch = live.batches.create(new, PayloadHash.of_json(header.idempotency_key, body).settle())
    live.batch_wake.set()
    return _render(live, batch)


@blueprint.get("/v1/batches", responses=documented(BatchList))
def list_batches(query: BatchPage) -> Response:
    """List batches, newest first."""
    live = services()
    found = live.batches.list(current_tenant().name, limit=query.limit + 1, after=query.after or "")
    page = found[: query.limit]
    body = {
        "object": "list",
        "data": [view_batch(live, batch) for batch in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(found) > query.limit,
    }
    return json_response(body)


@blueprint.get("/v1/batches/<batch_id>", responses=documented(BatchObject, NotFound))
def get_batch(path: BatchId) -> Response:
    """Tell how a batch stands."""
    live = services()
    return _render(live, live.batches.get(path.batch_id, current_tenant().name))


@blueprint.post("/v1/batches/<batch_id>/cancel", responses=documented(BatchObject, NotFound, Conflict))
def cancel_batch(path: BatchId) -> Response:
    """Cancel a batch: lines that were computed by then are in its output file."""
    live = services()
    batch = live.batches.cancel(path.batch_id, current_tenant().name)
    live.batch_wake.set()
    return _render(live, batch)


def _render(live: Services, batch: BatchRecord) -> Response:
    return json_response(view_batch(live, batch))


def _check_metadata(live: Services, metadata: dict[str, str] | None) -> None:
    settings, pairs = live.settings, (metadata or {}).items()
    if len(pairs) > settings.batch_max_metadata:
        raise InvalidRequest(f"metadata has at most {settings.batch_max_metadata} entries", param="metadata")
    for key, value in pairs:
        if len(key) > settings.batch_max_metadata_key_chars:
            most = settings.batch_max_metadata_key_chars
            raise InvalidRequest(f"a key of metadata has at most {most} characters", param="metadata")
        if len(value) > settings.batch_max_metadata_value_chars:
            most = settings.batch_max_metadata_value_chars
            raise InvalidRequest(f"a value of metadata has at most {most} characters", param=f"metadata.{key}")
