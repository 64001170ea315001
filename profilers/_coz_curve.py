"""How a program's speed depends on the virtual speed-up of one line, and how sure that is.

Curtsinger and Berger, Coz: Finding Code that Counts with Causal Profiling (SOSP 2015), for the
program speed-up. coz draws the speed-ups at random, so what shuffling them among the experiments
of a line gives is the exact null distribution, whatever else the machine did meanwhile.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from attrs import evolve, frozen

from aiopt.stats import Floats

__all__ = ["Class", "Curve", "curve", "discoveries"]

Class = Literal["opportunity", "contention", "negligible", "inconclusive"]

MIN_VISITS = 5
"""Pooled visits at one speed-up, under which it says nothing."""

MIN_BASELINE, MIN_OTHERS, MIN_SPEEDUPS, MIN_LARGEST = 5, 10, 3, 0.5
"""What a class needs: experiments at zero, others, different speed-ups, and the largest one."""

LEVEL = 0.005
"""Of the one-sided randomisation test."""

FALSE_DISCOVERIES = 0.05
"""Share of the opportunities and contentions of a profile that may be none (Benjamini-Hochberg)."""

NEGLIGIBLE = 0.05
"""A slope whose whole interval is within this of zero does not matter."""

_CELLS = 1 << 20
"""Numbers that one step of the resampling works on; what bounds its memory."""

Ints = npt.NDArray[np.int64]


@frozen(kw_only=True)
class Curve:
    """Shares of the program's time that are saved; 0.3 is 30 % less."""

    baseline: int
    """Experiments at speed-up zero."""
    others: int
    percents: tuple[int, ...] = ()
    """Speed-ups with enough visits, without zero."""
    deltas: tuple[float, ...] = ()
    bounds: tuple[tuple[float, float] | None, ...] = ()
    """Intervals of the deltas, as that of the slope; None for one that has none."""
    slope: float | None = None
    """Best linear estimate of what a line that takes no time saves. None without a baseline."""
    low: float | None = None
    high: float | None = None
    """Interval of the slope: 2.5 and 97.5 % of bootstrap replicates over the experiments."""
    p_better: float = 1.0
    p_worse: float = 1.0

    @property
    def max_speedup(self) -> float:
        """Biased upwards by noise: nothing may be ranked by it."""
        return max(0.0, *self.deltas) if self.deltas else 0.0

    @property
    def area(self) -> float:
        """Mean saving over the speed-ups from 0 to the largest."""
        return self._means()[-1] if self.percents else 0.0

    @property
    def impact(self) -> float:
        """The largest mean saving over the speed-ups from 0 to any."""
        return max(0.0, *self._means()) if self.percents else 0.0

    def _means(self) -> list[float]:
        x = np.array((0, *self.percents)) / 100
        y = np.array((0.0, *self.deltas))
        integral = np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2)
        return [float(mean) for mean in integral / x[1:]]

    @property
    def saturation(self) -> float | None:
        """The smallest speed-up with 90 % of the largest saving; more of it brings little."""
        most = self.max_speedup
        if most <= 0:
            return None
        return (
            next(s for s, d in zip(self.percents, self.deltas, strict=True) if d >= 0.9 * most)
            / 100
        )

    @property
    def too_few(self) -> str:
        """What is missing for a class; empty if nothing is."""
        largest = max(self.percents, default=0) / 100
        if self.baseline < MIN_BASELINE:
            return f"{self.baseline} experiments without a speed-up, {MIN_BASELINE} needed"
        if self.others < MIN_OTHERS:
            return f"{self.others} experiments with a speed-up, {MIN_OTHERS} needed"
        if len(self.percents) < MIN_SPEEDUPS:
            return f"{len(self.percents)} different speed-ups, {MIN_SPEEDUPS} needed"
        if largest < MIN_LARGEST:
            return f"speed-ups up to {largest:.0%} only, {MIN_LARGEST:.0%} needed"
        return "too few visits without a speed-up" if self.slope is None else ""

    def classify(self, level: float) -> Class:
        """What the curve says, at a level that takes the other curves into account."""
        if self.too_few or self.low is None or self.high is None:
            return "inconclusive"
        level = min(level, LEVEL)
        if self.p_better <= level and self.low > 0:
            return "opportunity"
        if self.p_worse <= level and self.high < 0:
            return "contention"
        if self.low >= -NEGLIGIBLE and self.high <= NEGLIGIBLE:
            return "negligible"
        return "inconclusive"


