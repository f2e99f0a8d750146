"""The two lanes keep their promises at any cost of a pass: the real scheduling, in virtual time.

Times here are computed, not measured: the device's cost is given, and queue, fair share, sizing and packing decide.
"""

from itertools import product

import pytest

from tests.support.virtual_device import CALL_TOKENS, RanPass, VirtualDevice, virtual_device

COSTS = list(product((1.0, 5.0, 30.0, 100.0, 300.0), (0.1, 0.002)))
NOISE = 0.2
CALL_EVERY_S = 2.0


def bulk_rate(passes: list[RanPass]) -> float:
    """Return bulk's tokens per second, of virtual time, from the end of the first pass on."""
    return sum(one.bulk_tokens for one in passes[1:]) / (passes[-1].ended_s - passes[0].ended_s)


def turn_s(device: VirtualDevice, tokens: int = 1000) -> float:
    return device.cost_s(tokens)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


@pytest.mark.parametrize(("fixed_ms", "ms_per_token"), COSTS)
def test_a_call_every_two_seconds_costs_a_job_little_and_waits_for_two_passes_at_most(
    fixed_ms: float, ms_per_token: float
) -> None:
    with virtual_device(fixed_ms, ms_per_token, noise=NOISE) as device:
        device.start_job()
        alone = bulk_rate(device.drive(max(1.0, 30 * turn_s(device))))
        device.pace_calls(CALL_EVERY_S)
        device.drive(CALL_EVERY_S + 3 * turn_s(device))
        device.latencies_s.clear()
        passes = device.drive(max(2 * CALL_EVERY_S + 0.5, 60 * turn_s(device)))
        assert bulk_rate(passes) >= 0.85 * alone
        assert max(device.latencies_s) <= 2 * max(one.took_s for one in passes) + 0.01


@pytest.mark.parametrize(("fixed_ms", "ms_per_token"), [(1.0, 0.1), (5.0, 0.002), (30.0, 0.002)])
def test_calls_wait_for_two_passes_at_most_however_many_chunks_a_worker_holds(
    fixed_ms: float, ms_per_token: float
) -> None:
    with virtual_device(fixed_ms, ms_per_token, noise=NOISE) as device:
        device.start_job(chunks=6)
        device.pace_calls(0.5)
        device.drive(2.0)
        device.latencies_s.clear()
        passes = device.drive(5.0)
        assert max(device.latencies_s) <= 2 * max(one.took_s for one in passes) + 0.01


@pytest.mark.parametrize("callers", [32, 256])
@pytest.mark.parametrize(("fixed_ms", "ms_per_token"), COSTS)
def test_callers_get_most_of_what_one_pass_per_turn_allows(fixed_ms: float, ms_per_token: float, callers: int) -> None:
    with virtual_device(fixed_ms, ms_per_token, noise=NOISE) as device:
        think_s = 0.05 * fixed_ms / 1000
        device.start_callers(callers, think_s)
        device.drive(15 * turn_s(device))
        device.latencies_s.clear()
        begun_s = device.now_s
        device.drive(20 * turn_s(device))
        rate = len(device.latencies_s) / (device.now_s - begun_s)
        mean_noise = 1 + NOISE / 2
        assert rate >= 0.8 * callers / (device.cost_s(callers * CALL_TOKENS) * mean_noise + think_s)


@pytest.mark.parametrize("callers", [8, 256])
@pytest.mark.parametrize(("fixed_ms", "ms_per_token"), COSTS)
def test_a_job_keeps_its_share_of_the_device_beside_any_number_of_callers(
    fixed_ms: float, ms_per_token: float, callers: int
) -> None:
    with virtual_device(fixed_ms, ms_per_token, noise=NOISE) as device:
        device.start_job()
        device.start_callers(callers)
        device.drive(10 * turn_s(device))
        passes = device.drive(50 * turn_s(device))
        bulk_s = sum(one.took_s * one.batch.bulk_part for one in passes)
        # At the end it may be owed what it would get at once, or a pass more.
        owed_s = max(0.025, *(one.took_s for one in passes))
        assert bulk_s >= 0.1 * sum(one.took_s for one in passes) - owed_s


@pytest.mark.parametrize("p99_ms", [40.0, 200.0])
@pytest.mark.parametrize(("fixed_ms", "ms_per_token"), [(1.0, 0.1), (5.0, 0.02)])
def test_a_target_that_the_device_can_meet_is_met_beside_a_job(
    fixed_ms: float, ms_per_token: float, p99_ms: float
) -> None:
    with virtual_device(fixed_ms, ms_per_token, p99_ms=p99_ms) as device:
        device.start_job()
        device.start_callers(4, think_s=0.2)
        device.drive(2.0)
        device.latencies_s.clear()
        device.drive(6.0)
        assert percentile(device.latencies_s, 0.95) * 1000 <= p99_ms
        assert device.scheduler.expected_ms("fake") <= p99_ms


def test_what_cannot_be_met_is_known() -> None:
    with virtual_device(100.0, 0.1, p99_ms=50.0) as device:
        device.start_job()
        device.pace_calls(CALL_EVERY_S)
        device.drive(20.0)
        assert device.scheduler.expected_ms("fake") > 4 * 50.0
        assert device.queue.call_p99_s("fake") == percentile(device.latencies_s, 0.99)


def test_without_calls_a_job_runs_in_full_passes_and_soon_after_the_last_one_again() -> None:
    with virtual_device(5.0, 0.1) as device:
        device.start_job()
        before = bulk_rate(device.drive(10.0))
        device.pace_calls(0.05)
        short = device.drive(10.0)
        device.stop_calls()
        device.drive(3.0)
        assert bulk_rate(device.drive(10.0)) == pytest.approx(before, rel=0.05)
        assert max(one.padded_tokens for one in short[5:]) < 600


def test_a_job_finds_its_way_back_when_the_device_becomes_slower_and_faster() -> None:
    with virtual_device(5.0, 0.02, noise=NOISE) as device:
        device.start_job()
        device.pace_calls(0.5)
        usual = bulk_rate(device.drive(10.0))
        for factor in (8.0, 1.0):
            device.fixed_ms, device.ms_per_token = 5.0 * factor, 0.02 * factor
            device.drive(20.0)
            assert bulk_rate(device.drive(20.0)) >= 0.85 * usual / factor


def test_a_pass_that_is_mostly_fixed_cost_takes_bulk_rows_along_with_a_call() -> None:
    with virtual_device(300.0, 0.1) as device:
        device.start_job()
        device.pace_calls(CALL_EVERY_S)
        passes = device.drive(20.0)
        with_calls = [one for one in passes if one.bulk_tokens < sum(map(len, one.batch.rows))]
        assert len(with_calls) == 10
        assert all(one.bulk_tokens > 1000 for one in with_calls)


def test_memory_that_is_short_for_a_while_costs_only_that_while() -> None:
    with virtual_device(5.0, 0.02) as device:
        device.start_job()
        usual = bulk_rate(device.drive(5.0))
        device.holds_tokens = 150
        assert bulk_rate(device.drive(5.0)) < 0.8 * usual
        device.holds_tokens = 10**9
        device.drive(60.0)
        assert bulk_rate(device.drive(5.0)) >= 0.95 * usual
