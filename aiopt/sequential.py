"""One stage of a sequential test: planned looks, the level that each may spend, when to give up.

A stage of n pairs is looked at after `first` pairs, then after half as many again each time, at n,
and once more after an extension. Each look may use what the spending function allows of the stage's
level and earlier looks have not used (0.7 alpha (k/n)^2 up to n, all of it at the extension). The
levels of all looks sum to at most alpha, so whatever the dependence between the looks, a candidate
without effect passes with a probability of at most alpha. Giving up costs no level.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from attrs import frozen

from aiopt.stats import Bools, Floats, hodges_lehmann, mad_sd, signed_rank_p

__all__ = ["Look", "Stage", "StageResult", "is_futile", "looks_at", "spending", "take"]

_PLANNED_SHARE = 0.7
_GROWTH = 1.5
_EXTENSION = 1.6
_LEAST_EXTENSION = 8


@frozen
class Stage:
    """A stage as it was planned. Effects are natural logs."""

    n: int
    alpha: float
    first: int
    delta0: float
    """Passing rejects "better by at most this"."""
    mei: float
    """Giving up means that an effect this large has become implausible."""
    sd_pair: float
    """From the calibration: a floor for the spread that few pairs happen to show."""


@frozen
class Look:
    """One look at the first `k` pairs."""

    k: int
    p: float
    level: float
    used: float
    effect: float
    sd: float
    action: Literal["pass", "continue", "futile", "cap"]


@frozen
class StageResult:
    """How far a stage has come with the pairs that there are."""

    looks: tuple[Look, ...]
    next_look: int | None
    """Pairs at the look that comes next; None if the stage is over."""

    @property
    def passed(self) -> bool:
        return bool(self.looks) and self.looks[-1].action == "pass"

    @property
    def capped(self) -> bool:
        """Ended undecided, with all the pairs that were planned."""
        return bool(self.looks) and self.looks[-1].action == "cap"

    @property
    def ended_at(self) -> int | None:
        """Pairs at the look that ended it; None while it is open."""
        return self.looks[-1].k if self.next_look is None else None


@lru_cache(maxsize=1024)
def looks_at(n: int, first: int) -> tuple[int, ...]:
    """The numbers of pairs at which a stage is looked at; the last one is the extension."""
    looks = [min(first, n)]
    while looks[-1] < n:
        looks.append(min(n, math.ceil(_GROWTH * looks[-1])))
    return (*looks, max(n + _LEAST_EXTENSION, math.ceil(_EXTENSION * n)))


def spending(stage: Stage, k: int, used: float) -> float:
    """The level that a look at k pairs may use when earlier ones have used this much."""
    if k > stage.n:
        return stage.alpha - used
    return max(0.0, _PLANNED_SHARE * stage.alpha * (k / stage.n) ** 2 - used)


def take(stage: Stage, d: Sequence[float]) -> StageResult:
    """Every look that these differences allow, up to the one that ends the stage.

    What comes after the deciding look is ignored, so more pairs never change a decision.
    """
    planned = looks_at(stage.n, stage.first)
    looks: list[Look] = []
    while not looks or looks[-1].action == "continue":  # the last one never says so
        k = planned[len(looks)]
        if len(d) < k:
            return StageResult(tuple(looks), k)
        looks.append(_look(stage, d[:k], looks[-1].used if looks else 0.0))
    return StageResult(tuple(looks), None)


def _look(stage: Stage, d: Sequence[float], used: float) -> Look:
    k = len(d)
    level = spending(stage, k, used)
    p = signed_rank_p(d, stage.delta0)
    effect, sd = hodges_lehmann(d), mad_sd(d)
    possible = 2.0**-k <= level
    if possible and p <= level:
        return Look(k, p, level, used + level, effect, sd, "pass")
    used += level if possible else 0.0
    action: Literal["continue", "futile", "cap"] = "continue"
    if is_futile(stage, k, *np.array([effect, sd, p])):
        action = "futile"
    elif k > stage.n:
        action = "cap"
    return Look(k, p, level if possible else 0.0, used, effect, sd, action)


def is_futile(stage: Stage, k: int, effect: Floats, sd: Floats, p: Floats) -> Bools:
    """Whether a look at `k` pairs says that the stage will not pass: of one candidate, or of many,
    an entry each.
    """
    precision = math.sqrt(k) / np.maximum(stage.sd_pair, sd)
    futile = (effect - stage.mei) * precision < (-2.8 if k < 6 else -2.3)
    if k >= 0.45 * stage.n:
        futile |= (effect - stage.delta0) * precision < 0.3
    if k >= stage.n:
        futile |= p > 0.25
    return np.asarray(futile)
