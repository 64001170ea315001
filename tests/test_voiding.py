"""Pairs that do not count: by the machine's state, never by what was measured."""

from collections.abc import Mapping

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from aiopt.events import RunMeasured
from aiopt.pairs import Pair
from aiopt.rules import VoidRules
from aiopt.voiding import rules_in_force, too_many, void_of
from tests.factories import make

RULES = VoidRules()
CALM = {
    "run_seconds": 2.0,
    "cpus": 2.0,
    "steal_jiffies_delta": 0.0,
    "psi_cpu_some_avg10": 3.0,
    "throttle_count_delta": 0.0,
}


def pair(first: Mapping[str, float], second: Mapping[str, float] = CALM, *, a: int = 1) -> Pair:
    runs = {1: dict(first), 2: dict(second)}
    return Pair(
        make(RunMeasured, arm="A", position=a, covariates=runs[a]),
        make(RunMeasured, arm="B", position=3 - a, covariates=runs[3 - a]),
    )


def test_a_calm_pair_counts_and_so_does_one_of_a_machine_that_says_nothing() -> None:
    assert void_of(RULES, CALM, CALM) is None
    assert void_of(RULES, {}, {}) is None


@pytest.mark.parametrize(
    ("rule", "state"),
    [
        ("steal", {"steal_jiffies_delta": 21.0}),  # 0.21 s of 2 s on 2 processors
        ("psi", {"psi_cpu_some_avg10": 20.1}),
        ("throttle", {"throttle_count_delta": 1.0}),
    ],
)
def test_each_rule_voids_and_can_be_switched_off(rule: str, state: Mapping[str, float]) -> None:
    found = void_of(RULES, {**CALM, **state}, CALM)
    assert found is not None
    assert found.rule == rule
    assert found.detail
    off = evolve(RULES, **{rule: False if rule == "throttle" else 0.0})  # type: ignore[arg-type]
    assert void_of(off, {**CALM, **state}, CALM) is None


def test_pressure_is_read_before_the_pair_since_a_candidate_may_raise_it_itself() -> None:
    assert void_of(RULES, CALM, {**CALM, "psi_cpu_some_avg10": 90.0}) is None


def test_theft_within_the_limit_counts() -> None:
    assert void_of(RULES, {**CALM, "steal_jiffies_delta": 20.0}, CALM) is None


@given(st.floats(0, 100), st.floats(0, 100), st.booleans())
def test_arms_are_treated_alike(first: float, second: float, throttled: bool) -> None:
    """Which arm ran first changes nothing, and metrics are not even seen."""
    one = {**CALM, "steal_jiffies_delta": first, "throttle_count_delta": float(throttled)}
    two = {**CALM, "steal_jiffies_delta": second}
    rules = [rules_in_force(RULES, [pair(one, two, a=a)] * 10) for a in (1, 2)]
    assert rules[0] == rules[1]
    assert (void_of(RULES, one, two) is None) == (void_of(RULES, two, one) is None)


def test_what_is_normal_here_voids_nothing() -> None:
    busy = pair({**CALM, "psi_cpu_some_avg10": 60.0})
    rules, warnings = rules_in_force(RULES, [busy] * 6 + [pair(CALM)] * 14)
    assert rules.psi == 0.0
    assert (rules.steal, rules.throttle) == (RULES.steal, RULES.throttle)
    assert len(warnings) == 1
    assert "psi" in warnings[0]
    hot = pair({**CALM, "throttle_count_delta": 2.0})
    assert rules_in_force(RULES, [hot] * 10)[0].throttle is False


def test_what_is_rare_here_voids() -> None:
    busy = pair({**CALM, "psi_cpu_some_avg10": 60.0})
    assert rules_in_force(RULES, [busy] * 4 + [pair(CALM)] * 16) == (RULES, ())
    assert rules_in_force(RULES, []) == (RULES, ())


def test_more_than_a_fifth_of_the_last_pairs_is_too_many() -> None:
    assert not too_many([True] * 5)
    assert too_many([True] * 6)
    assert not too_many([True] * 6 + [False] * 24)
