"""Windows of any text hold all of it, none more than it may, and each begins behind the one before."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.long_texts import cut_windows


@given(
    text=st.text("ab  \n", min_size=1, max_size=200).filter(lambda text: bool(text.strip())),
    size=st.integers(1, 20),
    share=st.floats(0, 0.5),
)
def test_windows_cover_a_text_within_their_size(text: str, size: int, share: float) -> None:
    # Each letter is a token.
    places = [at for at, letter in enumerate(text) if not letter.isspace()]
    tokens = np.array([(at, at + 1) for at in places], np.intp)
    overlap = int(size * share)
    spans = cut_windows(text, tokens, size, overlap)
    held = [[at for at in places if start <= at < end] for start, end in spans]
    assert sorted({at for window in held for at in window}) == places
    assert all(0 < len(window) <= size for window in held)
    for before, after in itertools.pairwise(held):
        assert before[0] < after[0]
        assert len(set(before) & set(after)) <= overlap
