"""No silent bad vector: what is not finite, or has no length, is computed again in float32 and else refused.

Owns that check. Knows nothing of requests.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.engine import ItemError
from tasks.errors import InvalidEmbedding
from tasks.vectors import ExtraParts
from workers.models.backends.base import Backend, Heads, Values
from workers.models.tokenizing.tokenizer import Tokens

__all__ = ["INVALID", "find_bad", "run_guarded", "run_guarded_heads"]

INVALID = ItemError.of(InvalidEmbedding("The model gives no finite value for this text, not even in float32."))

# Below this a vector has lost its direction; real ones have length 1, unnormalized ones far more than this.
_LEAST_NORM = 1e-6


def find_bad(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return, per row of (n, d) vectors or (n,) scores, whether it cannot be used."""
    if values.ndim == 1:
        return ~np.isfinite(values)
    norms = np.linalg.norm(values, axis=1)
    return np.asarray(~np.isfinite(norms) | (norms < _LEAST_NORM))


def run_guarded(
    backend: Backend, rows: Sequence[Tokens], values_to_come: Values | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Run a batch, its bad rows twice, and return the values with a mask of the rows that stayed bad (zeroed).

    Args:
        backend: runs them.
        rows: the batch.
        values_to_come: a pass over it that was started already.

    Raises:
        tasks.errors.OutOfMemory: the rows do not fit together.
    """
    values = values_to_come() if values_to_come else backend.run(rows)
    bad = find_bad(values)
    if bad.any():
        again = np.flatnonzero(bad).tolist()
        values = np.array(values)
        for at in again:
            values[at] = backend.run_exact([rows[at]])[0]
        bad = find_bad(values)
        values[bad] = 0
    return values, bad


def run_guarded_heads(
    heads: Heads, rows: Sequence[Tokens]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], list[ExtraParts]]:
    """Do the same for all kinds of vectors that the rows want; a row is bad when any number of it is.

    Raises:
        tasks.errors.OutOfMemory: the rows do not fit together.
    """
    values, extras = heads.run_all(rows)
    bad = find_bad(values) | _find_bad_extras(extras)
    if bad.any():
        values = np.array(values)
        for at in np.flatnonzero(bad).tolist():
            (values[at],), (extras[at],) = heads.run_all([rows[at]], exact=True)
        bad = find_bad(values) | _find_bad_extras(extras)
        values[bad] = 0
    return values, bad, extras


def _find_bad_extras(extras: Sequence[ExtraParts]) -> NDArray[np.bool_]:
    good = [all(np.isfinite(part).all() for parts in each.values() for part in parts) for each in extras]
    return ~np.array(good, np.bool_)
