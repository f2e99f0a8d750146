"""Requests and replies of interactive calls as bytes: what client and server send to each other.

Owns the layout and how an error crosses the wire. Owns no connection.

Request: float64 ms until the deadline, which push_request.lua replaces by the deadline in ms by Redis' clock;
         uint32 weight in tokens; a frame.
Reply:   uint64 number of the request, a frame. All little-endian.
"""

import functools
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from tasks import errors, frames
from tasks.engine import ItemError, JobParams, Outcomes, Timing, Windows, Work
from tasks.lanes import Service
from tasks.vectors import pack_extras, unpack_extras

__all__ = [
    "BYTES_PER_TOKEN",
    "InteractiveRequest",
    "decode_reply",
    "decode_request",
    "encode_failure",
    "encode_outcomes",
    "encode_request",
    "reply_id",
]

_DEADLINE = struct.Struct("<d")
_TOKENS = struct.Struct("<I")
# Of a request, as a lane's limit counts it.
BYTES_PER_TOKEN = 64
_NUMBER = struct.Struct("<Q")
_FRAME_AT = _DEADLINE.size + _TOKENS.size
# They are fields of the request itself, so that web processes and workers of two versions understand each other.
_PARAMS = tuple(field.name for field in fields(JobParams))
_DEFAULTS = [(name, getattr(JobParams(), name)) for name in _PARAMS]


@dataclass(frozen=True, slots=True)
class InteractiveRequest:
    """One waiting call, as a worker reads it.

    Attributes:
        number: the web process's own number for it; the reply carries it.
        reply_key: the Redis list that the reply goes to.
        deadline_ms: until when it is wanted, by Redis' clock.
        tokens: what it weighs in the lane.
        work: what to compute, with its deadline if the clocks are known.
        taken_s: `time.monotonic()` at which the worker read it.
    """

    number: int
    reply_key: str
    deadline_ms: float
    tokens: int
    work: Work
    taken_s: float = field(default_factory=time.monotonic, compare=False)


