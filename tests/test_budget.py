"""The campaign's error budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt.budget import charge_of, confirm_level_of, ledger, stated_budget
from aiopt.events import LevelCharged
from aiopt.rules import RuleParams, params_from

BASE = {"metrics": {"cpu": {"role": "primary"}}, "workloads": {"mixed": {}}}


def params(**changes: object) -> RuleParams:
    return params_from({**BASE, **changes})


def charges(rule: RuleParams, n: int) -> list[LevelCharged]:
    found: list[LevelCharged] = []
    for ordinal in range(1, n + 1):
        spent = sum(each.charged for each in found) + charge_of(rule, ordinal)
        found.append(
            LevelCharged(
                number=ordinal,
                ordinal=ordinal,
                charged=charge_of(rule, ordinal),
                spent=spent,
                left=stated_budget(rule, ordinal) - spent,
                calibration="exp-0002",
            )
        )
    return found


def test_by_default_two_hundred_candidates_share_a_tenth_of_a_false_keep() -> None:
    rule = params()
    assert rule.confirm_level == pytest.approx(0.025)
    assert charge_of(rule, 1) == pytest.approx(0.0005)
    assert sum(charge_of(rule, t) for t in range(1, 201)) == pytest.approx(0.1)


def test_a_short_campaign_is_not_given_a_careless_confirmation() -> None:
    assert params(planned=10).confirm_level == 0.05


@given(st.integers(1, 400), st.floats(0.001, 1), st.integers(0, 3000))
def test_any_number_of_candidates_stays_within_what_was_stated(
    planned: int, pfer: float, further: int
) -> None:
    rule = params(planned=planned, pfer=pfer)
    within = sum(charge_of(rule, t) for t in range(1, planned + 1))
    assert within <= pfer * (1 + 1e-9)
    total = within + sum(charge_of(rule, planned + k) for k in range(1, further + 1))
    assert total <= stated_budget(rule, planned + further) * (1 + 1e-9)


def test_a_level_that_was_given_is_stated_for_what_it_costs() -> None:
    """The bound in a report is true, also if it is above what the budget would have allowed."""
    rule = params(alpha2=0.05)
    assert stated_budget(rule, 1) == pytest.approx(0.2)
    assert stated_budget(rule, 201) == pytest.approx(0.25)
    book = ledger(rule, charges(rule, 200))
    assert book.left == pytest.approx(0.0)
    assert stated_budget(params(alpha2=0.001), 1) == 0.1


def test_beyond_the_plan_each_candidate_has_less() -> None:
    rule = params(planned=20)
    levels = [confirm_level_of(rule, t) for t in range(20, 60)]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == rule.confirm_level
    assert levels[-1] < rule.confirm_level / 10
    assert stated_budget(rule, 20) == 0.1
    assert stated_budget(rule, 21) == pytest.approx(0.15)
    assert stated_budget(params(planned=20, pfer_ext=0.01), 21) == pytest.approx(0.11)


def test_the_ledger_adds_up() -> None:
    rule = params(planned=3)
    book = ledger(rule, charges(rule, 5))
    assert book.planned == 3
    assert book.spent == pytest.approx(sum(each.charged for each in book.charged))
    assert book.left == pytest.approx(book.budget - book.spent)
    assert book.left == pytest.approx(book.charged[-1].left)
    assert ledger(rule, []).spent == 0.0
