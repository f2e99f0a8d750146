"""A corpus becomes chunks; the tokens of a text are estimated without a tokenizer."""

from collections.abc import Iterator

import pytest

from tasks.jobs.chunking import ChunkLimits, Item, cut_chunks, estimate_tokens

LIMITS = ChunkLimits(items=3, tokens=100, bytes=50, max_tokens=40)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("", 1, 2),
        ("The quick brown fox jumps over the lazy dog", 9, 14),
        ("今天天气很好我们去公园散步吧", 14, 17),
        ("Съешь же ещё этих мягких французских булок", 15, 30),
        ("x" * 10**6, 512, 512),
    ],
)
def test_the_estimate_is_near_what_tokenizers_make(text: str, low: int, high: int) -> None:
    assert low <= estimate_tokens(text, 512) <= high


def test_lone_surrogates_are_estimated_too() -> None:
    assert estimate_tokens("\ud800", 512) > 0


def test_chunks_are_cut_by_number_of_items() -> None:
    chunks = list(cut_chunks([Item(str(number)) for number in range(7)], LIMITS))
    assert [(record.index, record.start, record.items) for record, _ in chunks] == [(0, 0, 3), (1, 3, 3), (2, 6, 1)]
    assert [text for _, items in chunks for text in items.texts] == list("0123456")


def test_chunks_are_cut_by_bytes() -> None:
    chunks = list(cut_chunks([Item("x" * 20)] * 3, LIMITS))
    assert [record.items for record, _ in chunks] == [2, 1]


def test_chunks_are_cut_by_estimated_tokens() -> None:
    limits = ChunkLimits(items=100, tokens=20, bytes=10**6, max_tokens=40)
    assert [record.items for record, _ in cut_chunks([Item("x" * 32)] * 4, limits)] == [2, 2]


def test_an_item_above_every_limit_is_a_chunk_of_its_own() -> None:
    chunks = list(cut_chunks([Item("a"), Item("x" * 1000), Item("b")], LIMITS))
    assert [record.items for record, _ in chunks] == [1, 1, 1]


def test_queries_and_ids_are_kept_where_there_are_any() -> None:
    ((_, plain),) = cut_chunks([Item("a")], LIMITS)
    assert (plain.queries, plain.ids) == (None, None)
    ((_, rich),) = cut_chunks([Item("a", "q", "one"), Item("b", "q")], LIMITS)
    assert (rich.queries, rich.ids) == (["q", "q"], ["one", None])


def test_the_corpus_is_read_while_it_is_cut() -> None:
    read: list[int] = []

    def endless() -> Iterator[Item]:
        for number in range(10**9):
            read.append(number)
            yield Item("x")

    stream = cut_chunks(endless(), LIMITS)
    next(stream)
    assert len(read) == LIMITS.items + 1
