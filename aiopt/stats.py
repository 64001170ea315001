"""The mathematics of paired differences: a test, an estimate, an interval, and the coin.

Everything is about d = ln(a / b), one value per pair of runs (`log_ratio`): a natural log, positive
where the candidate b is better than the incumbent a. `percent` turns it into the share saved.

The test is Wilcoxon's signed-rank test, one-sided, exact by randomisation: the order of each pair
is a fair `coin`, so if the patch changes nothing, the signs of d are fair coins too, whatever the
noise. The estimate is Hodges and Lehmann's, and intervals invert the test (Hollander, Wolfe,
Chicken: Nonparametric Statistical Methods, 3rd edition, chapter 3). Nothing here knows of looks,
levels or verdicts.
"""

import math
from enum import IntEnum
from functools import cache, lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "EXACT_UP_TO",
    "Z95",
    "Bools",
    "Direction",
    "Floats",
    "Ints",
    "Order",
    "PairStage",
    "best_case_p",
    "coin",
    "critical_rank_sum",
    "estimate",
    "few_pairs_factor",
    "hodges_lehmann",
    "interval",
    "log_ratio",
    "lower_bound",
    "mad_sd",
    "percent",
    "proposal_rng",
    "rank_sum_survival",
    "signed_rank_p",
    "signed_rank_survival",
    "smallest_n",
    "upper_bound",
    "walsh_averages",
    "wilson",
]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Direction = Literal["lower", "higher"]
"""Which way a metric is better."""

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""

_T95 = {2: 12.706204736174694, 3: 4.302652729749462, 4: 3.1824463052837078, 5: 2.7764451051977934}
"""Two-sided 95 % quantiles of Student's t for samples of this size."""

Order = Literal["AB", "BA"]
"""Which arm of a pair runs first."""

EXACT_UP_TO = 200
"""The largest number of differences with an exact null distribution; a normal one beyond."""


class PairStage(IntEnum):
    """What a pair is for. The numbers seed the coin: they never change."""

    CALIBRATION = 0
    SCREEN = 1
    CONFIRM = 2
    AUDIT = 3
    LAYOUT = 4
    ABLATION = 5


