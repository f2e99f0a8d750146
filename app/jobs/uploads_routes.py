"""How far an upload under an idempotency key has come."""

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from app.access.auth import current_tenant
from app.http.errors import documented
from app.inference.rendering import json_response
from app.jobs.upload_schemas import UploadHeaders, UploadObject
from app.services import services
from tasks.errors import NotFound
from tasks.jobs.uploads import UploadStore

__all__ = ["blueprint"]

blueprint = APIBlueprint("uploads", __name__, abp_tags=[Tag(name="jobs", description="Large corpora")])


@blueprint.get("/v1/uploads", responses=documented(UploadObject, NotFound))
def get_upload(header: UploadHeaders) -> Response:
    """Tell how far the upload under a key has come, in the body and in `Upload-Offset` and `Upload-Complete`.

    Complete: the key stands for a job. Else send the rest from the offset on, under the same key; `HEAD` is enough.
    """
    live, tenant, key = services(), current_tenant().name, header.idempotency_key
    body: dict[str, object] = {"object": "upload", "offset": None, "items": None, "job_id": None, "expires_in_s": None}
    if (job_id := live.store.named(tenant, key)) is not None:
        body |= {"complete": True, "job_id": job_id}
    elif (found := UploadStore(live.redis, live.settings).get(tenant, key)) is not None:
        upload, left_s = found
        body |= {"complete": False, "offset": upload.position.offset_bytes, "items": upload.items}
        body["expires_in_s"] = round(left_s)
    else:
        raise NotFound("nothing is stored under this idempotency key")
    response = json_response(body)
    # Names and values as in the IETF's draft on resumable uploads.
    response.headers["Upload-Complete"] = "?1" if body["complete"] else "?0"
    if body["offset"] is not None:
        response.headers["Upload-Offset"] = str(body["offset"])
    response.headers["Cache-Control"] = "no-store"
    return response
