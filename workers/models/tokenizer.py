"""Texts to token ids, safe to call from many threads at once.

Owns cutting: a fast tokenizer keeps its truncation and padding settings inside the shared object, so two threads
that ask for different lengths corrupt each other. Ours has both switched off and ids are cut one text at a time.
Knows nothing of instructions (`workers.engine.admission`) or padding (the backends).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.vectors import Extra

__all__ = [
    "QUERY_SHARE",
    "Encoded",
    "FastTokenizer",
    "TextTokenizer",
    "Tokens",
    "Truncate",
    "lower_cased",
    "read_tokenizer",
    "shorten",
]

Truncate = Literal["end", "start", "none"]

# No tokenizer of the catalogue spends more characters than this on an average token of real text. A text far above
# it is first cut, since a request of a million characters would else hold its caller for a second.
_CHARS_PER_TOKEN = 16
# A query takes at most this share of a pair, as in FlagEmbedding's rerankers, so that a document is always seen.
QUERY_SHARE = (3, 4)


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """One row for the model, special tokens included.

    Attributes:
        ids: int32, shape (length,).
        second_at: where the second text of a pair begins; 0 for a single text.
        extras: kinds of vectors that are wanted besides the value.
        cutoff_layer: the layer after which a layerwise reranker scores; 0: the last.
        is_query: of a model that gives a vector for each token, whether it was read as a query.
        unseen: how many ids at its end other tokens do not see, though they have vectors.
    """

    ids: NDArray[np.int32]
    second_at: int = 0
    extras: tuple[Extra, ...] = ()
    cutoff_layer: int = 0
    is_query: bool = False
    unseen: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text, or a pair, as the model will read it.

    Attributes:
        tokens: the ids, never more than the tokenizer's `max_tokens`.
        cut: whether text was left out to get there.
        asked: how many ids the whole would have had; of a text far above the limit, as far as it was read.
    """

    tokens: Tokens
    cut: bool
    asked: int


class TextTokenizer(Protocol):
    """Gives ids for texts; `max_tokens` is the most that the model reads at once."""

    max_tokens: int

    def encode(self, texts: Sequence[str], truncate: Truncate) -> list[Encoded]:
        """Encode each text on its own, special tokens included. `none` cuts like `end`; the caller refuses."""
        ...

    def encode_pairs(self, queries: Sequence[str], texts: Sequence[str], truncate: Truncate) -> list[Encoded]:
        """Encode (query, text) pairs of equal count for a cross-encoder. Only the text is shortened."""
        ...