def proposal_rng(seed: int, number: int) -> np.random.Generator:
    """The generator that a strategy is asked with: a function of the campaign's seed and of the
    number of the proposal that is to be made.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number])))


def coin(seed: int, candidate_no: int, stage_no: int, pair_idx: int) -> Order:
    """The order of one pair, to be logged before its first run.

    One uniform of a PCG64 generator seeded by all four numbers; AB if it is below one half.
    candidate_no is 0 where no candidate is involved.

    Raises ValueError for a negative number.
    """
    sequence = np.random.SeedSequence([seed, candidate_no, stage_no, pair_idx])
    return "AB" if np.random.Generator(np.random.PCG64(sequence)).random() < 0.5 else "BA"


def log_ratio(a: float, b: float, direction: Direction) -> float:
    """The difference d of one pair: by how much candidate b beats incumbent a, as a natural log.

    ln(a / b) for a metric where lower is better, ln(b / a) where higher is. It is taken as a
    difference of logs so that swapping a and b changes the sign and nothing else: ties stay ties.

    Raises ValueError unless both are positive and finite, and for an unknown direction.
    """
    for name, value in (("a", a), ("b", b)):
        if not (math.isfinite(value) and value > 0):
            msg = f"{name} must be positive and finite, found {value!r} (a = {a!r}, b = {b!r})"
            raise ValueError(msg)
    if direction == "lower":
        return math.log(a) - math.log(b)
    if direction == "higher":
        return math.log(b) - math.log(a)
    msg = f"direction must be 'lower' or 'higher', found {direction!r}"
    raise ValueError(msg)


def percent(effect: float, direction: Direction = "lower") -> float:
    """How much better an effect (natural log) is, as a share: 0.03 is 3 % less of a cost.

    Where higher is better it is the share that is gained: 0.03 is 3 % more.
    """
    return -math.expm1(-effect) if direction == "lower" else math.expm1(effect)


def smallest_n(alpha: float) -> int:
    """The fewest pairs that can reach p <= alpha at all: the least n with 2**-n <= alpha.

    Raises ValueError unless 0 < alpha <= 1.
    """
    if not 0 < alpha <= 1:
        msg = f"alpha must be above 0 and at most 1, found {alpha!r}"
        raise ValueError(msg)
    return max(0, 1 - math.frexp(alpha)[1])


@cache
def signed_rank_survival(n: int) -> Floats:
    """The table S_n(w) = P(W* >= w) for w = 0 .. n(n+1)/2 + 1, where W* is the sum of those of the
    ranks 1..n whose fair coin falls on heads.

    n convolutions: for each rank r, half of the mass at w moves to w + r. Cached, read-only.
    """
    return rank_sum_survival(np.arange(1, n + 1))


def signed_rank_p(d: npt.ArrayLike, theta: float = 0.0) -> float:
    """The one-sided p-value of "the effect is at most theta", both natural logs.

    With x = d - theta and mid-ranks r of |x|: W is the sum of r over x > 0, and p = P(W* >= W)
    when every non-zero x gets its sign from a fair coin while the ranks stay. A zero adds half its
    rank to both sides. Exact with ties and zeros too, by convolution over doubled mid-ranks, which
    are integers (Pratt 1959); a normal distribution with the same mean and variance above
    EXACT_UP_TO. No differences: 1.

    Raises ValueError for a difference that is not finite.
    """
    x = _sample(d) - theta
    if not x.size:
        return 1.0
    distance = np.abs(x)
    order = distance.argsort()
    ascending = distance[order]
    if x.size <= EXACT_UP_TO and ascending[0] > 0 and (ascending[1:] > ascending[:-1]).all():
        positive = np.flatnonzero(x[order] > 0)
        return float(signed_rank_survival(x.size)[int(positive.sum()) + positive.size])
    _, group, size = np.unique(np.abs(x), return_inverse=True, return_counts=True)
    doubled = (2 * np.cumsum(size) - size + 1)[group]
    won = int(doubled[x > 0].sum())
    ranks = doubled[x != 0]
    if not ranks.size:
        return 1.0
    if x.size > EXACT_UP_TO:
        spread = math.sqrt(float(np.square(ranks, dtype=np.float64).sum())) / 2
        return 0.5 * math.erfc((won - float(ranks.sum()) / 2) / spread / math.sqrt(2))
    return float(rank_sum_survival(ranks)[won])


def best_case_p(d: npt.ArrayLike, n: int, theta: float = 0.0) -> float:
    """The smallest p that the first len(d) of n planned pairs can still end with.

    Where it exceeds the level, the test of all n pairs cannot pass any more, and stopping here
    changes no decision. Proof: without ties the n ranks are 1..n however the pairs to come turn
    out, so p grows with the rank sum of the negative x alone; that sum is never below what d has
    now, and stays there when all to come are positive and larger in size. It is reached, so nothing
    tighter exists.

    Ties make the ranks themselves vary, and a lucky tie can beat this by a little. If d has ties or
    zeros already, the answer is therefore the weaker 2**(m - n) for m negative x: turning any of
    those positive, in all 2**m ways, leaves a rank sum of the negative that is no larger. If only
    the pairs to come tie, stopping can at most cost a pass, never grant one, so the level holds.

    Raises ValueError for a difference that is not finite, and for n < len(d).
    """
    x = _sample(d) - theta
    k = x.size
    if n < k:
        msg = f"n must be at least the {k} differences there are, found {n}"
        raise ValueError(msg)
    size = np.abs(x)
    if n == k:
        return signed_rank_p(x)
    if np.unique(size[size > 0]).size < k:
        return 2.0 ** (np.count_nonzero(x < 0) - n)
    ranks = np.arange(1, k + 1) * np.sign(x[np.argsort(size)])
    return signed_rank_p(np.concatenate([ranks, np.arange(k + 1, n + 1)]))


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share that was seen in a sample of n, both above -1.

    Source: E. B. Wilson, JASA 22 (1927) 209.
    """
    z2 = Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def walsh_averages(d: npt.ArrayLike) -> Floats:
    """All n(n+1)/2 means (d_i + d_j) / 2 with i <= j, unsorted.

    Raises ValueError for a difference that is not finite.
    """
    x = _sample(d)
    first, second = _pairs(x.size)
    averages: Floats = (x[first] + x[second]) / 2
    return averages


def hodges_lehmann(d: npt.ArrayLike) -> float:
    """The estimate of the effect, a natural log: the median of the Walsh averages.

    Raises ValueError for no differences, or one that is not finite.
    """
    return _median(_not_empty(walsh_averages(d)))


def mad_sd(d: npt.ArrayLike) -> float:
    """A robust standard deviation: 1.4826 times the median distance from the median.

    Raises ValueError for no differences, or one that is not finite.
    """
    x = _not_empty(_sample(d))
    return 1.4826 * _median(np.abs(x - _median(x)))


def _median(x: Floats) -> float:
    """As `numpy.median`, which takes several times as long for a few dozen numbers."""
    ascending = np.sort(x)
    middle = x.size // 2
    if x.size % 2:
        return float(ascending[middle])
    return float((ascending[middle - 1] + ascending[middle]) / 2)


