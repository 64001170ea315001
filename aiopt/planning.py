"""Calibration: what the incumbent against itself says of the noise, and the plan that follows.

The plan is found by resampling: from the symmetrised differences of the calibration's pairs,
samples of n are drawn and shifted by the effect that is aimed at, until the share of samples which
the signed-rank test rejects reaches the power. It is a pure function of the calibration.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from attrs import frozen

from aiopt.stats import Floats, critical_rank_sum, mad_sd

__all__ = [
    "LARGEST",
    "Noise",
    "Plan",
    "autocorrelation",
    "layout_sd",
    "noise_of",
    "order_effect_p",
    "pairs_to_prove",
    "plan_guard",
    "plan_stages",
    "replan_confirmation",
    "sd_of_pairs",
    "warmed_up",
]

_SIZES = (5, 6, 7, 8, 9, 10, 12, 14, 16, 19, 22, 26, 30, 35, 40, 48, 56, 64, 80, 100, 120, 160, 200)
LARGEST = _SIZES[-1]
"""The most pairs that are ever planned for."""

_SEED = 20240229
"""Belongs to the rule's version: another seed is another plan."""

_ROUNDING = 1e-12
_SD_FLOOR = 1e-4
_LARGEST_EFFECT = 1.5
_SCREEN_INFLATION = 1.1
_CONFIRM_INFLATION = 1.2
_MEDIAN_SPREAD = 1.2533
"""The standard deviation of a median in those of a mean, for a normal sample."""


@frozen
class Plan:
    """How many pairs the two stages of one objective take. Effects are natural logs."""

    n1: int
    n2: int
    mei_eff: float
    """The smallest effect that can be proved with the power that was asked for."""
    reached: bool
    """False: no effect up to 1.5 could be, and the plan is the best that the cap allows."""


@frozen
class Noise:
    """What calibration pairs say of the noise of one objective."""

    pairs: int
    sd_pair: float
    autocorrelation: float
    order_effect_p: float
    warmed_up: bool


def noise_of(
    d: Sequence[float], first_slower: Sequence[bool | None], log_costs: Sequence[float]
) -> Noise:
    """The noise in calibration pairs.

    Args:
        d: log ratios of the pairs.
        first_slower: for each pair whether the run that was made first cost more; None if equal.
        log_costs: ln(cost) of every run, in the order of time.
    """
    return Noise(
        pairs=len(d),
        sd_pair=sd_of_pairs(d),
        autocorrelation=autocorrelation(log_costs),
        order_effect_p=order_effect_p(first_slower),
        warmed_up=warmed_up(log_costs),
    )


def sd_of_pairs(d: Sequence[float]) -> float:
    """Robust standard deviation of the log ratio of one pair; never quite 0."""
    return max(_SD_FLOOR, mad_sd(d))


def autocorrelation(values: Sequence[float]) -> float:
    """From each value to the next (lag 1); 0 for constant values, and for fewer than three."""
    x = np.asarray(values, dtype=np.float64)
    if x.size < 3 or np.ptp(x) <= _ROUNDING * np.abs(x).max():
        return 0.0
    x = (x - x.mean()) / np.ptp(x)  # so that no square of a tiny difference is 0
    return float(x[:-1] @ x[1:] / (x @ x))


def order_effect_p(first_slower: Sequence[bool | None]) -> float:
    """Two-sided sign test of "which run of a pair is the slower does not depend on the order"."""
    clear = [slower for slower in first_slower if slower is not None]
    n, k = len(clear), sum(clear)
    tail = float(sum(math.comb(n, i) for i in range(max(k, n - k), n + 1)) / 2**n)
    return min(1.0, 2 * tail)


def warmed_up(log_costs: Sequence[float]) -> bool:
    """Whether the first three runs are like the rest: within three robust standard deviations."""
    if len(log_costs) < 6:
        return True
    first, rest = np.median(log_costs[:3]), np.median(log_costs[3:])
    return bool(abs(first - rest) <= 3 * max(_SD_FLOOR, mad_sd(log_costs)))


def layout_sd(locations: Sequence[float], sd_pair: float, pairs: int) -> float:
    """How much neutral rebuilds differ, beyond what the noise of their pairs explains.

    Args:
        locations: the median log ratio of each rebuild against the plain build.
        sd_pair: of one pair.
        pairs: behind each of the locations.
    """
    if len(locations) < 2:
        return 0.0
    noise = (_MEDIAN_SPREAD * sd_pair) ** 2 / pairs
    return math.sqrt(max(0.0, float(np.var(locations, ddof=1)) - noise))


def plan_stages(
    d: Sequence[float],
    *,
    mei: float,
    delta0: float,
    alpha1: float,
    alpha2: float,
    power: float,
    cap: int,
    boot: int,
) -> Plan:
    """Screen and confirmation at the smallest effect, from `mei` up, that the cap allows.

    Both sizes are raised by what the share of the level costs that is kept for the extension.
    """
    pool = _pool(d)
    mei_eff = mei
    raw1, reached = _pairs_needed(pool, mei_eff - delta0, alpha1, power, cap, boot)
    while not reached and mei_eff <= _LARGEST_EFFECT:
        mei_eff *= 1.15
        raw1, reached = _pairs_needed(pool, mei_eff - delta0, alpha1, power, cap, boot)
    n2 = replan_confirmation(
        d, shift=mei_eff - delta0, alpha2=alpha2, power=power, cap=cap, boot=boot
    )
    return Plan(math.ceil(_SCREEN_INFLATION * raw1), n2, mei_eff, reached)


def replan_confirmation(
    d: Sequence[float], *, shift: float, alpha2: float, power: float, cap: int, boot: int
) -> int:
    """Pairs of the confirmation at another level."""
    raw, _ = _pairs_needed(_pool(d), shift, alpha2, power, int(1.5 * cap), boot)
    return math.ceil(_CONFIRM_INFLATION * raw)


def plan_guard(
    d: Sequence[float], *, margin: float, alpha: float, power: float, cap: int, boot: int
) -> tuple[int, bool]:
    """Pairs that show "not worse by the margin (natural log)" of a candidate that changes nothing;
    and whether the cap allows as many.
    """
    return _pairs_needed(_pool(d), margin, alpha, power, cap, boot)


def pairs_to_prove(plan: Plan, mei: float, delta0: float) -> int:
    """Pairs that a proof of `mei` would take: both stages, in the ratio of the squared effects."""
    ratio = (plan.mei_eff - delta0) / (mei - delta0)
    return math.ceil(round((plan.n1 + plan.n2) * ratio**2, 6))


def _pool(d: Sequence[float]) -> tuple[float, ...]:
    return (*d, *(-x for x in d))


@lru_cache(maxsize=4096)
def _pairs_needed(
    pool: tuple[float, ...], shift: float, alpha: float, power: float, cap: int, boot: int
) -> tuple[int, bool]:
    """The fewest pairs with which the share of rejections reaches the power;
    or the cap, and False.
    """
    rng = np.random.Generator(np.random.PCG64(_SEED))
    values: Floats = np.asarray(pool, dtype=np.float64) + shift
    for n in _SIZES:
        if n > cap:
            break
        critical = critical_rank_sum(n, alpha)
        if critical is None:
            continue
        sample = values[rng.integers(values.size, size=(boot, n))]
        order = np.argsort(np.abs(sample), axis=1)
        positive = np.take_along_axis(sample, order, axis=1) > 0
        won = positive @ np.arange(1, n + 1)
        if np.count_nonzero(won >= critical) >= power * boot:
            return n, True
    return cap, False