def encode_request(number: int, reply_key: str, tokens: int, work: Work) -> bytes:
    """Return a request without its first field; `with_time_left` puts that in front when it is sent.

    A query is written once, however many documents it has. What a lane may hold is counted in tokens, and a text
    may be far longer than what a model reads of it: so many bytes weigh a token, too.

    Raises:
        tasks.errors.InvalidRequest: a text is not Unicode (a lone surrogate).
    """
    header: dict[str, object] = {
        "number": number,
        "reply": reply_key,
        "model": work.model,
        "operation": work.operation,
        "texts": list(work.texts),
        **_write_queries(work.queries),
        "service": work.service.value,
        "reuse": work.reuse,
        "urgent": work.urgent,
    }
    for name in _PARAMS:
        header[name] = getattr(work.params, name)
    try:
        frame = frames.pack(header)
    except TypeError as error:
        raise errors.InvalidRequest("a text holds a lone surrogate, which is not Unicode", param="input") from error
    return _TOKENS.pack(max(tokens, len(frame) // BYTES_PER_TOKEN)) + frame


def _write_queries(queries: Sequence[str] | None) -> dict[str, object]:
    if queries is None:
        return {"queries": None}
    unique = {query: place for place, query in enumerate(dict.fromkeys(queries))}
    if len(unique) == len(queries):
        return {"queries": list(queries)}
    return {"queries": list(unique), "query_of": [unique[query] for query in queries]}


def _read_queries(header: Mapping[str, Any]) -> list[str] | None:
    queries: list[str] | None = header["queries"]
    if queries is None or "query_of" not in header:
        return queries
    return [queries[place] for place in header["query_of"]]


def with_time_left(body: bytes, left_ms: float) -> bytes:
    """Return the request as push_request.lua takes it."""
    return _DEADLINE.pack(left_ms) + body


def decode_request(element: bytes, redis_ahead_s: float | None = None) -> InteractiveRequest:
    """Return the request.

    Args:
        element: its bytes.
        redis_ahead_s: by how much Redis' clock is ahead of `time.monotonic()`; None: the work gets no deadline.

    Raises:
        tasks.frames.FrameError: the bytes are not a request.
    """
    try:
        (deadline_ms,) = _DEADLINE.unpack_from(element)
        (tokens,) = _TOKENS.unpack_from(element, _DEADLINE.size)
        header = frames.peek(memoryview(element)[_FRAME_AT:])
        deadline_s = None if redis_ahead_s is None else deadline_ms / 1000 - redis_ahead_s
        return InteractiveRequest(header["number"], header["reply"], deadline_ms, tokens, _work(header, deadline_s))
    except (struct.error, LookupError, TypeError, ValueError) as error:
        raise frames.FrameError("the bytes are not a request") from error


def _work(header: Mapping[str, Any], deadline_s: float | None) -> Work:
    return Work(
        model=header["model"],
        operation=header["operation"],
        texts=header["texts"],
        queries=_read_queries(header),
        service=Service(header["service"]),
        params=_params(*(_hashable(header.get(name, default)) for name, default in _DEFAULTS)),
        reuse=header.get("reuse", ""),
        urgent=header.get("urgent", False),
        deadline_s=deadline_s,
    )


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return Windows(**value)
    return tuple(value) if isinstance(value, list) else value


@functools.lru_cache(maxsize=256)
def _params(*values: Any) -> JobParams:
    """Return the params with these values, of which most calls share a few."""
    return JobParams(**dict(zip(_PARAMS, values, strict=True)))


def encode_outcomes(number: int, outcomes: Outcomes, worker_s: float = 0.0) -> bytes:
    """Return the reply that carries outcomes; `worker_s`: how long the worker had the request."""
    failed = {str(position): [error.code, error.message] for position, error in outcomes.errors.items()}
    columns = {"values": outcomes.values, "tokens": outcomes.tokens, "truncated": outcomes.truncated}
    timing = outcomes.timing.queue_s, outcomes.timing.device_s, worker_s or outcomes.timing.worker_s
    header = {"errors": failed, "cached": outcomes.cached, "fingerprint": outcomes.fingerprint, "timing": timing}
    return _NUMBER.pack(number) + frames.pack(header, columns | pack_extras(outcomes.extras))


def encode_failure(number: int, error: BaseException) -> bytes:
    """Return the reply that carries an error. What we did not raise on purpose travels as a plain `WorkError`."""
    if not isinstance(error, errors.TwolaneError):
        error = errors.WorkError(f"the worker failed on this request ({type(error).__name__})")
    details = {
        "class": type(error).__name__,
        "code": error.code,
        "message": error.message,
        "param": getattr(error, "param", None),
        "retry_after_s": getattr(error, "retry_after_s", None),
    }
    return _NUMBER.pack(number) + frames.pack({"failure": details})


def reply_id(reply: bytes) -> int:
    """Return the number of the request that a reply answers.

    Raises:
        tasks.frames.FrameError: the bytes are too short for a reply.
    """
    try:
        number: int = _NUMBER.unpack_from(reply)[0]
    except struct.error as error:
        raise frames.FrameError("the bytes are not a reply") from error
    return number


def decode_reply(reply: bytes) -> Outcomes:
    """Return the outcomes; their arrays are read-only views of the reply.

    Raises:
        tasks.errors.TwolaneError: the error that the worker reported, of its own class.
        tasks.frames.FrameError: the bytes are not a reply.
    """
    header, columns = frames.unpack(memoryview(reply)[_NUMBER.size :])
    if "failure" in header:
        raise _failure(header["failure"])
    failed = {int(position): ItemError(*pair) for position, pair in header["errors"].items()}
    values = columns["values"].astype(np.float32, copy=False)
    extras = unpack_extras(columns)
    # A worker of an earlier version says less.
    made_by, timing = header.get("fingerprint", ""), Timing(*header.get("timing", ()))
    read = columns["tokens"], columns["truncated"], failed
    return Outcomes(values, *read, header.get("cached"), extras, made_by, timing)


def _failure(details: Mapping[str, Any]) -> errors.TwolaneError:
    kind = getattr(errors, details["class"], None)
    message = details["message"]
    if not (isinstance(kind, type) and issubclass(kind, errors.TwolaneError)):
        return errors.WorkError(message)
    if issubclass(kind, errors.CapacityError):
        return kind(message, retry_after_s=details["retry_after_s"])
    if issubclass(kind, errors.RequestError):
        return kind(message, param=details["param"])
    return kind(message)
