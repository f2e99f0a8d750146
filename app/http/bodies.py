"""Request bodies: read in blocks, counted while they are read, unpacked and parsed.

Owns every read of a body and its limits in bytes. Knows no schema: what the JSON means is `app.inference.schemas`.
"""

import codecs
import functools
import inspect
import json
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import orjson
from flask import Request, current_app, has_app_context
from pydantic import BaseModel, ValidationError

from app.http.disconnects import was_cut_off
from app.http.places import PLACE, SMALL_BODY_BYTES, Kind, Place
from app.http.slow_clients import Pace
from tasks.errors import BodyCutOff, InvalidRequest, TooLarge

__all__ = [
    "ApiRequest",
    "explain_invalid",
    "is_broken",
    "load_json",
    "load_json_with_surrogates",
    "parse_json",
    "read_json",
    "read_model",
    "stream_body",
]

M = TypeVar("M", bound=BaseModel)
_BLOCK_BYTES = 64 * 1024
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
# zlib copies what stands behind a member: small steps keep a body of thousands of tiny members cheap.
_GZIP_STEP_BYTES = 4 * 1024


# Of a text that no app of ours reads for a request: a line of a batch.
_MOST_VALUES = 2_000_000
# Repeated text packs to a tenth or a hundredth; behind such a ratio there is a bomb.
_MOST_RATIO, _RATIO_FROM_BYTES = 200, 4 * 2**20


class ApiRequest(Request):
    """A request whose JSON body is read under our limits and never repaired."""

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:  # noqa: ARG002, FBT001, FBT002 - Flask's signature
        """Return the body as a JSON object; `silent` is ignored, since a bad body has to be refused."""
        return read_json(self, current_app.config["MAX_BODY_BYTES"], _body_model(self.endpoint))


@functools.cache
def _body_model(endpoint: str | None) -> type[BaseModel] | None:
    """Return the schema of a route's body, as its view is annotated; None: it has none."""
    view = current_app.view_functions.get(endpoint or "")
    parameter = inspect.signature(view).parameters.get("body") if view is not None else None
    found = parameter.annotation if parameter is not None else None
    return found if inspect.isclass(found) and issubclass(found, BaseModel) else None


def read_json(request: Request, limit_bytes: int, model: type[BaseModel] | None = None) -> dict[str, Any]:
    """Read the whole body and parse it. What its schema ignores may be missing.

    Raises:
        InvalidRequest: it is not a JSON object in UTF-8, or it ended early.
        LaneFull: too many bytes of bodies are in memory at this moment.
        TooLarge: it is over the limit, packed or unpacked, or has too many values.
    """
    place, blocks, size_bytes = request.environ.get(PLACE), [], 0
    for block in stream_body(request, limit_bytes):
        blocks.append(block)
        size_bytes += len(block)
        if place is not None and size_bytes > SMALL_BODY_BYTES:
            place.hold(size_bytes)
    body = b"".join(blocks)
    blocks.clear()
    return parse_json(body) if len(body) <= SMALL_BODY_BYTES else _parse_large(body, place, model)


