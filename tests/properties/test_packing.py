"""Packing, halving and the order inside a lane hold for every mix of lengths."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import OutOfMemory
from tasks.lanes import Service
from workers.engine.oom import run_halving
from workers.engine.packing import Budget, pick_around, pick_run
from workers.engine.pending import PendingWork
from workers.engine.row_order import BulkLane, InteractiveLane
from workers.models.shapes import round_rows_down
from workers.models.tokenizing.tokenizer import Tokens

lengths = st.lists(st.integers(1, 600), min_size=1, max_size=80)
budgets = st.integers(1, 5000)


def a_request(row_lengths: list[int], service: Service = Service.BULK) -> PendingWork:
    model: Any = SimpleNamespace(backend=SimpleNamespace(dimension=2, parallel=1))
    request = PendingWork(model, service, None, lambda values, errors: None)  # type: ignore[arg-type, return-value]
    request.add_rows([Tokens(np.zeros(length, np.int32)) for length in row_lengths])
    return request


def fits(rows: list[int], budget: int) -> bool:
    padded = len(rows) * max(rows)
    return padded <= budget and padded - sum(rows) <= 0.25 * padded


@given(lengths, budgets, st.booleans())
def test_a_run_is_within_the_budget_and_as_long_as_it_can_be(rows: list[int], budget: int, descending: bool) -> None:
    rows = sorted(rows, reverse=descending)
    count = pick_run(rows, Budget(lambda longest: budget))
    assert 1 <= count <= len(rows)
    assert count == 1 or fits(rows[:count], budget)
    most = next((n for n in range(1, len(rows)) if not fits(rows[: n + 1], budget)), len(rows))
    assert count == most or count == round_rows_down(most)


@given(lengths, budgets, st.integers(2, 4))
def test_a_run_is_a_multiple_of_what_the_device_computes_side_by_side(rows: list[int], budget: int, side: int) -> None:
    rows.sort()
    count = pick_run(rows, Budget(lambda longest: budget), side)
    assert count == len(rows) or count % side == 0
    assert count <= side or count * max(rows[:count]) <= budget
    assert count >= min(side, len(rows))


@given(lengths, budgets, st.booleans(), st.integers(1, 4))
def test_without_padding_a_run_is_as_long_as_its_real_tokens_allow(
    rows: list[int], budget: int, descending: bool, side: int
) -> None:
    rows = sorted(rows, reverse=descending)
    count = pick_run(rows, Budget(lambda longest: budget, counts_padding=False), side)
    assert count == min(side, len(rows)) or sum(rows[:count]) <= budget
    assert count == len(rows) or sum(rows[: count + 1]) > budget


@given(lengths, budgets, st.data())
def test_without_padding_rows_of_any_length_share_a_pass(rows: list[int], budget: int, data: st.DataObject) -> None:
    rows.sort()
    head = data.draw(st.integers(0, len(rows) - 1))
    start, end = pick_around(rows, head, Budget(lambda longest: budget, counts_padding=False))
    assert start <= head < end
    assert end - start == 1 or sum(rows[start:end]) <= budget
    if sum(rows) <= budget:
        assert (start, end) == (0, len(rows))


@given(lengths, budgets, st.data())
def test_the_rows_around_a_head_contain_it_and_keep_budget_and_waste(
    rows: list[int], budget: int, data: st.DataObject
) -> None:
    rows.sort()
    head = data.draw(st.integers(0, len(rows) - 1))
    start, end = pick_around(rows, head, Budget(lambda longest: budget))
    assert start <= head < end
    if end - start > 1:
        padded = (end - start) * rows[end - 1]
        assert padded <= budget
        assert padded - sum(rows[start:end]) <= 0.25 * padded


@given(lengths, st.integers(1, 600))
def test_halving_runs_each_row_once_and_gives_up_only_rows_that_never_fit(rows: list[int], limit: int) -> None:
    done: list[int] = []
    given_up: list[int] = []
    told: list[int] = []

    def run(part: Any) -> None:
        if len(part) * max(rows[at] for at in part) > limit:
            raise OutOfMemory("full")
        done.extend(part)

    run_halving(range(len(rows)), run, lambda part, error: told.append(len(part)), lambda at, _: given_up.append(at))
    assert sorted(done + given_up) == list(range(len(rows)))
    assert all(rows[at] > limit for at in given_up)
    assert told.count(1) == len(given_up)


@given(st.lists(lengths, min_size=1, max_size=6), budgets, st.sampled_from([InteractiveLane, BulkLane]))
def test_a_lane_gives_back_every_row_exactly_once(requests: list[list[int]], budget: int, kind: type) -> None:
    lane = kind() if kind is InteractiveLane else BulkLane(window_tokens=1000)
    waiting = [a_request(rows) for rows in requests]
    for request in waiting:
        lane.put(request)
    taken = []
    while len(lane):
        taken += lane.take(Budget(lambda longest: budget))
    assert sorted(map(id, taken)) == sorted(id(row) for request in waiting for row in request.rows)


@given(st.lists(st.tuples(lengths, st.booleans()), min_size=2, max_size=6), budgets)
def test_the_oldest_urgent_request_is_in_the_next_pass(requests: list[tuple[list[int], bool]], budget: int) -> None:
    lane, waiting = InteractiveLane(), []
    for rows, urgent in requests:
        request = a_request(rows, Service.INTERACTIVE)
        request.urgent = urgent
        lane.put(request)
        waiting.append(request)
    first = next((request for request in waiting if request.urgent), waiting[0])
    assert first.rows[0] in lane.take(Budget(lambda longest: budget))


@given(st.lists(lengths, min_size=2, max_size=6), st.data())
def test_a_dropped_request_leaves_no_row_behind(requests: list[list[int]], data: st.DataObject) -> None:
    lane = BulkLane(window_tokens=500)
    waiting = [a_request(rows) for rows in requests]
    for request in waiting:
        lane.put(request)
    lane.take(Budget(lambda longest: 500))
    gone = data.draw(st.sampled_from(waiting))
    lane.drop({gone})
    rest = []
    while len(lane):
        rest += lane.take(Budget(lambda longest: 500))
    assert all(row.request is not gone for row in rest)


@given(st.lists(st.integers(1, 300), min_size=20, max_size=60), st.integers(300, 900))
def test_no_bulk_row_waits_for_ever_under_constant_arrivals(stream: list[int], budget: int) -> None:
    lane = BulkLane(window_tokens=4 * budget)
    first = a_request([1, 40, 299])
    lane.put(first)
    left = {id(row) for row in first.rows}
    for turn in range(400):
        lane.put(a_request([stream[(turn + at) % len(stream)] for at in range(4)]))
        left -= {id(row) for row in lane.take(Budget(lambda longest: budget))}
        if not left:
            return
    raise AssertionError(f"{len(left)} rows still wait after 400 passes")


def test_a_short_bulk_request_waits_for_one_pass_of_a_long_one() -> None:
    lane = BulkLane(window_tokens=4000)
    lane.put(a_request([100] * 200))
    lane.take(Budget(lambda longest: 500))
    short = [a_request([3]), a_request([5])]
    for request in short:
        lane.put(request)
    passes = [{row.request for row in lane.take(Budget(lambda longest: 500))} for _ in range(4)]
    assert [bool(rows & set(short)) for rows in passes].index(True) <= 1
    assert not passes[2] & set(short)


def test_a_future_that_was_cancelled_is_not_set() -> None:
    request = a_request([3])
    assert isinstance(request.future, Future)
    assert request.future.cancel()
    request.accept(0, np.zeros(2, np.float32))
    request.finish_if_complete()
    request.fail(OutOfMemory("late"))
    assert request.future.cancelled()
