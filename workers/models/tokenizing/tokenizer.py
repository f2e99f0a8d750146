"""Texts to token ids, safe to call from many threads at once.

Owns cutting and special tokens: a fast tokenizer keeps its truncation and padding settings inside the shared object,
so two threads that ask for different lengths corrupt each other. Ours has both switched off, ids are cut one text at a
time, and special tokens are put around them here.
Knows nothing of instructions (`workers.engine.admission`) or padding (the backends).
"""

import itertools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tasks.errors import ConfigError, InvalidRequest
from tasks.vectors import Extra

__all__ = [
    "QUERY_SHARE",
    "Encoded",
    "FastTokenizer",
    "SpecialTokens",
    "Spelled",
    "TextTokenizer",
    "Tokens",
    "Truncate",
    "learn_special_tokens",
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


class Spelled(NamedTuple):
    """One token: its id and word, and where it begins and ends in its text, in characters; -1: it is a special one."""

    id: int
    word: str
    start: int = -1
    end: int = -1


class TextTokenizer(Protocol):
    """Gives ids for texts; `max_tokens` is the most that the model reads at once."""

    max_tokens: int

    def encode(self, texts: Sequence[str], truncate: Truncate) -> list[Encoded]:
        """Encode each text on its own, special tokens included. `none` cuts like `end`; the caller refuses."""
        ...

    def encode_pairs(self, queries: Sequence[str], texts: Sequence[str], truncate: Truncate) -> list[Encoded]:
        """Encode (query, text) pairs of equal count for a cross-encoder. Only the text is shortened."""
        ...

    def locate(self, texts: Sequence[str]) -> list[NDArray[np.intp]]:
        """Return where each token of a text begins and ends in it, in characters: shape (tokens, 2).

        Whole texts, without special tokens.
        """
        ...

    def spell(self, text: str) -> list["Spelled"]:
        """Return the tokens of a whole text, special ones included, as the model would read them."""
        ...

    def join(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones included.

        Raises:
            InvalidRequest: there is no such token.
        """
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
        self._single = learn_special_tokens(self.fast, pair=False)
        self._pair = learn_special_tokens(self.fast, pair=True)
        self._room = max_tokens - self._single.size
        self._pair_room = max_tokens - self._pair.size

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
        rows = _RowBuilder(self.fallback_id)
        before, after = self._single.before, self._single.after
        for ids, shortened in self._split(texts, self._room, truncate):
            kept = _cut(ids, self._room, truncate)
            rows.add((before, kept, after), 0, shortened or len(kept) < len(ids), len(ids) + self._single.size)
        return rows.finish()

    def encode_pairs(self, queries: Sequence[str], texts: Sequence[str], truncate: Truncate) -> list[Encoded]:
        """See `TextTokenizer.encode_pairs`."""
        share, whole = QUERY_SHARE
        most = min(self.max_tokens * share // whole, self._pair_room)
        unique = list(dict.fromkeys(queries))
        heads: dict[str, tuple[list[int], bool]] = {}
        for query, (ids, shortened) in zip(unique, self._split(unique, most, "end"), strict=True):
            head = _cut(ids, most, "end")
            heads[query] = head, shortened or len(head) < len(ids)
        rows, frame = _RowBuilder(self.fallback_id), self._pair
        for query, (ids, shortened) in zip(queries, self._split(texts, self._pair_room, truncate), strict=True):
            head, head_cut = heads[query]
            kept = _cut(ids, self._pair_room - len(head), truncate)
            cut = shortened or head_cut or len(kept) < len(ids)
            parts = frame.before, head, frame.between, kept, frame.after
            rows.add(parts, frame.second_at(len(head), len(kept)), cut, len(head) + len(ids) + frame.size)
        return rows.finish()

    def locate(self, texts: Sequence[str]) -> list[NDArray[np.intp]]:
        """See `TextTokenizer.locate`."""
        parts = self.fast.encode_batch(texts, add_special_tokens=False)
        return [np.array(part.offsets, np.intp).reshape(-1, 2) for part in parts]

    def spell(self, text: str) -> list[Spelled]:
        """See `TextTokenizer.spell`."""
        (part,) = self.fast.encode_batch([text], add_special_tokens=False)
        own = itertools.starmap(Spelled, ((*pair, *at) for *pair, at in zip(part.ids, part.tokens, part.offsets)))  # noqa: B905 - they are equal
        before, after = ([self._spell_special(one) for one in ids] for ids in (self._single.before, self._single.after))
        return [*before, *own, *after]

    def _spell_special(self, one: int) -> Spelled:
        return Spelled(one, self.fast.id_to_token(one) or "")

    def join(self, ids: Sequence[int]) -> str:
        """See `TextTokenizer.join`."""
        for one in dict.fromkeys(ids):
            if self.fast.id_to_token(one) is None:
                raise InvalidRequest(f"tokens: this model has no token {one}", param="tokens")
        return str(self.fast.decode(list(ids), skip_special_tokens=False))

    def _split(self, texts: Sequence[str], room: int, truncate: Truncate) -> list[tuple[list[int], bool]]:
        """Return each text's ids without special tokens, and whether the text was shortened before."""
        short = [shorten(text, room, truncate) for text in texts]
        # The library works on all its threads meanwhile, and without the interpreter's lock.
        parts = self.fast.encode_batch_fast(short, add_special_tokens=False)
        return [self._recheck(*row, room) for row in zip(texts, short, [part.ids for part in parts], strict=True)]

    def _recheck(self, text: str, short: str, ids: list[int], room: int) -> tuple[list[int], bool]:
        """Read the whole text after all where the shortened one does not fill the room."""
        if len(short) == len(text):
            return ids, False
        if len(ids) > room:
            return ids, True
        return self.fast.encode_batch_fast([text], add_special_tokens=False)[0].ids, False


class _RowBuilder:
    """Puts the ids of many rows into one array, of which each row is a view."""

    def __init__(self, fallback_id: int) -> None:
        self._fallback_id = fallback_id
        self._ids, self._offsets = array("i"), [0]
        self._rest: list[tuple[int, bool, int]] = []

    def add(self, parts: Iterable[list[int]], second_at: int, cut: bool, asked: int) -> None:  # noqa: FBT001 - a column
        """Add a row that is made of these parts; see `Encoded`."""
        for part in parts:
            self._ids.fromlist(part)
        if len(self._ids) == self._offsets[-1]:
            self._ids.append(self._fallback_id)
        self._offsets.append(len(self._ids))
        self._rest.append((second_at, cut, asked))

    def finish(self) -> list[Encoded]:
        """Return the rows."""
        flat = np.array(self._ids, np.int32)
        bounds = itertools.pairwise(self._offsets)
        return [
            Encoded(Tokens(flat[begin:end], second_at), cut, asked)
            for (begin, end), (second_at, cut, asked) in zip(bounds, self._rest, strict=True)
        ]


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


def _cut(ids: list[int], room: int, truncate: Truncate) -> list[int]:
    """Return as many ids as there is room for."""
    if len(ids) <= room:
        return ids
    return ids[len(ids) - max(room, 0) :] if truncate == "start" else ids[: max(room, 0)]


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """What a tokenizer's post-processor puts around the ids of one text or of two, the same for all texts.

    Attributes:
        before, between, after: ids in front of the first text, between the texts and behind the last.
        second_type: where the token type of the second text begins, counted from the end of the first; None: no type
            tells the texts apart.
        typed_end: whether that type is there too when the second text is empty.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    second_type: int | None = None
    typed_end: bool = False

    @property
    def size(self) -> int:
        """How many ids it adds."""
        return len(self.before) + len(self.between) + len(self.after)

    def second_at(self, first: int, second: int) -> int:
        """Return where the second text begins by its token type, for texts of so many ids; 0: no type says it."""
        if self.second_type is None or not (second or self.typed_end):
            return 0
        return len(self.before) + first + self.second_type


def learn_special_tokens(fast: Any, *, pair: bool) -> SpecialTokens:
    """Return what the post-processor of a `tokenizers.Tokenizer` adds, as two probes show it.

    Running it on each text took longer than all else that a tokenizer does outside of the library's own threads.

    Raises:
        ConfigError: it does more than put the same ids around texts.
    """
    probe, empty = _probe(fast), _probe(fast)
    empty.truncate(0)
    special = fast.post_process(empty, empty if pair else None)
    whole = fast.post_process(probe, probe if pair else None)
    ids, text = special.ids, probe.ids
    places = range(len(ids) + 1)
    cuts = itertools.combinations_with_replacement(places, 2) if pair else ((place, place) for place in places)
    for one, two in cuts:
        frame = SpecialTokens(ids[:one], ids[one:two], ids[two:])
        if frame.before + text + frame.between + (text if pair else []) + frame.after == whole.ids:
            if not pair or 1 not in whole.type_ids:
                return frame
            at = whole.type_ids.index(1) - len(frame.before) - len(text)
            return replace(frame, second_type=at, typed_end=1 in special.type_ids)
    raise ConfigError("the tokenizer's post-processor does more than to put special tokens around texts")


def _probe(fast: Any) -> Any:
    """Return the ids of a text that has some, and none that are special, as far as the vocabulary goes."""
    size = fast.get_vocab_size(with_added_tokens=False)
    texts = ("a", "the", "1", *(fast.id_to_token(one) or "" for one in range(min(size, 1000))))
    special = {*fast.get_added_tokens_decoder()}
    parts = [fast.encode(text, add_special_tokens=False) for text in texts[:3]]
    parts += [] if any(parts) else [fast.encode(text, add_special_tokens=False) for text in texts[3:]]
    found = [part for part in parts if len(part)]
    if not found:
        raise ConfigError("the tokenizer gives no ids for any text")
    return next((part for part in found if special.isdisjoint(part.ids)), found[0])
