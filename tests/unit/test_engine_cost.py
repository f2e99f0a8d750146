"""What passes cost is learned from those that ran, and what follows for their size is never a collapse."""

import random
from itertools import product

import pytest

from workers.engine import sizing
from workers.engine.cost import CostModel, PassCost, length_class

COSTS = [PassCost(fixed, slope) for fixed, slope in product((1.0, 5.0, 30.0, 100.0, 300.0), (0.1, 0.002))]
BUDGET = 2048


def learned(cost: PassCost, sizes: list[int], *, noise: float = 0.0, passes: int = 200) -> PassCost:
    draw, model = random.Random(3), CostModel()
    for _ in range(passes):
        tokens = draw.choice(sizes)
        model.observe("m", 60, tokens, cost.ms(tokens) * (1 + noise * draw.random()))
    return model.fit("m", 60)


# -- what is learned -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", COSTS)
def test_the_fixed_part_and_the_part_per_token_are_told_apart(cost: PassCost) -> None:
    found = learned(cost, [64, 256, 512, 1024, 2048])
    assert found.fixed_ms == pytest.approx(cost.fixed_ms, rel=0.02, abs=0.02)
    assert found.ms_per_token == pytest.approx(cost.ms_per_token, rel=0.05)


@pytest.mark.parametrize("cost", COSTS)
def test_noise_does_not_hide_them(cost: PassCost) -> None:
    found = learned(cost, [64, 512, 2048], noise=0.3)
    for tokens in (64, 512, 2048):
        assert found.ms(tokens) == pytest.approx(1.15 * cost.ms(tokens), rel=0.15)


def test_a_long_phase_of_equal_passes_does_not_wash_out_the_fixed_part() -> None:
    model, cost = CostModel(), PassCost(30, 0.1)
    for tokens in [10, 2000] * 4 + [2000] * 20_000:
        model.observe("m", 60, tokens, cost.ms(tokens))
    assert model.fit("m", 60).fixed_ms == pytest.approx(30, rel=0.01)


def test_passes_of_one_size_alone_count_half_as_fixed() -> None:
    found = learned(PassCost(0, 0.05), [1000])
    assert (found.fixed_ms, found.ms_per_token) == pytest.approx((25, 0.025))


def test_passes_of_one_size_take_the_fixed_part_from_another_length() -> None:
    model = CostModel()
    for tokens in (10, 1000):
        model.observe("m", 500, tokens, PassCost(30, 0.2).ms(tokens))
    model.observe("m", 60, 1000, 130)
    assert model.fit("m", 60).fixed_ms == pytest.approx(30)
    assert model.fit("m", 60).ms_per_token == pytest.approx(0.1)


def test_a_device_that_becomes_slower_is_believed_after_a_few_passes_of_each_size() -> None:
    model = CostModel()
    for factor, rounds in ((1, 200), (4, 60)):
        for _ in range(rounds):
            for tokens in (100, 1000):
                model.observe("m", 60, tokens, factor * PassCost(5, 0.05).ms(tokens))
    assert model.fit("m", 60).ms(500) == pytest.approx(4 * PassCost(5, 0.05).ms(500), rel=0.05)


def test_one_hiccup_does_not_look_like_a_slower_device() -> None:
    model, cost = CostModel(), PassCost(5, 0.05)
    for tokens in [100, 1000] * 50:
        model.observe("m", 60, tokens, cost.ms(tokens))
    model.observe("m", 60, 100, 5000)
    assert model.fit("m", 60).ms(1000) < 1.3 * cost.ms(1000)
    assert model.fit("m", 60).ms(100) < 1.3 * cost.ms(100)


def test_an_unseen_length_uses_the_nearest_class_and_an_unseen_model_a_guess() -> None:
    model = CostModel()
    for longest, cost in ((16, PassCost(1, 0.1)), (512, PassCost(2, 0.4))):
        for tokens in (10, 1000):
            model.observe("m", longest, tokens, cost.ms(tokens))
    assert model.fit("m", 400).ms_per_token == pytest.approx(0.4)
    assert model.fit("m", 20).ms_per_token == pytest.approx(0.1)
    assert model.fit("other", 60).ms_per_token > 0


def test_length_classes_double() -> None:
    assert [length_class(n) for n in (0, 1, 16, 17, 32, 33, 64, 65, 8192)] == [0, 0, 0, 1, 1, 2, 2, 3, 9]


# -- sizes that follow -----------------------------------------------------------------------------------


def rate(cost: PassCost, tokens: int) -> float:
    return tokens / cost.ms(tokens)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("pass_ms", [1.0, 10.0, 25.0, 500.0])
@pytest.mark.parametrize("calls_per_s", [0.0, 0.5, 5.0, 1000.0])
def test_no_pass_is_shorter_than_twice_its_fixed_part_unless_it_is_full(
    cost: PassCost, pass_ms: float, calls_per_s: float
) -> None:
    most = sizing.full_tokens(cost, BUDGET)
    for tokens in (
        sizing.short_pass_tokens(cost, most, pass_ms, calls_per_s),
        sizing.shared_pass_tokens(cost, most, pass_ms),
    ):
        assert tokens == most or cost.ms(tokens + 1) >= 2 * cost.fixed_ms


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("pass_ms", [1.0, 10.0, 25.0])
def test_a_call_every_two_seconds_costs_bulk_passes_little_of_their_rate(cost: PassCost, pass_ms: float) -> None:
    most = sizing.full_tokens(cost, BUDGET)
    short = sizing.short_pass_tokens(cost, most, pass_ms, 0.5)
    own_s = cost.fixed_ms / 1000 / 2
    assert rate(cost, short) >= (1 - max(0.075 - own_s, 0.025)) * rate(cost, most) * (1 - 1 / short)


@pytest.mark.parametrize("cost", COSTS)
def test_many_waiting_calls_get_passes_that_keep_up(cost: PassCost) -> None:
    most = sizing.full_tokens(cost, BUDGET)
    shared = sizing.shared_pass_tokens(cost, most, 10)
    assert rate(cost, shared) >= 0.9 * rate(cost, most) * (1 - 1 / shared)


def test_a_target_that_can_be_met_is_met_by_both_passes_together() -> None:
    cost = PassCost(1, 0.05)
    assert cost.ms(sizing.short_pass_tokens(cost, BUDGET, 25, 10)) == pytest.approx(25, abs=0.1)
    assert cost.ms(sizing.shared_pass_tokens(cost, BUDGET, 25)) == pytest.approx(25, abs=0.1)


def test_a_full_pass_is_larger_only_where_it_would_mostly_be_fixed_cost() -> None:
    assert sizing.full_tokens(PassCost(30, 0.1), BUDGET) == BUDGET
    assert sizing.full_tokens(PassCost(300, 0.1), BUDGET) == 3000
    assert sizing.full_tokens(PassCost(300, 0.002), BUDGET) == 4 * BUDGET


def test_bulk_rows_go_along_with_calls_until_half_of_the_pass_is_fixed_cost() -> None:
    assert sizing.fill_tokens(PassCost(30, 0.1), BUDGET) == 300
    assert sizing.fill_tokens(PassCost(0, 0.1), BUDGET) == 1


def test_padding_is_worth_what_the_passes_cost_that_it_saves() -> None:
    assert sizing.worthwhile_padding(PassCost(100, 0.1), 2000) == pytest.approx(0.5)
