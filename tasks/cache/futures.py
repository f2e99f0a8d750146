"""Futures of outcomes that are made of others.

Owns the joining of outcomes of parts of a work into those of the whole. Computes nothing and knows no cache.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError

import numpy as np

from tasks.engine import ItemError, Outcomes

__all__ = ["fail", "merge_parts", "pass_on"]


def fail(future: Future[Outcomes], error: BaseException) -> None:
    """End a future with an error, unless it has ended."""
    try:
        future.set_exception(error)
    except InvalidStateError:
        return


def pass_on(inner: Future[Outcomes], outer: Future[Outcomes]) -> None:
    """End `outer` as `inner` ends, and cancel `inner` with it."""

    def end(ended: Future[Outcomes]) -> None:
        try:
            outer.set_result(ended.result())
        except InvalidStateError:
            return
        except BaseException as error:  # noqa: BLE001 - whatever it was, somebody waits for this future
            fail(outer, error)

    inner.add_done_callback(end)
    outer.add_done_callback(lambda ended: inner.cancel() if ended.cancelled() else None)


def merge_parts(items: int, parts: Sequence[tuple[Sequence[int], Future[Outcomes]]]) -> Future[Outcomes]:
    """Return the outcomes of the whole.

    Args:
        items: how many it has.
        parts: positions in the whole, and the outcomes of the items there; the first error of a part ends the whole.
    """
    outer, lock, left = Future[Outcomes](), threading.Lock(), {id(future) for _, future in parts}

    def end(ended: Future[Outcomes]) -> None:
        with lock:
            left.discard(id(ended))
            if left or outer.done():
                return
        try:
            outer.set_result(_merge(items, [(positions, future.result()) for positions, future in parts]))
        except InvalidStateError:
            return
        except BaseException as error:  # noqa: BLE001 - whatever it was, somebody waits for this future
            fail(outer, error)

    def cancel(ended: Future[Outcomes]) -> None:
        if ended.cancelled():
            for _, future in parts:
                future.cancel()

    outer.add_done_callback(cancel)
    for _, future in parts:
        future.add_done_callback(end)
    return outer


def _merge(items: int, parts: Sequence[tuple[Sequence[int], Outcomes]]) -> Outcomes:
    shape = (items, *parts[0][1].values.shape[1:])
    values, tokens, truncated = np.zeros(shape, np.float32), np.zeros(items, np.int32), np.zeros(items, np.bool_)
    errors: dict[int, ItemError] = {}
    for positions, part in parts:
        rows = np.asarray(positions)
        # A part whose items all failed may not know how wide a vector is.
        if part.values.shape[1:] == shape[1:]:
            values[rows] = part.values
        tokens[rows], truncated[rows] = part.tokens, part.truncated
        errors |= {positions[row]: error for row, error in part.errors.items()}
    return Outcomes(values, tokens, truncated, errors, cached=sum(part.cached or 0 for _, part in parts))
