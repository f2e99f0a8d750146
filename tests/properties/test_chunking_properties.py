"""Cutting loses nothing, reorders nothing and respects the limits, whatever the corpus."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tasks.jobs.chunking import ChunkLimits, Item, cut_chunks, estimate_tokens

TEXTS = st.text(max_size=40)
ITEMS = st.lists(st.builds(Item, TEXTS, st.none() | TEXTS, st.none() | TEXTS), max_size=40)
LIMITS = st.builds(
    ChunkLimits,
    items=st.integers(1, 10),
    tokens=st.integers(1, 60),
    bytes=st.integers(1, 120),
    max_tokens=st.integers(1, 30),
)


def size(item: Item) -> int:
    return sum(len((part or "").encode()) for part in (item.text, item.query, item.id))


@given(ITEMS, LIMITS)
def test_the_chunks_hold_all_items_in_their_order(items: list[Item], limits: ChunkLimits) -> None:
    chunks = list(cut_chunks(items, limits))
    assert [text for _, chunk in chunks for text in chunk.texts] == [item.text for item in items]
    assert [record.index for record, _ in chunks] == list(range(len(chunks)))
    starts = [record.start for record, _ in chunks]
    assert starts == [sum(record.items for record, _ in chunks[:number]) for number in range(len(chunks))]
    ids = [name for record, chunk in chunks for name in chunk.ids or [None] * record.items]
    assert ids == [item.id for item in items]


@given(ITEMS, LIMITS)
def test_no_chunk_is_over_a_limit_but_that_of_a_single_item(items: list[Item], limits: ChunkLimits) -> None:
    for record, _ in cut_chunks(items, limits):
        members = items[record.start : record.start + record.items]
        if record.items > 1:
            assert record.items <= limits.items
            assert record.tokens <= limits.tokens
            assert sum(size(item) for item in members) <= limits.bytes


@given(ITEMS, LIMITS)
def test_no_chunk_could_have_taken_the_next_item(items: list[Item], limits: ChunkLimits) -> None:
    chunks = [record for record, _ in cut_chunks(items, limits)]
    for record, following in pairwise(chunks):
        (alone, _), *_ = cut_chunks([items[following.start]], limits)
        members = items[record.start : record.start + record.items]
        assert (
            record.items == limits.items
            or record.tokens + alone.tokens > limits.tokens
            or sum(size(item) for item in [*members, items[following.start]]) > limits.bytes
        )


@given(st.text(), st.integers(1, 1000))
def test_an_estimate_is_at_least_one_and_at_most_what_the_model_reads(text: str, most: int) -> None:
    assert 1 <= estimate_tokens(text, most) <= most


@given(st.text(), st.text())
def test_a_longer_text_is_never_estimated_shorter(text: str, more: str) -> None:
    assert estimate_tokens(text + more, 10**9) >= estimate_tokens(text, 10**9)