class FastTokenizer:
    """Wraps a private copy of a model's `tokenizers.Tokenizer`."""

    def __init__(self, fast: Any, max_tokens: int, fallback_id: int) -> None:
        """Copy `fast` (a `tokenizers.Tokenizer`); `fallback_id` stands in where a text has no tokens at all."""
        self.fast: Any = type(fast).from_str(fast.to_str())
        self.fast.no_truncation()
        self.fast.no_padding()
        self.fallback_id = fallback_id
        self.max_tokens = max_tokens
        self._room = max_tokens - self.fast.num_special_tokens_to_add(is_pair=False)
        self._pair_room = max_tokens - self.fast.num_special_tokens_to_add(is_pair=True)

    def draw_ids(self, seed: int, count: int) -> list[int]:
        """Return ids of ordinary tokens at random, the same ones for the same seed."""
        special = self.fast.get_added_tokens_decoder()
        size = self.fast.get_vocab_size(with_added_tokens=False)
        draws = np.random.default_rng(seed).integers(0, max(size, 1), 20 * count).tolist()
        return ([one for one in draws if one not in special] or draws)[:count]

    def to_json(self) -> str:
        """Return the tokenizer as the text of a `tokenizer.json`."""
        return str(self.fast.to_str())

    def encode(self, texts: Sequence[str], truncate: Truncate) -> list[Encoded]:
        """See `TextTokenizer.encode`."""
        rows = []
        for part, shortened in self._split(texts, self._room, truncate):
            asked = len(part.ids) + self.max_tokens - self._room
            cut = _cut(part, self._room, truncate)
            rows.append(Encoded(self._finish(part, None), cut or shortened, asked))
        return rows

    def encode_pairs(self, queries: Sequence[str], texts: Sequence[str], truncate: Truncate) -> list[Encoded]:
        """See `TextTokenizer.encode_pairs`."""
        share, whole = QUERY_SHARE
        most = min(self.max_tokens * share // whole, self._pair_room)
        unique = list(dict.fromkeys(queries))
        heads: dict[str, tuple[Any, bool]] = {}
        for query, (part, shortened) in zip(unique, self._split(unique, most, "end"), strict=True):
            cut = _cut(part, most, "end")
            heads[query] = part, cut or shortened
        rows = []
        for query, (part, shortened) in zip(queries, self._split(texts, self._pair_room, truncate), strict=True):
            head, head_cut = heads[query]
            asked = len(head.ids) + len(part.ids) + self.max_tokens - self._pair_room
            cut = _cut(part, self._pair_room - len(head.ids), truncate)
            rows.append(Encoded(self._finish(head, part), cut or shortened or head_cut, asked))
        return rows

    def _split(self, texts: Sequence[str], room: int, truncate: Truncate) -> list[tuple[Any, bool]]:
        """Return each text's ids without special tokens, and whether the text was shortened before."""
        short = [shorten(text, room, truncate) for text in texts]
        parts = self.fast.encode_batch_fast(short, add_special_tokens=False)
        return [self._recheck(*row, room) for row in zip(texts, short, parts, strict=True)]

    def _recheck(self, text: str, short: str, part: Any, room: int) -> tuple[Any, bool]:
        """Read the whole text after all where the shortened one does not fill the room."""
        if len(short) == len(text):
            return part, False
        if len(part.ids) > room:
            return part, True
        return self.fast.encode_batch_fast([text], add_special_tokens=False)[0], False

    def _finish(self, part: Any, second: Any | None) -> Tokens:
        whole = self.fast.post_process(part, second)
        ids = np.array(whole.ids or [self.fallback_id], np.int32)
        types = whole.type_ids
        return Tokens(ids, types.index(1) if second is not None and 1 in types else 0)


def read_tokenizer(path: Path, max_tokens: int, fallback_id: int) -> FastTokenizer:
    """Read a `tokenizer.json`; `fallback_id` stands in where a text has no tokens at all."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - importing this module must not cost it

    return FastTokenizer(Tokenizer.from_file(str(path)), max_tokens, fallback_id)


def lower_cased(fast: Any) -> Any:
    """Return a copy of a `tokenizers.Tokenizer` that reads texts in lower case, as sentence-transformers does."""
    from tokenizers import normalizers  # noqa: PLC0415 - as above

    copy = type(fast).from_str(fast.to_str())
    steps = [normalizers.Lowercase()] + ([copy.normalizer] if copy.normalizer is not None else [])
    copy.normalizer = normalizers.Sequence(steps)
    return copy


def shorten(text: str, room: int, truncate: Truncate) -> str:
    """Cut a very long text between words to what surely holds more tokens than there is room for."""
    chars = room * _CHARS_PER_TOKEN
    if len(text) <= 2 * chars:
        return text
    if truncate == "start":
        at = text.find(" ", len(text) - 2 * chars, len(text) - chars)
        return text if at < 0 else text[at:]
    at = text.rfind(" ", chars, 2 * chars)
    return text if at < 0 else text[:at]


def _cut(part: Any, room: int, truncate: Truncate) -> bool:
    """Shorten an encoding to `room` ids and say whether that was necessary."""
    if len(part.ids) <= room:
        return False
    part.truncate(max(room, 0), direction="left" if truncate == "start" else "right")
    return True
