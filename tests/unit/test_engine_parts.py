"""The pure parts of the engine: shares, costs, safe sizes, guard, health."""

import numpy as np
import pytest

from tasks.errors import OutOfMemory
from tasks.lanes import Service
from workers.engine.cost import CostModel, length_class
from workers.engine.fair_share import FairShare
from workers.engine.guard import find_bad, run_guarded
from workers.engine.oom import SafeSizes, run_halving
from workers.models.tokenizer import Tokens


def run_turns(shares: FairShare, turns: int, interactive_s: float, bulk_s: float) -> list[Service]:
    order = []
    for _ in range(turns):
        service = shares.choose(interactive=True, bulk=True)
        shares.charge(service, bulk_s if service is Service.BULK else interactive_s, contended=True)
        order.append(service)
    return order


def test_interactive_goes_first_while_bulk_is_not_owed_a_pass() -> None:
    shares = FairShare(0.1, quantum_s=0.02)
    assert run_turns(shares, 5, interactive_s=0.01, bulk_s=0.02) == [Service.INTERACTIVE] * 5


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("bulk_s", [0.005, 0.02, 0.3])
def test_bulk_keeps_its_share_of_device_time_under_constant_interactive_load(share: float, bulk_s: float) -> None:
    order = run_turns(FairShare(share, quantum_s=0.025), 20_000, interactive_s=0.01, bulk_s=bulk_s)
    bulk_time_s = order.count(Service.BULK) * bulk_s
    total_s = bulk_time_s + order.count(Service.INTERACTIVE) * 0.01
    assert bulk_time_s / total_s == pytest.approx(share, rel=0.1)


def test_a_share_of_zero_lets_bulk_wait() -> None:
    assert Service.BULK not in run_turns(FairShare(0.0, quantum_s=0.02), 1000, interactive_s=0.01, bulk_s=0.02)


def test_who_waits_alone_goes() -> None:
    shares = FairShare(0.1, quantum_s=0.02)
    assert shares.choose(interactive=False, bulk=True) is Service.BULK
    assert shares.choose(interactive=True, bulk=False) is Service.INTERACTIVE


def test_nothing_is_owed_for_time_without_contention() -> None:
    shares = FairShare(0.1, quantum_s=0.02)
    for _ in range(1000):
        shares.charge(Service.INTERACTIVE, 0.1, contended=False)
    assert shares.choose(interactive=True, bulk=True) is Service.INTERACTIVE


def test_costs_are_learned_as_a_fixed_part_and_a_part_per_token() -> None:
    cost = CostModel()
    for tokens in [64, 256, 512, 1024] * 20:
        cost.observe("m", 60, tokens, 2 + 0.05 * tokens)
    assert cost.tokens_within("m", 60, 22) == pytest.approx(400, abs=2)
    assert cost.tokens_within("m", 60, 1) == 0


def test_costs_follow_a_device_that_becomes_slower() -> None:
    cost = CostModel()
    for slope in [0.05] * 300 + [0.2] * 1500:
        for tokens in (100, 1000):
            cost.observe("m", 60, tokens, slope * tokens)
    assert cost.tokens_within("m", 60, 200) == pytest.approx(1000, rel=0.05)


def test_passes_of_one_size_charge_everything_to_the_tokens() -> None:
    cost = CostModel()
    for _ in range(10):
        cost.observe("m", 60, 1000, 50)
    assert cost.tokens_within("m", 60, 25) == pytest.approx(500, abs=1)


def test_an_unseen_length_uses_the_nearest_class_and_an_unseen_model_a_guess() -> None:
    cost = CostModel()
    cost.observe("m", 16, 100, 10)
    cost.observe("m", 512, 100, 40)
    assert cost.tokens_within("m", 400, 40) == pytest.approx(100, abs=1)
    assert cost.tokens_within("m", 20, 10) == pytest.approx(100, abs=1)
    assert cost.tokens_within("other", 60, 25) > 0


def test_length_classes_double() -> None:
    assert [length_class(n) for n in (0, 1, 16, 17, 32, 33, 64, 65, 8192)] == [0, 0, 0, 1, 1, 2, 2, 3, 9]


def test_a_size_that_failed_is_halved_and_grows_back_slowly() -> None:
    sizes = SafeSizes(4096)
    sizes.shrink("m", 100, 4000)
    assert sizes.limit("m", 100) == 2000
    assert sizes.limit("m", 1000) == 4096, "another length class is not affected"
    assert sizes.limit("other", 100) == 4096
    limits = []
    for _ in range(64 * 8):
        sizes.grow("m", 100)
        limits.append(sizes.limit("m", 100))
    assert limits == sorted(limits)
    assert limits[62] == 2000
    assert limits[63] == 2250
    assert limits[-1] == 4096


def test_a_failure_below_the_limit_halves_what_failed() -> None:
    sizes = SafeSizes(4096)
    sizes.shrink("m", 100, 600)
    sizes.shrink("m", 100, 300)
    assert sizes.limit("m", 100) == 150


class Scripted:
    """A backend that returns what it is told."""

    kind, device, dtype, dimension, parallel, latency_stream, pipeline = "scripted", "cpu", "bfloat16", 2, 1, None, None

    def __init__(self, first: list[list[float]], exact: list[list[float]]) -> None:
        self._first, self._exact = first, list(exact)
        self.exact_rows: list[int] = []

    def run(self, rows):  # type: ignore[no-untyped-def]
        return np.array(self._first, np.float32)

    def run_exact(self, rows):  # type: ignore[no-untyped-def]
        self.exact_rows += [int(row.ids[0]) for row in rows]
        return np.array([self._exact.pop(0)], np.float32)

    def free_memory(self) -> None: ...


def rows_of(count: int) -> list[Tokens]:
    return [Tokens(np.array([at], np.int32)) for at in range(count)]


def test_only_bad_rows_are_computed_again_and_only_those_that_stay_bad_are_refused() -> None:
    nan, inf = float("nan"), float("inf")
    backend = Scripted([[1, 0], [nan, 1], [0, 0], [0, 1], [inf, 0]], exact=[[0.6, 0.8], [0, 0], [nan, nan]])
    values, bad = run_guarded(backend, rows_of(5))
    assert backend.exact_rows == [1, 2, 4]
    assert bad.tolist() == [False, False, True, False, True]
    assert np.allclose(values, [[1, 0], [0.6, 0.8], [0, 0], [0, 1], [0, 0]])


def test_scores_are_bad_only_where_they_are_no_numbers() -> None:
    assert find_bad(np.array([0.0, 0.5, np.nan, np.inf], np.float32)).tolist() == [False, False, True, True]


def test_an_error_keeps_no_frame_of_the_failed_pass_alive() -> None:
    seen: list[Exception] = []

    def run(part: object) -> None:
        try:
            int("inner")
        except ValueError as error:
            raise OutOfMemory("full") from error

    run_halving([1], run, lambda part, error: seen.append(error), lambda row, error: None)
    assert seen[0].__traceback__ is None
    assert seen[0].__cause__ is None
    assert seen[0].__context__ is None
