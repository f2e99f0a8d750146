"""`GET /v1/jobs/{job_id}/results`: one result set, six forms."""

from collections.abc import Iterator
from typing import Any, cast

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from app.access.auth import current_tenant
from app.http.errors import RangeNotSatisfiable, documented
from app.http.places import Kind, current_place
from app.http.responses import json_response, live_stream
from app.http.slow_clients import paced
from app.jobs.arrow import TableFormat, stream_table
from app.jobs.following import FollowedResults
from app.jobs.npy import ByteRange, NpyFile, parse_range
from app.jobs.results import Results
from app.jobs.schemas import JobId, ResultPage, ResultView
from app.services import services
from tasks.errors import Expired, InvalidRequest, LaneFull, NotFinished, NotFound

__all__ = ["blueprint"]

blueprint = APIBlueprint("job_results", __name__, abp_tags=[Tag(name="jobs", description="Large corpora")])

_PAGE_ITEMS = 100
_TYPES = {
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "npy": "application/x-npy",
    "arrow": "application/vnd.apache.arrow.file",
    "arrows": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_BINARY: dict[str, Any] = {"description": "A range of the npy file.", "content": {_TYPES["npy"]: _BYTES}}
_OK: dict[str, Any] = {
    "description": "The results.",
    "content": {
        _TYPES["json"]: {"schema": {"$ref": "#/components/schemas/ResultPage"}},
        **{mimetype: _BYTES for form, mimetype in _TYPES.items() if form != "json"},
    },
}


@blueprint.get(
    "/v1/jobs/<job_id>/results",
    responses=documented(
        ResultPage, NotFound, NotFinished, Expired, LaneFull, RangeNotSatisfiable, extra={200: _OK, 206: {**_BINARY}}
    ),
)
def get_results(path: JobId, query: ResultView) -> Response:
    """Return a job's results in input order, in the form that Accept or format asks for."""
    live = services()
    job = live.store.get(path.job_id, current_tenant().name)
    query = query if query.format else query.model_copy(update={"format": _negotiate()})
    query.require_form()
    if query.follow:
        return _follow(FollowedResults(live, job, query.output_dtype or "float"), query)
    results = Results(live, job, query.output_dtype or "float")
    if query.format == "json":
        return _page(results, query)
    if query.format == "npy":
        return _send_npy(results)
    return _stream(_pieces(results, query), str(query.format))


def _negotiate() -> str:
    best = request.accept_mimetypes.best_match(list(_TYPES.values()), default=_TYPES["json"])
    return next(form for form, mimetype in _TYPES.items() if mimetype == best)


def _pieces(results: Results, query: ResultView) -> Iterator[bytes]:
    after = -1 if query.after is None else query.after
    if query.format == "ndjson":
        return results.lines(query.encoding_format or "float", after, failed=query.status == "failed")
    return stream_table(results, cast("TableFormat", query.format), after)


def _follow(results: FollowedResults, query: ResultView) -> Response:
    """Answer with what is there, and go on as chunks end; such a stream holds the place of a waiting caller."""
    current_place().move(Kind.WAIT)
    settings = services().settings
    stream = paced(_pieces(results, query), settings.min_client_bytes_s, settings.stream_timeout_s)
    return live_stream(stream, _TYPES[str(query.format)])


def _page(results: Results, query: ResultView) -> Response:
    after, limit = -1 if query.after is None else query.after, query.limit or _PAGE_ITEMS
    rows, more = results.page(after, limit, query.encoding_format or "float", failed=query.status == "failed")
    last = rows[-1]["index"] if rows else None
    body = {"object": "list", "data": rows, "has_more": more, "last_id": last, "after": after, "limit": limit}
    return json_response(body)


def _send_npy(results: Results) -> Response:
    if not results.job.params.dense:
        message = "npy holds dense vectors, and this job has none; json, ndjson, arrow and parquet hold the other kinds"
        raise InvalidRequest(message, param="format")
    file = NpyFile(results, results.width())
    tag = f'"{results.job.id}.{results.job.version}.{results.dtype.name}.{file.size_bytes}.npy"'
    # A range of another state of the job would be glued to the wrong bytes.
    asked = request.headers.get("Range", "") if request.headers.get("If-Range", tag) == tag else ""
    wanted = parse_range(asked, file.size_bytes) if asked else None
    whole = ByteRange(0, file.size_bytes)
    response = _stream(file.read(wanted or whole), "npy")
    response.headers["Accept-Ranges"] = "bytes"
    response.content_length = file.size_bytes
    if wanted is not None:
        response.status_code = 206
        response.content_length = wanted.stop - wanted.start
        response.headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{file.size_bytes}"
    response.headers["ETag"] = tag
    return response


def _stream(pieces: Iterator[bytes], form: str) -> Response:
    """Answer with a stream that has begun already: what fails before its first piece still gets its status."""
    current_place().move(Kind.STREAM)
    settings = services().settings
    stream = paced(_begun(pieces), settings.min_client_bytes_s, settings.stream_timeout_s)
    response = Response(stream, mimetype=_TYPES[form])
    if form != "ndjson":
        response.headers["Content-Disposition"] = f'attachment; filename="results.{form}"'
    return response


def _begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Return the stream with its first piece made now."""

    def follow(first: bytes) -> Iterator[bytes]:
        yield first
        yield from pieces

    return follow(next(pieces, b""))
