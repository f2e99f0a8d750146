"""The pure parts of the engine: fair share, memory limits, guard, halving."""

import numpy as np
import pytest

from tasks.errors import OutOfMemory
from tasks.lanes import Service
from workers.engine.fair_share import FairShare
from workers.engine.guard import find_bad, run_guarded
from workers.engine.oom import SafeSizes, run_halving
from workers.models.tokenizing.tokenizer import Tokens


def run_turns(shares: FairShare, turns: int, interactive_s: float, bulk_s: float) -> list[Service]:
    order = []
    for _ in range(turns):
        service = shares.choose(interactive=True, bulk=True)
        is_bulk = service is Service.BULK
        shares.charge(bulk_s if is_bulk else interactive_s, float(is_bulk), contended=True)
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


def test_bulk_is_owed_less_where_its_rows_went_along_with_calls() -> None:
    shares = FairShare(0.1, quantum_s=0.02)
    for _ in range(1000):
        assert shares.choose(interactive=True, bulk=True) is Service.INTERACTIVE
        shares.charge(0.1, 0.1, contended=True)


def test_a_share_of_zero_lets_bulk_wait() -> None:
    assert Service.BULK not in run_turns(FairShare(0.0, quantum_s=0.02), 1000, interactive_s=0.01, bulk_s=0.02)


def test_who_waits_alone_goes() -> None:
    shares = FairShare(0.1, quantum_s=0.02)
    assert shares.choose(interactive=False, bulk=True) is Service.BULK
    assert shares.choose(interactive=True, bulk=False) is Service.INTERACTIVE


def test_nothing_is_owed_for_time_without_contention() -> None:
    shares = FairShare(0.1, quantum_s=0.02)
    for _ in range(1000):
        shares.charge(0.1, 0.0, contended=False)
    assert shares.choose(interactive=True, bulk=True) is Service.INTERACTIVE


class Clock:
    """Seconds that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def load(sizes: SafeSizes, clock: Clock, seconds: float, pass_s: float, fits: int) -> tuple[list[int], int]:
    """Run passes as large as they may be for so long; return the sizes that were tried and how many failed."""
    tried, failed, end_s = [], 0, clock.now_s + seconds
    while clock.now_s < end_s:
        tokens = sizes.limit("m", 100)
        tried.append(tokens)
        clock.now_s += 0.001 if tokens > fits else pass_s
        if tokens > fits:
            failed += 1
            sizes.shrink("m", 100, tokens)
        else:
            sizes.grow("m", 100, tokens)
    return tried, failed


def test_a_size_that_failed_is_halved_for_its_length_alone() -> None:
    sizes = SafeSizes(4096, Clock())
    sizes.shrink("m", 100, 4000)
    assert sizes.limit("m", 100) == 2000
    assert sizes.limit("m", 1000) == 4096
    assert sizes.limit("other", 100) == 4096
    sizes.shrink("m", 100, 600)
    assert sizes.limit("m", 100) == 300


@pytest.mark.parametrize("pass_s", [0.005, 0.1, 2.0])
@pytest.mark.parametrize("fits", [4, 100, 4000])
def test_a_limit_grows_back_within_a_minute_of_load_however_long_passes_take(pass_s: float, fits: int) -> None:
    clock = Clock()
    sizes = SafeSizes(4096, clock)
    tried, _ = load(sizes, clock, 5, pass_s, fits)
    assert min(tried) <= fits
    _, failed = load(sizes, clock, 60, pass_s, fits=10_000)
    assert sizes.limit("m", 100) == 4096
    assert not failed


def test_a_device_that_stays_smaller_is_run_into_its_limit_ever_more_seldom() -> None:
    clock = Clock()
    sizes = SafeSizes(4096, clock)
    tried, failed = load(sizes, clock, 3600, 0.1, fits=1000)
    assert failed <= 16, "three for the first incident, then one for each hold, which doubles"
    late = tried[len(tried) // 2 :]
    assert sum(late) / len(late) > 0.85 * 1000


def test_memory_that_came_back_makes_the_limit_forget_what_had_failed() -> None:
    clock = Clock()
    sizes = SafeSizes(4096, clock)
    load(sizes, clock, 600, 0.1, fits=1000)
    load(sizes, clock, 700, 0.1, fits=10_000)
    load(sizes, clock, 5, 0.1, fits=1000)
    load(sizes, clock, 60, 0.1, fits=10_000)
    assert sizes.limit("m", 100) == 4096


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
