"""The outcomes of one chunk, gathered item by item or all at once, and the frame that they become.

Owns the result frame of a chunk: header {"start", "items", "ids", "errors"}, columns values, tokens, truncated (see
`tasks.frames`), and those of `tasks.vectors` where other kinds were asked for. Computes nothing.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks import frames
from tasks.engine import ItemError, Outcomes
from tasks.errors import InvalidText, WorkerCrashed
from tasks.jobs.claims import Claim, Completion
from tasks.jobs.job import ChunkInput
from tasks.vectors import Extra, Parts, Ragged, pack_extras, unpack_extras

__all__ = ["ChunkOutcomes", "pack_outcomes"]


def pack_outcomes(start: int, ids: Sequence[str | None] | None, outcomes: Outcomes, dtype: str = "float32") -> bytes:
    """Return the result frame of a chunk.

    Args:
        start: index of its first item in the job.
        ids: the caller's own ids, or None.
        outcomes: what became of its items.
        dtype: float32 or float16, for the vectors.
    """
    errors = {str(position): [error.code, error.message] for position, error in outcomes.errors.items()}
    header = {"start": start, "items": len(outcomes.tokens), "ids": ids, "errors": errors}
    values = outcomes.values.astype("<f2" if dtype == "float16" else "<f4", copy=False)
    columns = {"values": values, "tokens": outcomes.tokens, "truncated": outcomes.truncated}
    return frames.pack(header, columns | pack_extras(outcomes.extras, dtype))


class ChunkOutcomes:
    """What became of each item of a chunk.

    Args:
        claim: the claim; its items that are known to be poison are errors from the start, refused ones too.
        items: the texts.
        width: length of an embedding, needed if no item can be computed; 0 unknown.
        before: the frame of the last run, if only its failed items are computed again.
    """

    def __init__(self, claim: Claim, items: ChunkInput, width: int, before: bytes | None = None) -> None:
        self._claim = claim
        self._items = items
        size = len(items.texts)
        width = width if claim.params.dense else 0
        shape = (size,) if claim.operation == "rerank" else (size, width)
        self._values: NDArray[np.float32] = np.zeros(shape, np.float32)
        self._tokens = np.zeros(size, np.int32)
        self._truncated = np.zeros(size, np.bool_)
        self._errors: dict[int, ItemError] = {}
        # Also where nothing can be computed a frame has the columns that were asked for.
        extras = claim.params.extras if claim.operation == "embeddings" else ()
        self._extras: dict[Extra, list[Parts | None]] = {kind: [None] * size for kind in extras}
        self._cached, self._device_s = 0, 0.0
        self.asked: list[int] = list(range(size))
        if before is not None:
            self._load_frame(before)
        for position, refused in enumerate(items.refused or ()):
            if refused is not None:
                self.fail(position, ItemError.of(InvalidText(refused)))
        for position in claim.poison:
            self.fail(position, ItemError.of(WorkerCrashed("the worker ended while it computed this item")))

    @property
    def left(self) -> list[int]:
        """Positions that still have to be computed."""
        return [position for position in self.asked if position not in self._errors]

    def put(self, positions: Sequence[int], outcomes: Outcomes) -> None:
        """Enter the outcomes of these items."""
        self._cached += outcomes.cached or 0
        self._device_s += outcomes.timing.device_s
        if len(positions) == len(self._tokens):
            self._values, self._tokens, self._truncated = outcomes.values, outcomes.tokens, outcomes.truncated
        else:
            self._fit(outcomes.values)
            rows = np.asarray(positions)
            self._values[rows], self._tokens[rows] = outcomes.values, outcomes.tokens
            self._truncated[rows] = outcomes.truncated
        for kind, ragged in outcomes.extras.items():
            self._enter(kind, positions, ragged)
        for row, error in outcomes.errors.items():
            self._errors[positions[row]] = error

    def fail(self, position: int, error: ItemError) -> None:
        """Enter that this item has no result."""
        self._errors[position] = error

    def completion(self) -> Completion:
        """Return the counts of the items that were asked for, and the frame of all."""
        extras = {kind: Ragged.of(kind, items) for kind, items in self._extras.items()}
        outcomes = Outcomes(self._values, self._tokens, self._truncated, self._errors, extras=extras)
        frame = pack_outcomes(self._claim.start, self._items.ids, outcomes, self._claim.params.dtype)
        failed = [position for position in self.asked if position in self._errors]
        rows = np.asarray(self.asked)
        return Completion(
            completed=len(self.asked) - len(failed),
            failed=len(failed),
            truncated=int(self._truncated[rows].sum()),
            tokens=int(self._tokens[rows].sum()),
            frame=frame,
            error=self._describe(failed[0]) if failed else "",
            cached=self._cached,
            failures=Counter(self._errors[position].code for position in failed),
            device_s=self._device_s,
        )

    def _describe(self, position: int) -> str:
        error = self._errors[position]
        return f"item {self._claim.start + position}: {error.code}: {error.message}"

    def _load_frame(self, before: bytes) -> None:
        header, columns = frames.unpack(before)
        self._values = columns["values"].astype(np.float32)
        self._tokens, self._truncated = columns["tokens"].copy(), columns["truncated"].copy()
        for kind, ragged in unpack_extras(columns).items():
            self._enter(kind, range(len(self._tokens)), ragged)
        self.asked = sorted(int(position) for position in header["errors"])

    def _enter(self, kind: Extra, positions: Sequence[int], ragged: Ragged) -> None:
        items = self._extras[kind]
        for position, parts in zip(positions, ragged, strict=True):
            items[position] = parts

    def _fit(self, values: NDArray[Any]) -> None:
        """Before the first outcome the width may be unknown, or not that of the model."""
        if self._values.shape[1:] != values.shape[1:]:
            self._values = np.zeros((len(self._tokens), *values.shape[1:]), np.float32)
