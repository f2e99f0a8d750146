"""The parts of a chunk's work that need no server: the careful plan, the lock of the device, the outcomes."""

import threading

import numpy as np
import pytest

from tasks import frames
from tasks.bulk.compute import describe_failure, plan_carefully
from tasks.bulk.device_sharing import ReaderWriterLock
from tasks.bulk.outcomes import ChunkOutcomes, pack_outcomes
from tasks.engine import ItemError, JobParams, Outcomes
from tasks.errors import ItemFailed
from tasks.jobs.claims import Claim, ClaimCode
from tasks.jobs.job import ChunkInput


def make_claim(items: int, **fields: object) -> Claim:
    return Claim(ClaimCode.OK, "job_x", 3, start=100, items=items, **fields)  # type: ignore[arg-type]


def make_outcomes(rows: list[float], errors: dict[int, ItemError] | None = None) -> Outcomes:
    values = np.array([[row, row] for row in rows], np.float32)
    return Outcomes(values, np.full(len(rows), 5, np.int32), np.zeros(len(rows), np.bool_), errors or {})


def no_beat() -> None:
    """Nobody has to be told that we wait."""


# -- the careful plan


def test_suspects_go_to_the_device_alone_and_early_but_not_first() -> None:
    plan = list(plan_carefully(range(20), [15, 17]))
    assert plan[:6] == [[0], [1], [2], [3], [15], [17]]
    assert sorted(position for group in plan for position in group) == list(range(20))


def test_only_very_large_chunks_are_computed_in_groups() -> None:
    assert all(len(group) == 1 for group in plan_carefully(range(500), []))
    groups = list(plan_carefully(range(5000), [4999]))
    assert max(map(len, groups)) == 10
    assert [4999] in groups
    assert sorted(position for group in groups for position in group) == list(range(5000))


def test_a_plan_of_nothing_is_empty() -> None:
    assert list(plan_carefully([], [1])) == []


def test_only_our_own_errors_are_shown_to_the_caller() -> None:
    assert describe_failure(ItemFailed("it is too long")) == ItemError("item_failed", "it is too long")
    assert "secret" not in describe_failure(RuntimeError("secret path")).message


# -- reader-writer lock


def test_readers_overlap_and_a_writer_waits_for_them() -> None:
    lock, order = ReaderWriterLock(), []
    with lock.read(1, no_beat), lock.read(1, no_beat):

        def wait_alone() -> None:
            with lock.write(0.01, no_beat):
                order.append("alone")

        waiting = threading.Thread(target=wait_alone)
        waiting.start()
        order.append("shared")
    waiting.join(10)
    assert order == ["shared", "alone"]


def test_who_waits_for_a_turn_keeps_beating_and_may_give_up() -> None:
    lock, beats = ReaderWriterLock(), []

    def beat() -> None:
        beats.append(1)
        if len(beats) == 3:
            raise InterruptedError

    with lock.write(1, no_beat):
        with pytest.raises(InterruptedError), lock.read(0.001, beat):
            pass
        beats.clear()
        with pytest.raises(InterruptedError), lock.write(0.001, beat):
            pass
    # Nobody is left in the way.
    with lock.read(0.001, no_beat):
        pass
    with lock.write(0.001, no_beat):
        pass


# -- the outcomes


def test_the_frame_holds_every_item_once_with_its_outcome() -> None:
    outcomes = ChunkOutcomes(make_claim(4), ChunkInput(list("abcd"), None, ["1", None, "3", "4"]), 2)
    outcomes.put([0, 1], make_outcomes([7, 8], {1: ItemError("item_failed", "bad")}))
    outcomes.put([3], make_outcomes([9]))
    outcomes.fail(2, ItemError("worker_crashed", "gone"))
    completion = outcomes.completion()
    assert (completion.completed, completion.failed, completion.truncated, completion.tokens) == (2, 2, 0, 15)
    assert completion.error == "item 101: item_failed: bad"
    header, columns = frames.unpack(completion.frame)
    assert header == {
        "start": 100,
        "items": 4,
        "ids": ["1", None, "3", "4"],
        "errors": {"1": ["item_failed", "bad"], "2": ["worker_crashed", "gone"]},
    }
    assert columns["values"][:, 0].tolist() == [7, 8, 0, 9]


def test_poison_is_an_error_from_the_start_and_is_not_asked_for_again() -> None:
    outcomes = ChunkOutcomes(make_claim(3, poison=(1,)), ChunkInput(list("abc")), 2)
    assert outcomes.left == [0, 2]
    outcomes.put([0, 2], make_outcomes([1, 2]))
    assert frames.peek(outcomes.completion().frame)["errors"].keys() == {"1"}


def test_a_repeat_computes_the_failed_items_and_keeps_the_others() -> None:
    first = make_outcomes([1, 0, 3], {1: ItemError("item_failed", "bad")})
    claim = make_claim(3, redo=True)
    outcomes = ChunkOutcomes(claim, ChunkInput(list("abc")), 2, pack_outcomes(100, None, first))
    assert outcomes.left == [1]
    outcomes.put([1], make_outcomes([2]))
    completion = outcomes.completion()
    assert (completion.completed, completion.failed, completion.tokens) == (1, 0, 5)
    header, columns = frames.unpack(completion.frame)
    assert header["errors"] == {}
    assert columns["values"][:, 0].tolist() == [1, 2, 3]


def test_a_chunk_without_any_result_has_rows_of_the_models_size() -> None:
    outcomes = ChunkOutcomes(make_claim(2, poison=(0, 1)), ChunkInput(list("ab")), 64)
    assert frames.unpack(outcomes.completion().frame)[1]["values"].shape == (2, 64)
    scores = ChunkOutcomes(make_claim(2, poison=(0, 1), operation="rerank"), ChunkInput(list("ab"), list("qq")), 64)
    assert frames.unpack(scores.completion().frame)[1]["values"].shape == (2,)


def test_half_precision_is_stored_as_asked_for() -> None:
    outcomes = ChunkOutcomes(make_claim(1, params=JobParams(dtype="float16")), ChunkInput(["a"]), 2)
    outcomes.put([0], make_outcomes([1]))
    assert frames.unpack(outcomes.completion().frame)[1]["values"].dtype == np.float16
