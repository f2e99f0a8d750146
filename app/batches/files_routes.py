"""OpenAI's Files: upload, list, read, delete."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import ValidationError

from app.access.auth import current_tenant
from app.batches.schemas import DeletedFile, FileFilter, FileId, FileList, FileObject, UploadFields
from app.http.bodies import explain_invalid, stream_body
from app.http.errors import documented
from app.http.multipart import read_form
from app.http.places import Kind, current_place
from app.http.responses import json_response
from app.http.slow_clients import paced
from app.services import services
from tasks.errors import InvalidRequest, NotFound, StoreFull, TooLarge
from tasks.files.store import FileWriter, NewFile, StoredFile
from tasks.storage.objects import read_blocks

__all__ = ["blueprint"]

blueprint = APIBlueprint("files", __name__, abp_tags=[Tag(name="files", description="Input and output of batches")])

# What a form adds to the file: boundaries, headers and the other fields.
_FORM_BYTES = 64 * 1024
_MAX_NAME_CHARS = 255
_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "One request a line (JSONL)."},
        "purpose": {"type": "string", "enum": ["batch"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
}
_LINK = {"description": "The bytes lie at `Location`, for a while."}
_UPLOAD = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}
_BYTES: dict[str, Any] = {
    "description": "The very bytes.",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}


@blueprint.post("/v1/files", responses=documented(FileObject, TooLarge, StoreFull), openapi_extensions=_UPLOAD)
def create_file() -> Response:
    """Upload a file of requests, for a batch."""
    live = services()
    if request.mimetype != "multipart/form-data":
        raise InvalidRequest("the body must be multipart/form-data")
    opened: list[FileWriter] = []
    with ExitStack() as stack:

        def open_sink(name: str) -> FileWriter:
            new = NewFile(current_tenant().name, name[:_MAX_NAME_CHARS], "batch", live.settings.file_ttl_s)
            opened.append(stack.enter_context(live.files.open_writer(new)))
            return opened[0]

        blocks = stream_body(request, live.settings.max_file_bytes + _FORM_BYTES)
        form = read_form(blocks, request.mimetype_params.get("boundary"), "file", open_sink)
        seconds = _read_fields(form.fields).seconds
        if opened[0].size_bytes > live.settings.max_file_bytes:
            raise TooLarge(f"the file is over the limit of {live.settings.max_file_bytes} bytes")
        return json_response(_view(opened[0].commit(seconds)))


@blueprint.get("/v1/files", responses=documented(FileList))
def list_files(query: FileFilter) -> Response:
    """List files."""
    found = services().files.list(
        current_tenant().name,
        limit=query.limit + 1,
        order=query.order,
        after=query.after or "",
        purpose=query.purpose or "",
    )
    page = [_view(file) for file in found[: query.limit]]
    body = {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(found) > query.limit,
    }
    return json_response(body)


@blueprint.get("/v1/files/<file_id>", responses=documented(FileObject, NotFound))
def get_file(path: FileId) -> Response:
    """Describe a file."""
    return json_response(_view(services().files.get(path.file_id, current_tenant().name)))


@blueprint.get(
    "/v1/files/<file_id>/content", responses=documented(FileObject, NotFound, extra={200: _BYTES, 302: _LINK})
)
def get_file_content(path: FileId) -> Response:
    """Return a file's bytes as they were uploaded or written, or redirect to where they lie."""
    live = services()
    files, settings = live.files, live.settings
    file = files.get(path.file_id, current_tenant().name)
    if settings.file_link_s and (link := files.link(file, settings.file_link_s)):
        return Response(status=302, headers={"Location": link, "Cache-Control": "no-store"})
    current_place().move(Kind.STREAM)
    blocks = paced(read_blocks(files.open(file)), settings.min_client_bytes_s, settings.stream_timeout_s)
    response = Response(blocks, mimetype="application/octet-stream")
    response.content_length = file.size_bytes
    # Never shown as a page: the bytes are untrusted.
    response.headers.set("Content-Disposition", "attachment", filename=f"{file.id}.jsonl")
    return response


@blueprint.delete("/v1/files/<file_id>", responses=documented(DeletedFile, NotFound))
def delete_file(path: FileId) -> Response:
    """Delete a file. Batches that have read it go on."""
    services().files.delete(path.file_id, current_tenant().name)
    return json_response({"id": path.file_id, "object": "file", "deleted": True})


def _read_fields(fields: Mapping[str, str]) -> UploadFields:
    try:
        return UploadFields.model_validate(fields)
    except ValidationError as error:
        raise explain_invalid(error) from None


def _view(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at),
        "expires_at": int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }
