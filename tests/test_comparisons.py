"""The rules of other tools: what each keeps, against scipy, by hand, and by their symmetries."""

import itertools
import math

import numpy as np
import pytest
from attrs import evolve
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats as scipy_stats  # type: ignore[import-untyped]

from aiopt.comparisons import COMPARISONS, ComparisonRule, mann_whitney_p

rules = pytest.mark.parametrize("rule", COMPARISONS.values(), ids=COMPARISONS)
costs = st.integers(1, 1000).map(float)
"""Costs that tie now and then, and whose sums are exact."""


@st.composite
def two_arms(draw: st.DrawFn, runs: int) -> tuple[list[float], list[float]]:
    one_arm = st.lists(costs, min_size=runs, max_size=runs)
    return draw(one_arm), draw(one_arm)


def enumerated_p(a: list[float], b: list[float]) -> float:
    """The definition: both tails of all ways to call len(a) of the values a."""
    ranks = scipy_stats.rankdata(a + b)
    seen = ranks[: len(a)].sum()
    sums = [sum(chosen) for chosen in itertools.combinations(ranks, len(a))]
    lower = float(np.mean([total <= seen for total in sums]))
    upper = float(np.mean([total >= seen for total in sums]))
    return min(1.0, 2 * min(lower, upper))


class TestEveryRule:
    def test_by_id(self) -> None:
        """Each is found under its own id, and says what it is and where from."""
        assert list(COMPARISONS) == ["single-run", "mean-of-n", "no-overlap", "benchstat"]
        for name, rule in COMPARISONS.items():
            assert rule.id == name
            assert rule.what
            assert rule.source

    @rules
    @given(data=st.data())
    def test_symmetry(self, rule: ComparisonRule, data: st.DataObject) -> None:
        """With the arms swapped it claims the opposite, and does not keep both."""
        a, b = data.draw(two_arms(rule.runs))
        there, back = rule.judge(a, b), rule.judge(b, a)
        assert there.effect == -back.effect
        assert there.p == back.p
        assert not (there.keep and back.keep)

    @rules
    @given(data=st.data(), power=st.integers(-30, 30))
    def test_scale(self, rule: ComparisonRule, data: st.DataObject, power: int) -> None:
        """The unit does not matter. (Powers of two: the rest is exact.)"""
        a, b = data.draw(two_arms(rule.runs))
        scaled = rule.judge([x * 2.0**power for x in a], [x * 2.0**power for x in b])
        plain = rule.judge(a, b)
        assert (scaled.keep, scaled.p) == (plain.keep, plain.p)
        assert scaled.effect == pytest.approx(plain.effect, abs=1e-12)

    @rules
    @given(data=st.data())
    def test_keeps_only_what_it_claims(self, rule: ComparisonRule, data: st.DataObject) -> None:
        """What is kept is claimed to be better."""
        comparison = rule.judge(*data.draw(two_arms(rule.runs)))
        assert comparison.effect > 0 or not comparison.keep

    @rules
    @given(data=st.data())
    def test_order_within_an_arm(self, rule: ComparisonRule, data: st.DataObject) -> None:
        """None of them looks at the order of the runs of an arm."""
        a, b = data.draw(two_arms(rule.runs))
        again = rule.judge(data.draw(st.permutations(a)), data.draw(st.permutations(b)))
        assert again == rule.judge(a, b)

    @rules
    def test_extremes(self, rule: ComparisonRule) -> None:
        """All of them keep what is always half as costly, and drop what is the same."""
        a = [100.0 + i for i in range(rule.runs)]
        kept = rule.judge(a, [x / 2 for x in a])
        assert kept.keep
        assert kept.effect == pytest.approx(math.log(2))
        same = rule.judge(a, a)
        assert not same.keep
        assert same.effect == 0

    @rules
    def test_other_numbers(self, rule: ComparisonRule) -> None:
        """The number of runs and the design can be changed."""
        other = evolve(rule, runs=12, design="pairs")
        assert other.judge([2.0 + i for i in range(12)], [1.0 + i / 99 for i in range(12)]).keep
        assert other.design == "pairs"

    @rules
    def test_wrong_number(self, rule: ComparisonRule) -> None:
        """Costs of another number of runs are refused."""
        enough, more = [1.0] * rule.runs, [1.0] * (rule.runs + 1)
        with pytest.raises(ValueError, match=f"expected {rule.runs} runs of b, found {len(more)}"):
            rule.judge(enough, more)
        with pytest.raises(ValueError, match=f"expected {rule.runs} runs of a, found 0"):
            rule.judge([], enough)

    @rules
    @pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
    def test_bad_costs(self, rule: ComparisonRule, bad: float) -> None:
        """What has no logarithm is refused."""
        fine, wrong = [1.0] * rule.runs, [1.0] * (rule.runs - 1) + [bad]
        with pytest.raises(ValueError, match=f"found {bad!r} in a"):
            rule.judge(wrong, fine)
        with pytest.raises(ValueError, match=f"found {bad!r} in b"):
            rule.judge(fine, wrong)

    @rules
    def test_too_few(self, rule: ComparisonRule) -> None:
        """Fewer runs than a rule can work with are refused when it is made."""
        assert evolve(rule, runs=rule.least).judge([2.0] * rule.least, [1.0] * rule.least)
        with pytest.raises(ValueError, match=f"at least {rule.least} runs of each arm"):
            evolve(rule, runs=rule.least - 1)