def curve(
    visits: Iterable[tuple[int, float, int]], *, seed: int, replicates: int, shuffles: int
) -> Curve:
    """The curve of one line and progress point from (percent, cost, visits) of each experiment.

    The order of the experiments does not matter.
    """
    rows = sorted(visits)
    percent = np.array([row[0] for row in rows], dtype=np.int64)
    cost = np.array([row[1] for row in rows], dtype=np.float64)
    count = np.array([row[2] for row in rows], dtype=np.float64)
    baseline = int((percent == 0).sum())
    found = Curve(baseline=baseline, others=len(rows) - baseline)
    levels = np.union1d([0], percent)
    label = np.searchsorted(levels, percent).astype(np.int64)
    costs, counts = _pool(label[None], cost[None], count[None], levels.size)
    observed = float(_slopes(costs, counts, levels)[0])
    measured = (counts[0] >= MIN_VISITS) & (levels > 0)
    percents = tuple(int(each) for each in levels[measured])
    if not np.isfinite(observed):
        return evolve(found, percents=percents)
    period = costs[0, 0] / counts[0, 0]
    deltas = tuple(float(1 - costs[0, i] / counts[0, i] / period) for i in np.flatnonzero(measured))
    found = evolve(found, percents=percents, deltas=deltas, slope=observed)
    if found.too_few:
        return found
    coin = np.random.default_rng(seed)
    slopes, savings = [np.zeros(0)], [np.zeros((0, len(percents)))]
    for size in _steps(replicates, len(rows)):
        draw = coin.integers(len(rows), size=(size, len(rows)))
        pooled = _pool(label[draw], cost[draw], count[draw], levels.size)
        slopes.append(_slopes(*pooled, levels))
        savings.append(_deltas(*pooled)[:, measured])
    low, high = _interval(np.concatenate(slopes)) or (None, None)
    better = worse = 1
    # Equal partitions must tie, however their sums were rounded.
    tie = 1e-9 * max(1.0, abs(observed))
    for size in _steps(shuffles, len(rows)):
        shape = (size, len(rows))
        shuffled = coin.permuted(np.broadcast_to(label, shape), axis=1)
        pooled = _pool(
            shuffled, np.broadcast_to(cost, shape), np.broadcast_to(count, shape), levels.size
        )
        null = _slopes(*pooled, levels)
        # One without a result speaks for no effect.
        better += int((~(null < observed - tie)).sum())
        worse += int((~(null > observed + tie)).sum())
    return evolve(
        found,
        bounds=tuple(map(_interval, np.concatenate(savings).T)),
        low=low,
        high=high,
        p_better=better / (shuffles + 1),
        p_worse=worse / (shuffles + 1),
    )


def discoveries(curves: Sequence[Curve]) -> float:
    """The largest p that controls the false discovery rate over all curves, both sides of each."""
    p = sorted(p for each in curves if not each.too_few for p in (each.p_better, each.p_worse))
    passing = [each for rank, each in enumerate(p, 1) if each <= FALSE_DISCOVERIES * rank / len(p)]
    return max(passing, default=0.0)


def _pool(labels: Ints, cost: Floats, count: Floats, levels: int) -> tuple[Floats, Floats]:
    """Sums by speed-up, one row for each row."""
    rows = labels.shape[0]
    cell = (labels + levels * np.arange(rows)[:, None]).ravel()
    costs = np.bincount(cell, weights=cost.ravel(), minlength=rows * levels)
    counts = np.bincount(cell, weights=count.ravel(), minlength=rows * levels)
    shape = (rows, levels)
    return costs.astype(np.float64).reshape(shape), counts.astype(np.float64).reshape(shape)


def _interval(replicates: Floats) -> tuple[float, float] | None:
    """Where too many have no result, as those without a baseline, there is none."""
    valid = replicates[np.isfinite(replicates)]
    if not valid.size or valid.size < 0.95 * replicates.size:
        return None
    low, high = np.quantile(valid, (0.025, 0.975))
    return float(low), float(high)


def _deltas(costs: Floats, counts: Floats) -> Floats:
    """The share of the time that is saved, by speed-up; NaN where there is no baseline."""
    with np.errstate(all="ignore"):
        period = np.where(counts >= MIN_VISITS, costs / counts, np.nan)
        return np.asarray(1 - period / np.where(period[:, :1] > 0, period[:, :1], np.nan))


def _slopes(costs: Floats, counts: Floats, levels: Ints) -> Floats:
    """Through the origin, weighted by visits; NaN where there is no baseline or nothing else."""
    s, delta = levels / 100, _deltas(costs, counts)
    with np.errstate(all="ignore"):
        weight = np.where(np.isfinite(delta) & (s > 0), counts, 0.0) * s
        top = (weight * np.where(np.isfinite(delta), delta, 0.0)).sum(axis=1)
        return np.asarray(top / (weight * s).sum(axis=1), dtype=np.float64)


def _steps(total: int, width: int) -> Iterator[int]:
    step = max(1, _CELLS // max(1, width))
    while total > 0:
        yield min(step, total)
        total -= step
