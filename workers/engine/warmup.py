"""Real passes before the first request, at the shapes that will come.

Owns the choice of shapes. The first pass of a shape costs more than later ones (kernels are chosen, memory is
taken), and the cost model should know each length before it has to keep a bulk pass short.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tasks.engine import ItemError, Outcomes
from tasks.errors import WorkError
from tasks.lanes import Service
from workers.engine.passes import Passes
from workers.engine.pending import PendingWork
from workers.models.loaded import LoadedModel
from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["warm_up_steps"]

# Longer shapes are left out once warming up took this long: a large model on a CPU would take minutes.
_ENOUGH_S = 5.0
_LENGTHS = (8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 256, 512, 2048, 8192)


def warm_up_steps(model: LoadedModel, passes: Passes, batch_tokens: int) -> Iterator[Callable[[], None]]:
    """Yield passes with one row and with a full batch of each length, short ones first.

    Each is to be called on the device's thread, which computes other work in between. It raises WorkError where a row
    has no vector.
    """
    took_s = 0.0

    def run(length: int, rows: int) -> None:
        nonlocal took_s
        started_s = passes.clock()
        # The first pass of a shape pays for the choice of kernels; the second costs what later ones will.
        with passes.unmeasured():
            _run(model, passes, length, rows)
        _run(model, passes, length, rows)
        took_s += passes.clock() - started_s

    for length, rows in _shapes(model.tokenizer.max_tokens, batch_tokens):
        if took_s > _ENOUGH_S:
            return
        yield partial(run, length, rows)


def _run(model: LoadedModel, passes: Passes, length: int, rows: int) -> None:
    work = PendingWork(model, Service.BULK, None, _keep_errors)
    work.add_rows([_dummy(model, length)] * rows)
    work.waited_s = 0.0  # it came past the queue
    passes.run(model, work.rows)
    if errors := work.future.result(0).errors:
        reason = next(iter(errors.values())).message
        raise WorkError(f"{model.card.name}: the warm-up pass of {rows} rows of {length} tokens failed: {reason}")


def _shapes(max_tokens: int, batch_tokens: int) -> Iterator[tuple[int, int]]:
    lengths = [length for length in _LENGTHS if length < max_tokens] + [max_tokens]
    for length in lengths:
        for rows in dict.fromkeys((1, max(1, batch_tokens // length))):
            yield length, rows


def _dummy(model: LoadedModel, length: int) -> Tokens:
    """Return a row of the wanted length that begins and ends as a text of this model does."""
    ids = model.tokenizer.encode(["warm up"], "end")[0].tokens.ids
    if length <= len(ids):
        return Tokens(ids)
    middle = np.resize(ids[1:-1] if len(ids) > 2 else ids, length - 2)
    return Tokens(np.concatenate([ids[:1], middle, ids[-1:]]).astype(np.int32))


def _keep_errors(_: NDArray[np.float32], failed: Mapping[int, ItemError]) -> Outcomes:
    return Outcomes(np.empty(0, np.float32), np.empty(0, np.int32), np.empty(0, np.bool_), dict(failed))
