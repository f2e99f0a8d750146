"""One call of a synchronous route: answered now, or queued as a job where its caller prefers that.

Owns the reading of the headers that say so. What is asked and how an answer looks belong to the route.
"""

from collections.abc import Callable, Iterable

from flask import Response, request
from pydantic import BaseModel

from app.access.auth import current_tenant
from app.http.errors import raise_item_errors
from app.http.prefer import parse_prefer
from app.jobs.views import render_submission
from app.services import services
from app.submission.orders import Order
from app.submission.payload import PayloadHash
from app.submission.service import SubmissionService
from tasks.engine import Outcomes
from tasks.errors import InvalidRequest
from tasks.jobs.chunking import Item

__all__ = ["answer_or_queue"]

# What shapes the answer of a call. A job has results of its own, so these are refused there and never ignored.
_OF_CALLS_ONLY = ("output_dtype", "top_n")


def answer_or_queue(
    order: Order,
    items: Iterable[Item],
    count: int,
    body: BaseModel,
    render: Callable[[Outcomes], Response],
    *,
    item_errors: bool = False,
) -> Response:
    """Return the rendered outcomes or, with `Prefer: respond-async`, the job that was made of the call.

    The header `x-truncated-items` says how many items were cut.

    Args:
        order: what to do.
        items: what to do it with; read once.
        count: how many they are. Millions of items are seconds of work, so too many are refused before they are made.
        body: the call as it was read; an `Idempotency-Key` stands for it.
        render: makes the answer of outcomes, without failed items unless they are wanted.
        item_errors: whether the answer has a place for failed items; else the first of them fails the call.

    Raises:
        tasks.errors.TwolaneError: as `SubmissionService.answer` and `.submit`; the error of the first failed item.
    """
    live, preferences = services(), parse_prefer(request.headers.get("Prefer", ""))
    submission = SubmissionService(live, current_tenant())
    if preferences.respond_async:
        _refuse_fields_of_calls(body)
        payload = PayloadHash.of_json(request.headers.get("Idempotency-Key"), body)
        return render_submission(live, submission.submit(order, items, payload.settle, queue=True), preferences)
    submission.require_few(order, count)
    outcomes = submission.answer(order, list(items))
    if not item_errors:
        raise_item_errors(outcomes.errors)
    response = render(outcomes)
    response.headers["x-model-fingerprint"] = outcomes.fingerprint
    response.headers["x-truncated-items"] = str(int(outcomes.truncated.sum()))
    return response


def _refuse_fields_of_calls(body: BaseModel) -> None:
    for name in _OF_CALLS_ONLY:
        if getattr(body, name, None) not in {None, "float", "float32"}:
            raise InvalidRequest(f"{name} shapes the answer of a call and has no place in a queued job", param=name)
