"""Texts that are longer than the model reads: cut into windows that overlap, and joined again after the passes.

Owns where windows begin and end, and how the outcomes of windows become that of their text. A window is a part of the
text's own characters, from token to token, and from word to word where there are any. The engine reads it as any other
text, with its instruction, its query and its special tokens: the vector of a chunk is that of `text[start:end]`, and
lanes, packing and limits know nothing of windows. Owns no instruction and no query (`admission`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tasks.engine import ItemError, Outcomes, Windows, Work
from tasks.errors import ContextLengthExceeded
from tasks.vectors import Ragged
from workers.models.tokenizing.tokenizer import TextTokenizer

__all__ = ["LongTexts", "cut_windows"]

# From and to in a text, in characters.
Span = tuple[int, int]
# From queries to how many tokens the model reads beside those of a text, for a text with each of them.
Overhead = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True, slots=True)
class _Cut:
    """The windows of one text; it is refused if it has none."""

    spans: Sequence[Span]
    left_out: bool = False
    refused: ItemError | None = None


class LongTexts:
    """The texts of one piece of work, cut.

    Args:
        work: with texts to be read in windows.
        windows: how.
        tokenizer: of the model.
        overhead: see `Overhead`.

    Attributes:
        work: the same work, on windows.
    """

    def __init__(self, work: Work, windows: Windows, tokenizer: TextTokenizer, overhead: Overhead) -> None:
        self._windows = windows
        self._tokenizer = tokenizer
        rooms = self._find_rooms(work, overhead)
        tokens = tokenizer.locate(work.texts)
        self._cuts = [self._cut(*one, work) for one in zip(work.texts, tokens, rooms, strict=True)]
        self._counts = np.array([len(cut.spans) for cut in self._cuts], np.intp)
        self.work = self._spread(work)

    def _find_rooms(self, work: Work, overhead: Overhead) -> list[int]:
        queries = work.queries or [""] * len(work.texts)
        unique = list(dict.fromkeys(queries))
        taken = dict(zip(unique, overhead(unique), strict=True))
        return [max(1, self._tokenizer.max_tokens - taken[query]) for query in queries]

    def _cut(self, text: str, tokens: NDArray[np.intp], room: int, work: Work) -> _Cut:
        size, overlap = self._windows.fit(room)
        whole, most = [(0, len(text))], self._windows.most
        if len(tokens) <= size:
            return _Cut(whole)
        spans = self._fit(text, cut_windows(text, tokens, size, overlap), size)
        if most is None or len(spans) <= most:
            return _Cut(spans)
        if work.params.truncate == "none":
            message = f"The text takes {len(spans)} windows of {size} tokens, and at most {most} are read"
            return _Cut([], refused=ItemError.of(ContextLengthExceeded(message)))
        return _Cut(spans[-most:] if work.params.truncate == "start" else spans[:most], left_out=True)

    def _fit(self, text: str, spans: Sequence[Span], size: int) -> list[Span]:
        """Cut in two the windows that, rarely, have more tokens by themselves than they had in their text."""
        fitting: list[Span] = []
        located = self._tokenizer.locate([text[start:end] for start, end in spans])
        for (start, end), tokens in zip(spans, located, strict=True):
            if len(tokens) <= size or end - start < 2:
                fitting.append((start, end))
            else:
                middle = start + min(max(1, int(tokens[len(tokens) // 2, 0])), end - start - 1)
                fitting += self._fit(text, [(start, middle), (middle, end)], size)
        return fitting

    def _spread(self, work: Work) -> Work:
        texts = [text[start:end] for text, cut in zip(work.texts, self._cuts, strict=True) for start, end in cut.spans]
        owners = self._owners.tolist()
        queries = None if work.queries is None else [work.queries[owner] for owner in owners]
        # Vectors are pooled before they are cut; a chunk has one like any text.
        dimensions = work.params.dimensions if work.params.in_chunks else None
        params = replace(work.params, long=None, truncate="end", dimensions=dimensions)
        return replace(work, texts=texts, queries=queries, params=params)

    @property
    def _owners(self) -> NDArray[np.intp]:
        """The text of each window."""
        return np.repeat(np.arange(len(self._counts)), self._counts)

    def join(self, outcomes: Outcomes, *, normalize: bool) -> Outcomes:
        """Return the outcomes of the texts, from those of all windows.

        A text whose window failed has failed. Its tokens are those of all its windows, what they share counted each
        time: so many the model read.

        Args:
            outcomes: of `work`.
            normalize: whether pooled vectors get length 1.
        """
        owners, texts = self._owners, len(self._counts)
        errors = {at: cut.refused for at, cut in enumerate(self._cuts) if cut.refused is not None}
        for window in sorted(outcomes.errors, reverse=True):
            errors[int(owners[window])] = outcomes.errors[window]
        tokens = np.bincount(owners, outcomes.tokens, texts).astype(np.int32)
        truncated = np.array([cut.left_out for cut in self._cuts], np.bool_)
        truncated |= np.bincount(owners, outcomes.truncated, texts) > 0
        whole = replace(outcomes, tokens=tokens, truncated=truncated, errors=errors)
        if self._windows.pooling == "chunks":
            chunks = self._gather(outcomes.values, errors)
            return replace(whole, values=np.zeros((texts, 0), np.float32), extras={"chunks": chunks})
        values = self._pool(outcomes, normalize=normalize)
        values[list(errors)] = 0
        return replace(whole, values=values)

    def _gather(self, vectors: NDArray[np.float32], errors: dict[int, ItemError]) -> Ragged:
        """Return what each text has: its windows' bounds and vectors."""
        ends = np.cumsum(self._counts)
        parts = [
            None if at in errors else (np.array(cut.spans, np.int32), vectors[end - len(cut.spans) : end])
            for at, (cut, end) in enumerate(zip(self._cuts, ends.tolist(), strict=True))
        ]
        return Ragged.of("chunks", parts)

    def _pool(self, outcomes: Outcomes, *, normalize: bool) -> NDArray[np.float32]:
        """Return one value for each text, of one window what that has."""
        values, pooled = outcomes.values, np.zeros((len(self._counts), *outcomes.values.shape[1:]), np.float32)
        ends = np.cumsum(self._counts)
        for at, (count, end) in enumerate(zip(self._counts.tolist(), ends.tolist(), strict=True)):
            windows = slice(end - count, end)
            if count == 1:
                pooled[at] = values[windows][0]
            elif count:
                pooled[at] = self._join_values(values[windows], outcomes.tokens[windows], normalize=normalize)
        return pooled

    def _join_values(
        self, values: NDArray[np.float32], tokens: NDArray[np.int32], *, normalize: bool
    ) -> NDArray[np.float32]:
        if self._windows.pooling == "max":
            one = values.max(axis=0)
        else:
            one = np.average(values, axis=0, weights=tokens).astype(np.float32)
        if normalize and one.ndim and (length := np.linalg.norm(one)) > 0:
            one = one / length
        return np.asarray(one, np.float32)


def cut_windows(text: str, tokens: NDArray[np.intp], size: int, overlap: int) -> list[Span]:
    """Return windows of at most `size` tokens, each of which repeats about `overlap` tokens of the one before.

    A window ends before a word rather than in one, where that costs it less than half of its tokens.

    Args:
        text: the text.
        tokens: where they begin and end in it, shape (n, 2).
        size: from 1.
        overlap: at most half of `size`.
    """
    spans: list[Span] = []
    first = 0
    while True:
        end = min(first + size, len(tokens))
        if end < len(tokens):
            least = first + max(size // 2, overlap)
            end = next((at for at in range(end, least, -1) if _begins_word(text, tokens, at)), end)
        spans.append((int(tokens[first, 0]), int(tokens[end - 1, 1])))
        if end == len(tokens):
            return spans
        first = next((at for at in range(end - overlap, end) if _begins_word(text, tokens, at)), end - overlap)


def _begins_word(text: str, tokens: NDArray[np.intp], at: int) -> bool:
    """Tell whether there is a blank before a token, or in front of it as part of it."""
    start = int(tokens[at, 0])
    return start == 0 or text[start].isspace() or text[start - 1].isspace()
