"""One stage: its looks, what they may spend, and when it gives up."""

import math
from itertools import pairwise

import numpy as np
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from aiopt.sequential import Stage, looks_at, spending, take
from aiopt.stats import signed_rank_p

STAGE = Stage(n=18, alpha=0.02, first=4, delta0=0.005, mei=0.03, sd_pair=0.019)

sizes = st.integers(5, 66)
firsts = st.integers(1, 66)
differences = st.lists(st.floats(-0.2, 0.2, allow_nan=False), min_size=0, max_size=120)


def gains(effect: float, n: int = 120, sd: float = 0.01, seed: int = 1) -> list[float]:
    values: list[float] = np.random.default_rng(seed).normal(effect, sd, n).tolist()
    return values


@given(sizes, firsts)
def test_looks_grow_by_half_reach_the_plan_and_end_with_the_extension(n: int, first: int) -> None:
    looks = looks_at(n, first)
    assert list(looks) == sorted(set(looks))
    assert looks[0] == min(first, n)
    assert looks[-2] == n
    assert looks[-1] == max(n + 8, math.ceil(1.6 * n))
    assert all(b <= math.ceil(1.5 * a) for a, b in pairwise(looks[:-1]))


def test_the_looks_of_a_screen() -> None:
    assert looks_at(40, 4) == (4, 6, 9, 14, 21, 32, 40, 64)
    assert looks_at(10, 10) == (10, 18)


@given(sizes, firsts, st.floats(1e-4, 0.5))
def test_the_levels_of_all_looks_sum_to_at_most_alpha(n: int, first: int, alpha: float) -> None:
    stage = evolve(STAGE, n=n, first=first, alpha=alpha)
    used = 0.0
    for k in looks_at(n, first):
        level = spending(stage, k, used)
        assert level >= 0
        used += level
    assert used <= alpha * (1 + 1e-12)


@given(sizes, firsts, differences)
def test_a_stage_never_uses_more_than_its_level(n: int, first: int, d: list[float]) -> None:
    stage = evolve(STAGE, n=n, first=first)
    result = take(stage, d)
    assert all(look.used <= stage.alpha * (1 + 1e-12) for look in result.looks)
    assert all(look.action == "continue" for look in result.looks[:-1])
    for look in result.looks:
        assert (look.action == "pass") == (2.0**-look.k <= look.level and look.p <= look.level)
        assert look.p == signed_rank_p(d[: look.k], stage.delta0)


@given(differences, differences)
def test_what_comes_after_the_deciding_look_changes_nothing(
    d: list[float], more: list[float]
) -> None:
    result = take(STAGE, d)
    if result.next_look is None:
        assert take(STAGE, [*d, *more]) == result
        assert result.ended_at == result.looks[-1].k
    else:
        assert len(d) < result.next_look
        assert result.ended_at is None
        assert take(STAGE, [*d, *more]).looks[: len(result.looks)] == result.looks


@given(st.integers(0, 200))
def test_making_every_difference_better_never_loses_a_pass(seed: int) -> None:
    d = gains(0.02, sd=0.02, seed=seed)
    before = take(STAGE, d)
    after = take(STAGE, [x + 0.01 for x in d])
    assert after.passed or not before.passed
    if before.passed and after.passed:
        assert after.looks[-1].k <= before.looks[-1].k


def test_a_clear_gain_passes_and_a_clear_loss_is_given_up_at_the_first_look() -> None:
    assert take(STAGE, gains(0.10)).passed
    lost = take(STAGE, gains(-0.10))
    assert (lost.passed, lost.looks[-1].action, lost.ended_at) == (False, "futile", 4)


def test_nothing_is_spent_where_no_outcome_could_pass() -> None:
    result = take(STAGE, gains(0.02, n=4))
    assert [look.level for look in result.looks] == [0.0]
    assert result.next_look == 6


def test_what_stays_undecided_is_ended_by_the_cap() -> None:
    stage = evolve(STAGE, sd_pair=0.05)
    d = [0.016 + 0.03 * (-1) ** i * (1 + i / 1000) for i in range(40)]
    result = take(stage, d)
    assert result.capped
    assert not result.passed
    assert result.ended_at == 29


def test_without_effect_a_stage_passes_no_more_often_than_its_level_whatever_the_noise() -> None:
    rng = np.random.default_rng(8)
    passed = 0
    for _ in range(3000):
        size = np.abs(rng.standard_t(1.5, 40)) * np.exp(rng.normal(0, 1))
        signs = rng.choice([-1.0, 1.0], 40)
        stage = evolve(STAGE, delta0=0.0, sd_pair=1e-4, mei=1e-6)
        passed += take(stage, (size * signs).tolist()).passed
    assert passed / 3000 <= 0.02
