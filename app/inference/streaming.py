"""An embeddings call that is answered item by item, as its texts are computed: NDJSON or server-sent events.

Owns the two forms, and what a failure behind the first item looks like: the status is out by then. The items are those
of the whole answer, and in its order.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from flask import Response, request, stream_with_context

from app.access.auth import current_tenant
from app.http.errors import raise_item_errors
from app.http.places import Kind, current_place
from app.http.responses import encode_json, live_stream
from app.http.slow_clients import paced
from app.inference.rendering import count_usage, embedding_entries
from app.inference.schemas import EmbeddingsRequest
from app.services import services
from app.submission.orders import Order
from app.submission.service import SubmissionService
from tasks.engine import Outcomes
from tasks.errors import InvalidRequest, TwolaneError
from tasks.jobs.chunking import Item

__all__ = ["stream_embeddings"]

_log = logging.getLogger(__name__)

# Texts that are computed together: the first vectors come early, and passes are still well filled.
_PART_ITEMS = 32
_SSE = "text/event-stream"
_NDJSON = "application/x-ndjson"


def stream_embeddings(order: Order, items: Sequence[Item], body: EmbeddingsRequest) -> Response:
    """Return the answer as a stream whose first part is computed already: what fails there gets its status.

    Each item is one line (NDJSON) or event (where `Accept` asks for server-sent events), and the last one is the answer
    without its items: `{"object": "list", "model", "usage"}`. A failure in between ends the stream with an `error`
    instead.

    Raises:
        tasks.errors.TwolaneError: as `SubmissionService.answer`.
    """
    if request.headers.get("Prefer"):
        raise InvalidRequest("stream is for calls that are answered at once: send it without Prefer", param="stream")
    current_place().move(Kind.LARGE)
    parts = SubmissionService(services(), current_tenant()).answer_in_parts(order, items, _PART_ITEMS)
    first = next(parts)
    if body.on_error != "item":
        raise_item_errors(first.errors)
    as_events = request.accept_mimetypes.best_match([_NDJSON, _SSE], default=_NDJSON) == _SSE
    values = _values(itertools.chain([first], parts), body)
    pieces = (_event(value) if as_events else encode_json(value) + b"\n" for value in values)
    settings = services().settings
    stream = paced(stream_with_context(pieces), settings.min_client_bytes_s, settings.stream_timeout_s)
    response = live_stream(stream, _SSE if as_events else _NDJSON)
    response.headers["x-model-fingerprint"] = first.fingerprint
    return response


def _event(value: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % encode_json(value)


def _values(parts: Iterator[Outcomes], body: EmbeddingsRequest) -> Iterator[dict[str, Any]]:
    usages: list[dict[str, int]] = []
    index = 0
    try:
        for outcomes in parts:
            if body.on_error != "item":
                raise_item_errors({index + position: error for position, error in outcomes.errors.items()})
            entries = embedding_entries(outcomes, body.encoding_format or "float", body.output_dtype or "float")
            for index, entry in enumerate(entries, start=index):  # noqa: B020 - goes on counting over the parts
                yield {**entry, "index": index}
            index += 1
            usages.append(count_usage(outcomes))
        yield {"object": "list", "model": body.model, "usage": _add_up(usages)}
    except Exception as error:  # noqa: BLE001 - the edge of a stream: its reader must see that it is not complete
        _log.warning("a streamed call ended early: %s", type(error).__name__)
        code = error.code if isinstance(error, TwolaneError) else TwolaneError.code
        message = error.message if isinstance(error, TwolaneError) else "the call could not be answered to its end"
        yield {"error": {"code": code, "message": message}}


def _add_up(usages: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(usage[name] for usage in usages) for name in usages[0]}