def estimate(d: npt.ArrayLike) -> tuple[float, float, float, float]:
    """The effect, both ends of its 95 % interval and a standard error, 1.96 of which make half of
    the interval, natural logs.

    The effect is `hodges_lehmann`'s and the interval that of `interval`. Where this is infinite,
    for two to five differences, it is the one of Student's t, wider by the square root of pi/3,
    which is what the estimate costs beside the mean if the differences are normal; of 20,000
    samples of normal, Laplace or t-distributed differences it covered 95 to 97 %. One difference
    alone has an infinite one.

    Raises ValueError for no differences, or one that is not finite.
    """
    x = _not_empty(_sample(d))
    value, (low, high) = hodges_lehmann(x), interval(x)
    if math.isfinite(high - low):
        return value, low, high, (high - low) / (2 * Z95)
    if x.size < 2:
        return value, low, high, math.inf
    se = few_pairs_factor(x.size) * float(np.std(x, ddof=1))
    return value, value - Z95 * se, value + Z95 * se, se


def few_pairs_factor(n: int) -> float:
    """What the standard deviation of 2 to 5 differences is multiplied with in `estimate`."""
    return _T95[n] / Z95 * math.sqrt(math.pi / 3 / n)


def interval(d: npt.ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The two-sided interval of the effect, natural logs: every theta not rejected by the test.

    With the M Walsh averages in order and c the least integer with S_n(c) <= (1 - level) / 2, it is
    [w_(M-c+1), w_c]. Too few differences (five or fewer at 0.95): (-inf, inf).

    Raises ValueError for a difference that is not finite, and unless 0 < level < 1.
    """
    return _bounds(d, (1 - _level(level)) / 2)


def lower_bound(d: npt.ArrayLike, level: float = 0.95) -> float:
    """The one-sided bound that the effect exceeds at this level; -inf with too few differences.

    Raises as `interval` does.
    """
    return _bounds(d, 1 - _level(level))[0]


def upper_bound(d: npt.ArrayLike, level: float = 0.95) -> float:
    """The one-sided bound that the effect stays below at this level; inf with too few differences.

    Raises as `interval` does.
    """
    return _bounds(d, 1 - _level(level))[1]


def _bounds(d: npt.ArrayLike, tail: float) -> tuple[float, float]:
    averages = np.sort(walsh_averages(d))
    c = _critical(np.asarray(d).size, tail)
    if c > averages.size:
        return -math.inf, math.inf
    return float(averages[-c]), float(averages[c - 1])


def critical_rank_sum(n: int, alpha: float) -> int | None:
    """The least w with P(W* >= w) <= alpha: the rank sum that the test rejects from.

    None if no outcome of n differences is as rare as that.
    """
    critical = _critical(n, alpha)
    return critical if critical <= n * (n + 1) // 2 else None


@lru_cache(maxsize=1024)
def _critical(n: int, tail: float) -> int:
    """The least w with P(W* >= w) <= tail."""
    if n > EXACT_UP_TO:
        spread = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return math.ceil(n * (n + 1) / 4 + spread * NormalDist().inv_cdf(1 - tail))
    return int(np.count_nonzero(signed_rank_survival(n) > tail))


def rank_sum_survival(ranks: npt.NDArray[np.int64]) -> Floats:
    """P(W* >= w) for w = 0 .. sum of the ranks + 1, W* the sum of a fair random subset of them."""
    mass = np.zeros(int(ranks.sum()) + 2)
    mass[0] = 1.0
    for rank in ranks:
        mass /= 2
        mass[rank:] += mass[:-rank]
    table: Floats = np.cumsum(mass[::-1])[::-1]
    table.flags.writeable = False
    return table


@lru_cache(maxsize=256)
def _pairs(n: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    return np.triu_indices(n)


def _sample(d: npt.ArrayLike) -> Floats:
    x = np.asarray(d, dtype=np.float64)
    if x.ndim != 1:
        msg = f"expected a flat sequence of differences, found {x.ndim} dimensions"
        raise ValueError(msg)
    if not np.isfinite(x).all():
        at = int(np.flatnonzero(~np.isfinite(x))[0])
        msg = f"difference {at} is not finite: {x[at]}"
        raise ValueError(msg)
    return x


def _not_empty(x: Floats) -> Floats:
    if not x.size:
        msg = "there are no differences"
        raise ValueError(msg)
    return x


def _level(level: float) -> float:
    if not 0 < level < 1:
        msg = f"level must be between 0 and 1, found {level!r}"
        raise ValueError(msg)
    return level