class TestMeans:
    @given(a=costs, b=costs)
    def test_single_run(self, a: float, b: float) -> None:
        """One run decides."""
        comparison = COMPARISONS["single-run"].judge([a], [b])
        assert comparison.keep == (b < a)
        assert comparison.effect == pytest.approx(math.log(a / b))
        assert comparison.p is None

    def test_mean(self) -> None:
        """One outlier of the incumbent is enough to keep a candidate that is worse."""
        comparison = COMPARISONS["mean-of-n"].judge([100, 100, 110], [102, 102, 102])
        assert comparison.keep
        assert comparison.effect == pytest.approx(math.log(310 / 306))


class TestNoOverlap:
    @pytest.mark.parametrize(
        ("a", "b", "keep"),
        [
            ([10, 11, 12], [7, 8, 9], True),
            ([10, 11, 12], [8, 9, 10], False),  # the ranges touch
            ([10, 11, 12], [5, 6, 11], False),  # overlap
            ([10, 10, 14], [9.8, 9.9, 9.9], False),  # apart, but by less than the deviation of a
            ([14, 14.1, 14], [13.9, 10, 13.9], False),  # by less than that of b
            ([7, 8, 9], [10, 11, 12], False),  # worse
        ],
    )
    def test_known(self, a: list[float], b: list[float], keep: bool) -> None:
        """Both conditions count, with the larger standard deviation."""
        assert COMPARISONS["no-overlap"].judge(a, b).keep == keep

    def test_ideal_noise(self) -> None:
        """Even on ideal noise it keeps one in twenty candidates that change nothing: of the
        (6 choose 3) orders of six runs, one has all of b below all of a.
        """
        rng = np.random.default_rng(1)
        rule = COMPARISONS["no-overlap"]
        kept = sum(rule.judge(x[:3], x[3:]).keep for x in np.exp(rng.normal(0, 0.01, (4000, 6))))
        assert 0.04 < kept / 4000 <= 0.057


class TestBenchstat:
    @pytest.mark.parametrize(("rank_sum", "keep"), [(78, True), (79, False)])
    def test_known(self, rank_sum: int, keep: bool) -> None:
        """Ten and ten: significant up to U = 23 (published table), a rank sum of 55 + 23."""
        ranks = range(1, 21)
        low = next(c for c in itertools.combinations(ranks, 10) if sum(c) == rank_sum)
        a, b = [float(x) for x in ranks if x not in low], [float(x) for x in low]
        assert COMPARISONS["benchstat"].judge(a, b).keep == keep

    def test_median_and_test_must_agree(self) -> None:
        """A significant difference with equal medians is not kept."""
        a, b = [5.0] * 5 + [6.0, 7.0, 8.0, 9.0], [1.0, 2.0, 3.0, 4.0] + [5.0] * 5
        comparison = evolve(COMPARISONS["benchstat"], runs=9).judge(a, b)
        assert comparison.p == mann_whitney_p(a, b) < 0.05
        assert comparison.effect == 0
        assert not comparison.keep

    def test_claims_medians(self) -> None:
        """The effect is the ratio of the medians, and the p-value is told."""
        a, b = [float(x) for x in range(101, 111)], [float(x) for x in range(51, 61)]
        comparison = COMPARISONS["benchstat"].judge(a, b)
        assert comparison.effect == pytest.approx(math.log(105.5 / 55.5))
        assert comparison.p == pytest.approx(2 / math.comb(20, 10))


class TestMannWhitney:
    @given(st.lists(st.integers(0, 4).map(float), min_size=2, max_size=9), st.data())
    def test_enumeration(self, values: list[float], data: st.DataObject) -> None:
        """Exact with ties, whatever the sizes."""
        n = data.draw(st.integers(1, len(values) - 1))
        a, b = values[:n], values[n:]
        assert mann_whitney_p(a, b) == pytest.approx(enumerated_p(a, b), abs=1e-12)

    @given(st.lists(st.integers(0, 10**6).map(float), min_size=2, max_size=40, unique=True))
    def test_scipy_exact(self, values: list[float]) -> None:
        """Without ties it is scipy's exact test."""
        a, b = values[::2], values[1::2]
        assume(b)
        expected = scipy_stats.mannwhitneyu(a, b, method="exact").pvalue
        assert mann_whitney_p(a, b) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("shift", [0.0, 0.1, 0.3, -0.5])
    @pytest.mark.parametrize("digits", [1, 8])
    def test_scipy_normal(self, shift: float, digits: int) -> None:
        """Many values, with and without ties: scipy's approximation, and near the exact test."""
        rng = np.random.default_rng(3)
        a, b = rng.normal(0, 1, 60).round(digits), rng.normal(shift, 1, 55).round(digits)
        expected = scipy_stats.mannwhitneyu(a, b, method="asymptotic").pvalue
        assert mann_whitney_p(a, b) == pytest.approx(expected, rel=1e-9)
        near = mann_whitney_p(a[:50], b[:50])
        approximate = scipy_stats.mannwhitneyu(a[:50], b[:50], method="asymptotic").pvalue
        assert near == pytest.approx(approximate, abs=0.005)

    def test_all_equal(self) -> None:
        """Nothing differs, nothing is found."""
        assert mann_whitney_p([1.0] * 4, [1.0] * 5) == 1
        assert mann_whitney_p([1.0] * 60, [1.0] * 70) == 1

    @pytest.mark.parametrize(("a", "b"), [([], [1.0]), ([1.0], []), ([], [])])
    def test_empty(self, a: list[float], b: list[float]) -> None:
        """There is no test of nothing."""
        with pytest.raises(ValueError, match=f"found {len(a)} and {len(b)}"):
            mann_whitney_p(a, b)