def require_few_values(text: bytes) -> int:
    """Return how many values a JSON text has at most.

    Raises:
        TooLarge: more than are taken.
    """
    # Its libraries are loaded by the first large text.
    from app.http.large_json import count_values  # noqa: PLC0415

    most = current_app.config["MAX_JSON_VALUES"] if has_app_context() else _MOST_VALUES
    values = count_values(text, most // 10)
    if values > most:
        message = f"the JSON has {values} values; at most {most} are taken, and more items as NDJSON: POST /v1/jobs"
        raise TooLarge(message)
    return values


def _parse_large(body: bytes, place: Place | None, model: type[BaseModel] | None) -> dict[str, Any]:
    from app.http.large_json import VALUE_BYTES, parse_fields  # noqa: PLC0415 - as above

    values = require_few_values(body)
    if place is not None:
        place.hold(len(body) + VALUE_BYTES * values)
    return parse_json(body, functools.partial(parse_fields, model=model))


def parse_json(body: bytes, load: Callable[[bytes], Any] | None = None) -> dict[str, Any]:
    """Parse a JSON object, as `load` does it.

    Raises:
        InvalidRequest: broken JSON, invalid UTF-8, NaN, a lone surrogate, too deep, or no object.
    """
    try:
        value = (load or load_json)(body)
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidRequest(f"the body is not valid JSON in UTF-8: {error.msg} ({where})") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object")
    return value


def load_json(text: bytes) -> Any:
    """Return a JSON value. A byte order mark before it is skipped: editors and Windows tools write one.

    Raises:
        orjson.JSONDecodeError: it is not JSON in UTF-8.
        TooLarge: it has too many values.
    """
    if len(text) > SMALL_BODY_BYTES:
        require_few_values(text)
    return orjson.loads(text.removeprefix(codecs.BOM_UTF8))


def load_json_with_surrogates(text: bytes) -> Any:
    r"""Return a JSON value in which strings may hold half of a surrogate pair, escaped (`\ud83d`) or as bytes.

    Raises:
        ValueError: it is not JSON otherwise, either.
    """
    try:
        return json.loads(text.decode("utf-8-sig", "surrogatepass"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def is_broken(text: str) -> bool:
    """Tell whether a text has half of a surrogate pair, so that it cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def read_model(request: Request, limit_bytes: int, model: type[M]) -> M:
    """Read the body as one of our schemas.

    Raises:
        InvalidRequest, TooLarge: as `read_json`, or a field does not fit.
    """
    try:
        return model.model_validate(read_json(request, limit_bytes, model))
    except ValidationError as error:
        raise explain_invalid(error) from None


def explain_invalid(error: ValidationError) -> InvalidRequest:
    """Return the error for the first complaint of the validation, with the field's name."""
    # The input itself must not come back: it would end in the client's logs, and in ours.
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join(str(step) for step in first["loc"]) or None
    message = "this address has no such parameter" if first["type"] == "extra_forbidden" else first["msg"]
    return InvalidRequest(f"{param}: {message}" if param else message, param=param)


def stream_body(request: Request, limit_bytes: int) -> Iterator[bytes]:
    """Yield the body in blocks, unpacked if it is gzip, and count both forms against the limit.

    Raises:
        BodyCutOff: the body ended before its announced end.
        BodyTooSlow: it comes too slowly.
        InvalidRequest: it cannot be unpacked.
        LaneFull: it unpacks to a large body, and too many of those arrive at this moment.
        TooLarge: the body is over the limit; nothing behind it is read.
    """
    length = request.content_length
    if length is not None and length > limit_bytes:
        raise _too_large(limit_bytes)
    packing = request.headers.get("Content-Encoding", "identity").strip().lower()
    blocks = _counted(_raw_blocks(request, length), limit_bytes)
    if packing in {"identity", ""}:
        return blocks
    if packing not in {"gzip", "x-gzip"}:
        raise InvalidRequest(f"content-encoding {packing[:40]!r} is not supported: send gzip or none at all")
    return _counted(_placed(_unpacked(blocks), request.environ.get(PLACE)), limit_bytes)


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"the body is over the limit of {limit_bytes} bytes")


def _raw_blocks(request: Request, length: int | None) -> Iterator[bytes]:
    stream, read_bytes, pace = request.environ["wsgi.input"], 0, _pace(length)
    while length is None or read_bytes < length:
        size = _BLOCK_BYTES if length is None else min(_BLOCK_BYTES, length - read_bytes)
        asked_s = time.monotonic()
        if not (block := stream.read(size)):
            break
        if pace is not None:
            pace.check_sender(time.monotonic() - asked_s, len(block))
        read_bytes += len(block)
        yield block
    # To the web server a lost connection looks like the end of the body.
    if length is not None and read_bytes < length:
        raise BodyCutOff(f"the body ended after {read_bytes} of {length} bytes")
    if length is None and was_cut_off(request.environ, read_bytes):
        raise BodyCutOff("the connection was lost in the middle of the body")


def _pace(length: int | None) -> Pace | None:
    # A small body is read in one go; and a request that no app of ours handles, in a test, has all the time it wants.
    small = length is not None and length <= SMALL_BODY_BYTES
    return None if small or not has_app_context() else Pace(current_app.config["MIN_CLIENT_BYTES_S"])


def _placed(blocks: Iterator[bytes], place: Place | None) -> Iterator[bytes]:
    """Make the request a large one as soon as its small body has unpacked to a large one."""
    total_bytes = 0
    for block in blocks:
        total_bytes += len(block)
        if total_bytes > SMALL_BODY_BYTES and place is not None and place.kind is Kind.SMALL:
            place.move(Kind.LARGE)
        yield block


def _counted(blocks: Iterator[bytes], limit_bytes: int) -> Iterator[bytes]:
    total_bytes = 0
    for block in blocks:
        total_bytes += len(block)
        if total_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        yield block


def _unpacked(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield unpacked blocks of bounded size, so that a bomb is counted before it is whole in memory."""
    members, packed_bytes, unpacked_bytes = _GzipMembers(), 0, 0
    try:
        for block in blocks:
            for start in range(0, len(block), _GZIP_STEP_BYTES):
                step = block[start : start + _GZIP_STEP_BYTES]
                packed_bytes += len(step)
                for unpacked in members.unpack(step):
                    unpacked_bytes += len(unpacked)
                    if unpacked_bytes > _RATIO_FROM_BYTES and unpacked_bytes > _MOST_RATIO * packed_bytes:
                        raise TooLarge(f"the body unpacks to more than {_MOST_RATIO} times its size; send it unpacked")
                    yield unpacked
        yield members.finish()
    except zlib.error:
        raise InvalidRequest("the body is not valid gzip, or something else stands behind the gzip stream") from None


class _GzipMembers:
    """Unpacks the members of a gzip stream one after another (RFC 1952, 2.2), as `cat a.gz b.gz` writes them.

    Zeros behind a member are padding, as gzip itself takes them; anything else has to be a member.
    """

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(_GZIP_WINDOW)

    def unpack(self, packed: bytes) -> Iterator[bytes]:
        """Yield what the next packed bytes hold; raises `zlib.error` at what is not gzip."""
        while packed:
            if self._inflater.eof:
                packed = packed.lstrip(b"\0")
                if not packed:
                    return
                self._inflater = zlib.decompressobj(_GZIP_WINDOW)
            yield self._inflater.decompress(packed, _BLOCK_BYTES)
            packed = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail

    def finish(self) -> bytes:
        """Return what is left when nothing more comes.

        Raises:
            InvalidRequest: the last member has no end.
        """
        rest = self._inflater.flush()
        if not self._inflater.eof:
            raise InvalidRequest("the gzip body ended early")
        return rest
