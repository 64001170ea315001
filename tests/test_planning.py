"""Calibration's arithmetic: plans, and what warns of an unfit workload."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest  # type: ignore[import-untyped]

from aiopt.planning import (
    Plan,
    autocorrelation,
    layout_sd,
    noise_of,
    order_effect_p,
    pairs_to_prove,
    plan_guard,
    plan_stages,
    replan_confirmation,
    sd_of_pairs,
    warmed_up,
)
from aiopt.stats import mad_sd, signed_rank_survival

PARAMS: dict[str, Any] = {
    "mei": 0.03,
    "delta0": 0.005,
    "alpha1": 0.02,
    "alpha2": 0.025,
    "power": 0.97,
    "cap": 40,
    "boot": 160,
}


def normal(sd: float, n: int = 50, seed: int = 3) -> list[float]:
    values: list[float] = np.random.default_rng(seed).normal(0.0, sd, n).tolist()
    return values


def test_a_plan_follows_from_its_calibration_alone() -> None:
    d = normal(0.02)
    assert plan_stages(d, **PARAMS) == plan_stages(list(d), **PARAMS)


def test_more_noise_takes_more_pairs_and_then_only_larger_effects_can_be_proved() -> None:
    quiet, noisy, hopeless = (plan_stages(normal(sd), **PARAMS) for sd in (0.005, 0.02, 0.2))
    assert (quiet.mei_eff, quiet.reached) == (0.03, True)
    assert quiet.n1 < noisy.n1
    assert quiet.n2 < noisy.n2
    assert hopeless.mei_eff > noisy.mei_eff
    assert hopeless.n1 <= math.ceil(1.1 * PARAMS["cap"])


def test_the_plan_reaches_its_power_on_the_noise_that_it_was_made_from() -> None:
    d = normal(0.02)
    plan = plan_stages(d, **PARAMS)
    raw = next(n for n in range(5, 60) if math.ceil(1.1 * n) == plan.n1)
    pool = np.concatenate([d, np.negative(d)])
    sample = np.random.default_rng(0).choice(pool, (4000, raw)) + 0.03 - 0.005
    ranks = np.argsort(np.argsort(np.abs(sample), axis=1), axis=1) + 1
    won = (ranks * (sample > 0)).sum(axis=1)
    critical = int(np.count_nonzero(signed_rank_survival(raw) > 0.02))
    assert np.mean(won >= critical) > 0.93


def test_what_no_number_of_pairs_can_prove_is_not_reached() -> None:
    plan = plan_stages(normal(3.0), **PARAMS)
    assert not plan.reached
    assert plan.mei_eff > 1.5


def test_sizes_at_which_nothing_could_be_rejected_are_skipped() -> None:
    n, reached = plan_guard(normal(1e-6), margin=0.05, alpha=0.001, power=0.97, cap=40, boot=160)
    assert (n, reached) == (10, True)  # 2**-10 is the first below 0.001


def test_a_guard_that_the_cap_does_not_allow_says_so() -> None:
    found = plan_guard(normal(0.5), margin=0.02, alpha=0.035, power=0.97, cap=20, boot=160)
    assert found == (20, False)


def test_a_stricter_confirmation_is_larger() -> None:
    d = normal(0.02)
    sizes = [
        replan_confirmation(d, shift=0.025, alpha2=alpha, power=0.97, cap=40, boot=160)
        for alpha in (0.05, 0.005, 0.0005)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_pairs_to_prove_grow_with_the_square_of_the_ratio() -> None:
    plan = Plan(20, 30, 0.055, True)
    assert pairs_to_prove(plan, 0.055, 0.005) == 50
    assert pairs_to_prove(plan, 0.03, 0.005) == 200


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=80))
def test_the_spread_is_never_quite_zero(d: list[float]) -> None:
    assert sd_of_pairs(d) == max(1e-4, mad_sd(d))


@given(st.lists(st.sampled_from([True, False, None]), max_size=60))
def test_the_order_effect_is_the_exact_sign_test(slower: list[bool | None]) -> None:
    clear = [each for each in slower if each is not None]
    expected = binomtest(sum(clear), len(clear)).pvalue if clear else 1.0
    assert order_effect_p(slower) == pytest.approx(expected)


@given(st.lists(st.floats(-10, 10), max_size=40), st.floats(-5, 5))
@settings(max_examples=50)
def test_autocorrelation_is_a_correlation(values: list[float], shift: float) -> None:
    assert -1.0 - 1e-9 <= autocorrelation(values) <= 1.0 + 1e-9


def test_autocorrelation_tells_drift_from_independence_and_alternation() -> None:
    assert autocorrelation(list(range(50))) > 0.9
    assert abs(autocorrelation(normal(1.0, 2000))) < 0.06
    assert autocorrelation([0.0, 1.0] * 30) < -0.9
    assert autocorrelation([1.0] * 10) == 0.0
    assert autocorrelation([math.log(50.1)] * 99) == 0.0  # whose mean differs by rounding
    assert autocorrelation([1.0, 2.0]) == 0.0
    assert autocorrelation([0.0, 0.0, 1e-200]) == pytest.approx(autocorrelation([0.0, 0.0, 1.0]))


def test_a_slow_start_is_noticed() -> None:
    steady = normal(0.01, 60)
    assert warmed_up(steady)
    assert not warmed_up([0.5, 0.4, 0.3, *steady])
    assert warmed_up([0.5, 0.0, 0.0])  # too few to say


def test_noise_of_is_the_sum_of_its_parts() -> None:
    d, costs = normal(0.01), normal(0.01, 100, seed=4)
    noise = noise_of(d, [True] * 50, costs)
    assert noise.pairs == 50
    assert noise.sd_pair == sd_of_pairs(d)
    assert noise.autocorrelation == autocorrelation(costs)
    assert noise.order_effect_p < 1e-12
    assert noise.warmed_up


def test_layout_that_differs_is_told_from_the_noise_of_its_pairs() -> None:
    rng = np.random.default_rng(5)
    true, sd_pair, pairs = 0.018, 0.01, 5
    found = []
    for _ in range(300):
        bias = rng.normal(0.0, true, 12)
        groups = bias[:, None] + rng.normal(0.0, sd_pair, (12, pairs))
        found.append(layout_sd(np.median(groups, axis=1).tolist(), sd_pair, pairs))
    assert np.median(found) == pytest.approx(true, rel=0.1)
    assert layout_sd(normal(0.001, 6), 0.05, 5) == 0.0
    assert layout_sd([0.1], 0.01, 5) == 0.0


# ---- the same plan by brute force ----

SIZES = [5, 6, 7, 8, 9, 10, 12, 14, 16, 19, 22, 26, 30, 35, 40, 48, 56, 64, 80, 100, 120, 160, 200]


def rejects(x: list[float], alpha: float) -> bool:
    """The signed-rank test of "at most 0" without ties, by ranks and the table of all outcomes."""
    order = sorted(range(len(x)), key=lambda i: abs(x[i]))
    won = sum(rank for rank, i in enumerate(order, start=1) if x[i] > 0)
    return bool(signed_rank_survival(len(x))[won] <= alpha)


def pairs_by_force(
    d: list[float], shift: float, alpha: float, power: float, cap: int, boot: int
) -> tuple[int, bool]:
    """One sample after the other, in the order in which one generator yields them."""
    pool = d + [-x for x in d]
    rng = np.random.Generator(np.random.PCG64(20240229))
    for n in SIZES:
        if n > cap:
            return cap, False
        if 0.5**n > alpha:
            continue
        rejected = 0
        for _ in range(boot):
            sample = [pool[rng.integers(len(pool))] + shift for _ in range(n)]
            rejected += rejects(sample, alpha)
        if rejected >= power * boot:
            return n, True
    return cap, False


@given(
    st.integers(0, 1000),
    st.floats(0.002, 0.1),
    st.sampled_from([0.0, 0.005, 0.02]),
    st.sampled_from([0.02, 0.025, 0.0005]),
    st.sampled_from([8, 20, 40]),
)
@settings(max_examples=15, deadline=None)
def test_the_plan_is_that_of_a_brute_force_search(
    seed: int, sd: float, delta0: float, alpha: float, cap: int
) -> None:
    d = normal(sd, 30, seed)
    mei, found = 0.03, pairs_by_force(d, 0.03 - delta0, alpha, 0.97, cap, 60)
    while not found[1] and mei <= 1.5:
        mei *= 1.15
        found = pairs_by_force(d, mei - delta0, alpha, 0.97, cap, 60)
    second, _ = pairs_by_force(d, mei - delta0, alpha, 0.97, int(1.5 * cap), 60)
    plan = plan_stages(
        d, mei=0.03, delta0=delta0, alpha1=alpha, alpha2=alpha, power=0.97, cap=cap, boot=60
    )
    assert plan == Plan(math.ceil(1.1 * found[0]), math.ceil(1.2 * second), mei, found[1])


def test_a_cap_beyond_the_largest_size_is_where_the_search_ends() -> None:
    found = plan_guard(normal(5.0), margin=0.01, alpha=0.035, power=0.97, cap=300, boot=50)
    assert found == (300, False)


@given(st.integers(0, 1000), st.floats(0.002, 0.05))
@settings(max_examples=30, deadline=None)
def test_a_unit_of_effect_for_everything_gives_the_same_number_of_pairs(
    seed: int, sd: float
) -> None:
    """Effects, margins and noise that are all doubled make the same test."""
    d = normal(sd, 30, seed)
    one = plan_stages(d, **PARAMS)
    twice = {**PARAMS, "mei": 0.06, "delta0": 0.01}
    two = plan_stages([2 * x for x in d], **twice)
    if max(one.mei_eff, two.mei_eff) < 0.7:  # below where the search for an effect ends
        assert (one.n1, one.n2, one.reached) == (two.n1, two.n2, two.reached)
        assert two.mei_eff == pytest.approx(2 * one.mei_eff)
