"""The mathematics against scipy, against enumeration, and against its own definitions."""

import itertools
import math
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import stats as scipy_stats  # type: ignore[import-untyped]

from aiopt.stats import (
    EXACT_UP_TO,
    Direction,
    PairStage,
    best_case_p,
    coin,
    estimate,
    hodges_lehmann,
    interval,
    log_ratio,
    lower_bound,
    mad_sd,
    percent,
    signed_rank_p,
    signed_rank_survival,
    smallest_n,
    upper_bound,
    walsh_averages,
    wilson,
)

coarse = st.integers(-4, 4).map(float)
"""Differences that tie and vanish often."""

fine = st.lists(st.integers(1, 10**6), min_size=1, max_size=12, unique=True).flatmap(
    lambda sizes: st.lists(
        st.sampled_from([-1.0, 1.0]), min_size=len(sizes), max_size=len(sizes)
    ).map(lambda signs: [size * sign for size, sign in zip(sizes, signs, strict=True)])
)
"""Differences without ties or zeros."""


def enumerated_p(x: list[float]) -> float:
    """The definition, by all sign flips of the non-zero x."""
    ranks = scipy_stats.rankdata(np.abs(x))
    won = sum(r if v > 0 else r / 2 if v == 0 else 0 for v, r in zip(x, ranks, strict=True))
    constant = sum(r / 2 for v, r in zip(x, ranks, strict=True) if v == 0)
    free = [r for v, r in zip(x, ranks, strict=True) if v != 0]
    flips = itertools.product([0, 1], repeat=len(free))
    totals = [constant + sum(r for r, f in zip(free, flip, strict=True) if f) for flip in flips]
    return sum(1 for total in totals if total >= won) / len(totals)


