"""How other tools decide whether a change is kept, for comparison: `COMPARISONS`.

Each is a pure function of a few costs, written from what its project says; nothing of theirs is
run. Together with the `design` in which that project makes its runs, they can be scored on the
noise that our own rules are scored on, or asked about runs that were logged long ago.

They answer keep or discard for one candidate at a time, and none of them knows of error rates over
a campaign. Nothing here is meant for a campaign whose result matters.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt
from attrs import Attribute, field, frozen

from aiopt.stats import Floats

__all__ = [
    "COMPARISONS",
    "Comparison",
    "ComparisonRule",
    "Design",
    "mann_whitney_p",
]

Design = Literal["stored", "blocks", "pairs"]
"""How the runs are made. "stored": those of the candidate only, against a score that was stored
when the incumbent was measured. "blocks": all of the incumbent, then all of the candidate.
"pairs": one of each in turn, in random order.
"""

_EXACT_UP_TO = 50
"""The most runs of an arm whose rank sums are counted; a normal distribution beyond."""


@frozen
class Comparison:
    """What another tool would do."""

    keep: bool
    effect: float
    """What it would claim: the natural log of the cost ratio a / b, positive if b is better."""
    p: float | None = None
    """Of its test, if it makes one."""


def _enough(rule: "ComparisonRule", attribute: "Attribute[int]", runs: int) -> None:
    if runs < rule.least:
        msg = f"{rule.id}: at least {rule.least} runs of each arm, found {runs}"
        raise ValueError(msg)


@frozen(kw_only=True)
class ComparisonRule:
    """The decision rule of another tool. `attrs.evolve` it for other numbers or another design.

    Raises ValueError for fewer runs than it can work with.
    """

    id: str
    what: str
    source: str
    """Project and file that the rule was read in."""
    least: int = 1
    """The fewest runs of each arm for which it means anything."""
    runs: int = field(validator=_enough)
    """Of each arm, for one candidate."""
    design: Design
    compare: Callable[[Floats, Floats], Comparison]
    """The rule itself, for costs that `judge` has looked at."""

    def judge(self, a: Sequence[float], b: Sequence[float]) -> Comparison:
        """Keep candidate b in place of incumbent a?

        Args:
            a: costs (lower is better) of `runs` runs of the incumbent, in any unit; in a "stored"
                design what was stored.
            b: those of the candidate.

        Raises:
            ValueError: another number of runs, or a cost that is not positive and finite.
        """
        return self.compare(self._costs("a", a), self._costs("b", b))

    def _costs(self, arm: str, values: Sequence[float]) -> Floats:
        costs = np.asarray(values, dtype=np.float64)
        if costs.shape != (self.runs,):
            msg = f"{self.id}: expected {self.runs} runs of {arm}, found {len(values)}"
            raise ValueError(msg)
        wrong = costs[~(np.isfinite(costs) & (costs > 0))]
        if wrong.size:
            msg = (
                f"{self.id}: a cost must be positive and finite, found {float(wrong[0])!r} in {arm}"
            )
            raise ValueError(msg)
        return costs


# ---- the rules ----


def _log_ratio(a: np.floating, b: np.floating) -> float:
    return math.log(a) - math.log(b)


def _by_means(a: Floats, b: Floats) -> Comparison:
    mean_a, mean_b = a.mean(), b.mean()
    return Comparison(bool(mean_b < mean_a), _log_ratio(mean_a, mean_b))


def _without_overlap(a: Floats, b: Floats) -> Comparison:
    """Which standard deviation is meant is not said: the larger one, which keeps less."""
    means = _by_means(a, b)
    spread = max(a.std(ddof=1), b.std(ddof=1))
    keep = bool(a.mean() - b.mean() > spread and b.max() < a.min())
    return Comparison(keep, means.effect)


def _by_medians(a: Floats, b: Floats) -> Comparison:
    median_a, median_b = np.median(a), np.median(b)
    p = mann_whitney_p(a, b)
    return Comparison(bool(median_b < median_a and p < 0.05), _log_ratio(median_a, median_b), p)


COMPARISONS: Mapping[str, ComparisonRule] = MappingProxyType(
    {
        rule.id: rule
        for rule in (
            ComparisonRule(
                id="single-run",
                what="one run, kept if it beats the stored score",
                source="karpathy/autoresearch program.md; "
                "algorithmicsuperintelligence/openevolve openevolve/database.py",
                runs=1,
                design="stored",
                compare=_by_means,
            ),
            ComparisonRule(
                id="mean-of-n",
                what="the mean of three runs against the mean of three, kept if it is better",
                source="common practice",
                runs=3,
                design="blocks",
                compare=_by_means,
            ),
            ComparisonRule(
                id="no-overlap",
                what="three runs each, kept if the mean is better by more than one standard "
                "deviation and the ranges do not overlap",
                source="damahua/autooptimization program.md",
                least=2,
                runs=3,
                design="blocks",
                compare=_without_overlap,
            ),
            ComparisonRule(
                id="benchstat",
                what="ten runs each, kept if the median is better and a two-sided Mann-Whitney "
                "test says p < 0.05",
                source="golang/perf benchmath/",
                runs=10,
                design="blocks",
                compare=_by_medians,
            ),
        )
    }
)
"""Every rule, by id."""


# ---- the test ----


def mann_whitney_p(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """The two-sided p-value of "a and b have one distribution", from the sum of the ranks of a.

    Exact with ties too, by counting the ways to choose the mid-ranks of a from all of them (Mann
    and Whitney 1947); beyond 50 values on a side a normal distribution with the variance that the
    ties leave, corrected for continuity.

    Raises ValueError if one of them is empty.
    """
    values_a, values_b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    n_a, n_b = values_a.size, values_b.size
    if not (n_a and n_b):
        msg = f"expected values on both sides, found {n_a} and {n_b}"
        raise ValueError(msg)
    _, group, size = np.unique(
        np.concatenate([values_a, values_b]), return_inverse=True, return_counts=True
    )
    doubled = (2 * np.cumsum(size) - size + 1)[group]
    sum_a = int(doubled[:n_a].sum())
    if max(n_a, n_b) > _EXACT_UP_TO:
        return _normal_p(sum_a, doubled, n_a, n_b)
    at_most, at_least = _tails(tuple(sorted(doubled.tolist())), n_a)
    return min(1.0, 2 * float(min(at_most[sum_a], at_least[sum_a])))


def _normal_p(sum_a: int, doubled: npt.NDArray[np.int64], n_a: int, n_b: int) -> float:
    n = n_a + n_b
    variance = n_a * n_b / (n - 1) * float(np.var(doubled))
    if not variance:
        return 1.0
    # Doubled, so a step of one rank sum is two.
    distance = max(0.0, abs(sum_a - n_a * (n + 1)) - 1)
    return min(1.0, math.erfc(distance / math.sqrt(2 * variance)))


@lru_cache(maxsize=256)
def _tails(ranks: tuple[int, ...], chosen: int) -> tuple[Floats, Floats]:
    """P(sum <= s) and P(sum >= s) for s = 0 .. of the sum of a random choice of these ranks."""
    ways = np.zeros((chosen + 1, sum(ranks) + 1))
    ways[0, 0] = 1.0
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, :-rank]
    mass = ways[chosen] / ways[chosen].sum()
    return np.cumsum(mass), np.cumsum(mass[::-1])[::-1]
