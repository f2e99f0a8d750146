"""Which shapes batches get: the grid, splits over streams, and the shapes that are worth compiling."""

import sys
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from workers.models.shapes import (
    ShapeCache,
    padded_tokens,
    round_length,
    round_rows_down,
    round_rows_up,
    split_evenly,
)

shapes = st.tuples(st.integers(1, 300), st.integers(1, 512))


@given(st.integers(1, 100_000))
def test_shapes_are_rounded_to_a_coarse_grid_and_not_far(value: int) -> None:
    up, down, length = round_rows_up(value), round_rows_down(value), round_length(value, 10**6)
    assert down <= value <= up
    assert round_rows_up(up) == up == round_rows_down(up)
    assert round_rows_down(down) == down
    assert up <= max(value + 1, 1.26 * value)
    assert down >= 0.79 * value
    assert value <= length <= max(value + 3, 1.07 * value)
    assert round_length(length, 10**6) == length
    assert round_length(value, value) == value


@given(st.lists(st.integers(1, 256), min_size=1, max_size=40).map(sorted))
def test_a_split_in_two_keeps_all_rows_and_is_nearly_the_best(lengths: list[int]) -> None:
    ends = split_evenly(lengths, 2)
    assert ends == sorted(set(ends))
    assert 1 <= len(ends) <= 2
    assert ends[-1] == len(lengths)
    assert longest_part(lengths, ends) <= 1.03 * best_of_two(lengths) + 2


@given(st.lists(st.integers(1, 256), min_size=1, max_size=40).map(sorted), st.integers(1, 8))
def test_a_split_has_as_many_parts_as_allowed_and_is_no_longer_than_the_whole(lengths: list[int], parts: int) -> None:
    ends = split_evenly(lengths, parts)
    assert 1 <= len(ends) <= parts
    assert longest_part(lengths, ends) <= longest_part(lengths, [len(lengths)])


def longest_part(lengths: list[int], ends: list[int]) -> int:
    return max(padded_tokens(end - start, lengths[end - 1]) for start, end in pairwise([0, *ends]))


def best_of_two(lengths: list[int]) -> int:
    cuts = [[at, len(lengths)] for at in range(1, len(lengths))]
    return min(longest_part(lengths, ends) for ends in [[len(lengths)], *cuts])


def test_there_are_few_shapes() -> None:
    assert len({round_length(value, 512) for value in range(1, 513)}) <= 64
    assert len({round_rows_up(value) for value in range(1, 129)}) <= 24


@given(st.lists(shapes, min_size=1, max_size=400))
def test_a_batch_gets_a_shape_that_holds_it_and_little_more(batches: list[tuple[int, int]]) -> None:
    known = ShapeCache(512)
    for rows, length in batches:
        chosen = known.choose(rows, length)
        assert chosen[0] >= rows
        assert length <= chosen[1] <= 512
        assert chosen[0] * chosen[1] <= 1.75 * padded_tokens(rows, length)


def test_new_shapes_become_rare_once_there_are_many() -> None:
    known = ShapeCache(512)
    every_shape = [(rows, length) for rows in range(1, 257) for length in range(1, 513)]
    on_the_grid = {(round_rows_up(rows), round_length(length, sys.maxsize)) for rows, length in every_shape}
    chosen = {known.choose(*shape) for shape in sorted(every_shape, key=hash)}
    assert len(chosen) < len(on_the_grid) / 3
    assert {known.choose(*shape) for shape in every_shape} <= chosen


def test_a_shape_that_came_early_is_computed_as_it_is() -> None:
    known = ShapeCache(512)
    assert known.choose(8, 101) == (8, 104)
    for rows in range(1, 2000):
        known.choose(rows, 512)
    assert known.choose(8, 101) == (8, 104)