class TestSurvival:
    def test_three(self) -> None:
        """The table for n = 3, by hand."""
        expected = [1, 7 / 8, 6 / 8, 5 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
        assert signed_rank_survival(3).tolist() == expected

    def test_none(self) -> None:
        """Without differences W* is 0."""
        assert signed_rank_survival(0).tolist() == [1, 0]

    def test_cached_and_read_only(self) -> None:
        """The table is shared, so nobody may write to it."""
        assert signed_rank_survival(5) is signed_rank_survival(5)
        with pytest.raises(ValueError, match="read-only"):
            signed_rank_survival(5)[0] = 2

    @pytest.mark.parametrize("n", [1, 10, 60, EXACT_UP_TO])
    def test_shape(self, n: int) -> None:
        """It falls from 1 to 2**-n to 0, symmetric about the mean."""
        table = signed_rank_survival(n)
        assert table.size == n * (n + 1) // 2 + 2
        assert table[0] == pytest.approx(1, abs=1e-12)
        assert table[-2:].tolist() == [2.0**-n, 0]
        assert (np.diff(table) <= 0).all()
        np.testing.assert_allclose(table + table[::-1], 1, atol=1e-12)


class TestSignedRankP:
    @given(fine)
    def test_equals_scipy(self, d: list[float]) -> None:
        """Without ties it is scipy's exact test."""
        expected = scipy_stats.wilcoxon(d, alternative="greater", method="exact").pvalue
        assert signed_rank_p(d) == pytest.approx(expected, abs=1e-12)

    @given(st.lists(coarse, max_size=9))
    @example([0.0])
    @example([0.0, 0.0, 1.0])
    def test_equals_enumeration(self, d: list[float]) -> None:
        """With ties and zeros it is the share of sign flips that win as much."""
        assert signed_rank_p(d) == pytest.approx(enumerated_p(d), abs=1e-12)

    @given(st.lists(coarse, min_size=1, max_size=12))
    def test_symmetry(self, d: list[float]) -> None:
        """p(d) + p(-d) exceeds 1 by just the chance of what was seen."""
        both = signed_rank_p(d) + signed_rank_p([-x for x in d])
        assert 1 - 1e-12 <= both <= 2 + 1e-12

    @given(st.lists(coarse, max_size=12), st.sampled_from([0.25, 2.0, 1024.0]))
    def test_scale(self, d: list[float], factor: float) -> None:
        """The unit does not matter."""
        assert signed_rank_p([x * factor for x in d]) == signed_rank_p(d)

    @given(st.lists(coarse, max_size=12), coarse)
    def test_theta_shifts(self, d: list[float], theta: float) -> None:
        """Testing theta is testing 0 on d - theta."""
        assert signed_rank_p(d, theta) == signed_rank_p([x - theta for x in d])

    @given(fine, st.integers(-50, 50), st.integers(0, 50))
    def test_monotone(self, d: list[float], theta: int, more: int) -> None:
        """A larger theta is never rejected more easily."""
        low, high = theta + 0.25, theta + more + 0.25  # never on a Walsh average
        assert signed_rank_p(d, low) <= signed_rank_p(d, high) + 1e-12

    @given(st.lists(coarse, max_size=12), st.randoms())
    def test_order(self, d: list[float], random: Random) -> None:
        """The order of the pairs does not matter."""
        shuffled = random.sample(d, len(d))
        assert signed_rank_p(shuffled) == signed_rank_p(d)

    @pytest.mark.parametrize("n", [EXACT_UP_TO + 1, 400])
    def test_many(self, n: int) -> None:
        """Above the limit it is the normal approximation of scipy."""
        d = np.random.default_rng(n).normal(0.1, 1, n)
        expected = scipy_stats.wilcoxon(
            d, alternative="greater", method="asymptotic", correction=False
        ).pvalue
        assert signed_rank_p(d) == pytest.approx(expected, rel=1e-9)

    def test_many_with_ties_and_zeros(self) -> None:
        """The normal approximation has the mean and the variance of the exact distribution."""
        d = np.random.default_rng(1).integers(-5, 7, 2 * EXACT_UP_TO).astype(float)
        ranks = scipy_stats.rankdata(np.abs(d))
        flips = np.random.default_rng(2).integers(0, 2, (20_000, d.size))
        totals = flips @ np.where(d != 0, ranks, 0)
        z = (ranks[d > 0].sum() - totals.mean()) / totals.std()
        assert scipy_stats.norm.isf(signed_rank_p(d)) == pytest.approx(z, abs=0.05)

    def test_limit_is_seamless(self) -> None:
        """At the limit the exact test and the normal approximation agree."""
        d = np.random.default_rng(3).normal(0.15, 1, EXACT_UP_TO)
        expected = scipy_stats.wilcoxon(d, alternative="greater", method="asymptotic").pvalue
        assert signed_rank_p(d) == pytest.approx(expected, rel=0.05)

    def test_all_zero(self) -> None:
        """Where nothing differs, nothing is proved, at any number of pairs."""
        assert signed_rank_p([0.0] * 10) == 1
        assert signed_rank_p([0.0] * 2 * EXACT_UP_TO) == 1

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_not_finite(self, bad: float) -> None:
        """A broken difference is refused, by its place."""
        with pytest.raises(ValueError, match=r"difference 1 is not finite"):
            signed_rank_p([0.0, bad])

    def test_not_flat(self) -> None:
        """A table of differences is refused."""
        with pytest.raises(ValueError, match="found 2 dimensions"):
            signed_rank_p([[0.0], [1.0]])


class TestBestCase:
    @given(fine.filter(lambda d: len(d) <= 4), st.integers(0, 4))
    def test_is_the_minimum(self, d: list[float], more: int) -> None:
        """It is the least p over all completions without ties, by trying them."""
        sizes = sorted(abs(x) for x in d)
        gaps = [0.0, *sizes]
        n = len(d) + more
        least = 1.0
        for where in itertools.combinations_with_replacement(gaps, more):
            new = [gap + 0.1 * (i + 1) for i, gap in enumerate(where)]
            for signs in itertools.product([-1, 1], repeat=more):
                completed = [*d, *(s * v for s, v in zip(signs, new, strict=True))]
                least = min(least, signed_rank_p(completed))
        assert best_case_p(d, n) == pytest.approx(least, abs=1e-12)

    @given(st.lists(coarse, min_size=1, max_size=4), st.integers(0, 3))
    def test_with_ties_it_is_a_bound(self, d: list[float], more: int) -> None:
        """Once d has ties or zeros, no completion goes below it, tied or not."""
        sizes = [abs(x) for x in d]
        assume(0 in sizes or len({*sizes}) < len(sizes))
        bound = best_case_p(d, len(d) + more)
        for new in itertools.product([-9, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 9], repeat=more):
            assert bound <= signed_rank_p([*d, *new]) + 1e-12

    @given(st.lists(st.floats(-1, 1), max_size=8), st.integers(0, 12))
    def test_bounds(self, d: list[float], more: int) -> None:
        """It lies between 2**-n, where nothing is known yet, and 1."""
        n = len(d) + more
        bounds = [best_case_p(d[:k], n, 0.005) for k in range(len(d) + 1)]
        assert bounds[0] == 2.0**-n
        assert all(2.0**-n <= bound <= 1 for bound in bounds)

    def test_complete(self) -> None:
        """With all pairs there it is p itself, ties or not."""
        d = [1.0, 1.0, -2.0]
        assert best_case_p(d, 3, 0.5) == signed_rank_p(d, 0.5)

    def test_later_ties_can_go_below(self) -> None:
        """The documented limit: two pairs to come that tie with each other."""
        d = [-1.0, -2.0, -3.0]
        assert best_case_p(d, 5) == 13 / 32
        assert signed_rank_p([*d, 4.0, 5.0]) == 13 / 32
        assert signed_rank_p([*d, 4.5, 4.5]) == 12 / 32

    def test_many(self) -> None:
        """It also works where p is a normal approximation."""
        d = -np.arange(1.0, 120)
        n = EXACT_UP_TO + 50
        completed = np.concatenate([d, np.arange(1000.0, 1000 + n - d.size)])
        assert best_case_p(d, n) == signed_rank_p(completed)

    def test_too_many(self) -> None:
        """More differences than planned are refused."""
        with pytest.raises(ValueError, match="at least the 2 differences there are, found 1"):
            best_case_p([0.1, 0.2], 1)


class TestEstimates:
    def test_walsh_averages(self) -> None:
        """All means of two, each with itself included."""
        assert sorted(walsh_averages([1, 2, 4])) == [1, 1.5, 2, 2.5, 3, 4]

    def test_hodges_lehmann(self) -> None:
        """The median of the Walsh averages, which one outlier moves little."""
        assert hodges_lehmann([1, 2, 4]) == 2.25
        assert hodges_lehmann([1, 2, 4e9]) == pytest.approx(1e9, rel=1e-6)
        assert hodges_lehmann([1, 2, 3, 4, 5, 6, 7e9]) == 4

    @given(st.lists(coarse, min_size=1, max_size=12), coarse)
    def test_equivariant(self, d: list[float], shift: float) -> None:
        """The estimate moves with the data, the spread does not."""
        moved = [x + shift for x in d]
        assert hodges_lehmann(moved) == hodges_lehmann(d) + shift
        assert mad_sd(moved) == mad_sd(d)
        assert hodges_lehmann([-x for x in d]) == -hodges_lehmann(d)

    def test_mad_sd(self) -> None:
        """It is the standard deviation of a normal sample, and ignores an outlier."""
        assert mad_sd([1, 2, 3, 4, 100]) == 1.4826
        sample = np.random.default_rng(0).normal(5, 2, 100_000)
        assert mad_sd(sample) == pytest.approx(2, rel=0.02)

    @pytest.mark.parametrize("estimate", [hodges_lehmann, mad_sd])
    def test_none(self, estimate: Callable[[list[float]], float]) -> None:
        """Nothing has no estimate."""
        with pytest.raises(ValueError, match="there are no differences"):
            estimate([])


class TestInterval:
    @given(fine, st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
    def test_inverts_the_test(self, d: list[float], level: float) -> None:
        """Just inside the interval nothing is rejected, just outside everything is."""
        low, high = interval(d, level)
        tail = (1 - level) / 2
        centres = np.unique(walsh_averages(d))
        for theta in [*(centres - 0.125), *(centres + 0.125)]:
            p = min(signed_rank_p(d, theta), signed_rank_p([-x for x in d], -theta))
            assert (low < theta < high) == (p > tail)

    def test_known(self) -> None:
        """Six differences are the fewest at 0.95, and then it is all of them."""
        assert interval([1, 2, 3, 4, 5]) == (-math.inf, math.inf)
        assert interval([1, 2, 3, 4, 5, 6]) == (1, 6)
        assert interval([]) == (-math.inf, math.inf)

    def test_published(self) -> None:
        """Darwin's maize: n = 15, 95 % critical value 25 on the smaller side (table of S_n)."""
        d = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
        averages = np.sort(walsh_averages(d))
        assert interval(d) == (averages[25], averages[-26])

    @given(fine, st.sampled_from([0.1, 0.5, 0.9, 0.95]))
    def test_one_sided(self, d: list[float], level: float) -> None:
        """A one-sided bound at 1 - a is an end of the interval at 1 - 2a; the two mirror."""
        assert lower_bound(d, level) == -upper_bound([-x for x in d], level)
        if level > 0.5:
            wide = interval(d, 1 - 2 * (1 - level))
            assert (lower_bound(d, level), upper_bound(d, level)) == wide

    def test_large(self) -> None:
        """Above the limit the ends invert the normal approximation."""
        d = np.random.default_rng(5).normal(0.03, 0.02, EXACT_UP_TO + 20)
        low, high = interval(d)
        assert low < hodges_lehmann(d) < high
        assert signed_rank_p(d, low - 1e-9) <= 0.025 < signed_rank_p(d, low + 1e-9)
        assert signed_rank_p(-d, -high - 1e-9) <= 0.025 < signed_rank_p(-d, -high + 1e-9)

    def test_coverage(self) -> None:
        """The true effect is inside at least as often as promised, under heavy tails too."""
        rng = np.random.default_rng(11)
        hits = 0
        for _ in range(2000):
            low, high = interval(0.03 + 0.02 * rng.standard_t(2, 12))
            hits += low <= 0.03 <= high
        assert 0.94 <= hits / 2000 <= 0.975

    @pytest.mark.parametrize("level", [0, 1, -0.5, 1.5, math.nan])
    @pytest.mark.parametrize("bound", [interval, lower_bound, upper_bound])
    def test_level(self, bound: Callable[[list[float], float], object], level: float) -> None:
        """A level is a probability, and neither 0 nor 1."""
        with pytest.raises(ValueError, match="level must be between 0 and 1"):
            bound([1.0], level)


class TestSmallestN:
    @pytest.mark.parametrize(
        ("alpha", "n"), [(1, 0), (0.5, 1), (0.49, 2), (0.25, 2), (0.025, 6), (5e-4, 11)]
    )
    def test_known(self, alpha: float, n: int) -> None:
        """Values by hand."""
        assert smallest_n(alpha) == n

    @given(st.floats(0, 1, exclude_min=True))
    def test_is_smallest(self, alpha: float) -> None:
        """n pairs reach alpha and n - 1 do not."""
        n = smallest_n(alpha)
        assert 2.0**-n <= alpha
        assert n == 0 or 2.0 ** -(n - 1) > alpha

    @pytest.mark.parametrize("alpha", [0, -1, 1.01, math.nan])
    def test_refuses(self, alpha: float) -> None:
        """A level outside (0, 1] is refused."""
        with pytest.raises(ValueError, match="alpha must be above 0"):
            smallest_n(alpha)


positive = st.floats(1e-12, 1e12)


class TestLogRatio:
    @given(positive, positive)
    def test_antisymmetric(self, a: float, b: float) -> None:
        """Swapping the arms, or the direction, changes exactly the sign."""
        assert log_ratio(a, b, "lower") == -log_ratio(b, a, "lower")
        assert log_ratio(a, b, "higher") == -log_ratio(a, b, "lower")
        assert log_ratio(a, a, "lower") == 0

    def test_positive_is_better(self) -> None:
        """A candidate of less cost, or more throughput, is positive."""
        assert log_ratio(100, 97, "lower") == pytest.approx(0.030459, abs=1e-6)
        assert log_ratio(97, 100, "higher") == pytest.approx(0.030459, abs=1e-6)

    @given(positive, st.floats(0.5, 2))
    def test_percent(self, a: float, factor: float) -> None:
        """The percent of a log ratio is the share that is saved, or gained of a rate."""
        saved = percent(log_ratio(a, a * factor, "lower"))
        assert saved == pytest.approx(1 - factor, abs=1e-12)
        gained = percent(log_ratio(a, a * factor, "higher"), "higher")
        assert gained == pytest.approx(factor - 1, rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
    @pytest.mark.parametrize("direction", ["lower", "higher"])
    def test_refuses(self, bad: float, direction: Direction) -> None:
        """What has no logarithm is refused, with both values."""
        with pytest.raises(ValueError, match=rf"a must be .* found {bad!r} .*b = 1.0"):
            log_ratio(bad, 1.0, direction)
        with pytest.raises(ValueError, match=rf"b must be .* found {bad!r} .*a = 1.0"):
            log_ratio(1.0, bad, direction)

    def test_direction(self) -> None:
        """There are two directions."""
        with pytest.raises(ValueError, match="'lower' or 'higher', found 'sideways'"):
            log_ratio(1, 1, "sideways")  # type: ignore[arg-type]


class TestCoin:
    def test_frozen(self) -> None:
        """The coin never changes: a logged order can be recomputed for ever."""
        tossed = [coin(7, 1, PairStage.SCREEN, i) for i in range(8)]
        assert tossed == ["BA", "AB", "BA", "BA", "BA", "AB", "BA", "BA"]
        assert coin(2026, 0, PairStage.CALIBRATION, 0) == coin(2026, 0, 0, 0)

    def test_stages(self) -> None:
        """Neither do the numbers of the stages."""
        assert {stage.name: stage.value for stage in PairStage} == {
            "CALIBRATION": 0,
            "SCREEN": 1,
            "CONFIRM": 2,
            "AUDIT": 3,
            "LAYOUT": 4,
            "ABLATION": 5,
        }

    def test_fair(self) -> None:
        """Both orders come equally often, in runs that are those of a fair coin."""
        tossed = [coin(s, c, 1, i) == "AB" for s in range(5) for c in range(20) for i in range(40)]
        assert scipy_stats.binomtest(sum(tossed), len(tossed)).pvalue > 0.001
        same = sum(x == y for x, y in itertools.pairwise(tossed))
        assert scipy_stats.binomtest(same, len(tossed) - 1).pvalue > 0.001

    def test_negative(self) -> None:
        """There is no coin for a negative number."""
        with pytest.raises(ValueError, match="non-negative"):
            coin(-1, 0, 0, 0)


def test_an_estimate_has_the_interval_of_the_test_or_of_students_t() -> None:
    rng = np.random.default_rng(4)
    sample = rng.normal(0.0, 0.01, 100)
    value, low, high, se = estimate(sample)
    assert (low, high) == interval(sample)
    assert value == hodges_lehmann(sample)
    assert se == pytest.approx((high - low) / 3.92, rel=1e-4)
    assert se == pytest.approx(0.01 / 10, rel=0.25)
    assert estimate([0.3])[1:] == (-math.inf, math.inf, math.inf)
    assert estimate([0.3] * 9) == (0.3, 0.3, 0.3, 0.0)
    with pytest.raises(ValueError, match="no differences"):
        estimate([])


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 9])
def test_the_interval_of_few_pairs_covers_what_it_says(size: int) -> None:
    samples = np.random.default_rng(size).normal(0.02, 0.01, (4000, size))
    found = [estimate(sample) for sample in samples]
    covered = sum(low <= 0.02 <= high for _, low, high, _ in found)
    assert 0.94 < covered / len(found) < 0.985
    # Student's quantiles, as scipy has them.
    if size < 6:
        half = scipy_stats.t.ppf(0.975, size - 1) * math.sqrt(math.pi / 3 / size)
        assert found[0][2] - found[0][0] == pytest.approx(half * np.std(samples[0], ddof=1))


@given(st.floats(0, 1), st.integers(1, 10**6))
def test_wilson_holds_the_share_and_stays_within_0_and_1(share: float, n: int) -> None:
    low, high = wilson(share, n)
    assert 0 <= low <= high <= 1
    assert low - 1e-12 <= share <= high + 1e-12
    assert wilson(1 - share, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_wilson_is_that_of_the_books() -> None:
    """Of 10 in 100: Agresti & Coull, The American Statistician 52 (1998) 119, by hand."""
    assert wilson(0.1, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
