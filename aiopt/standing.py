"""Who is ahead where measurements have errors: for rankings and tournaments."""

import math
from collections.abc import Sequence

from attrs import frozen

from aiopt.stats import Z95

__all__ = ["ONE_SIDED", "Objective", "Standing", "best_first", "tied_with"]

ONE_SIDED = 1.6448536269514722
"""One-sided 95 % quantile of the normal distribution."""


@frozen(kw_only=True)
class Objective:
    """One number by which candidates are compared; more is better."""

    value: float
    se: float
    """Standard error of `value`."""
    step_se: float
    """Standard error of what the candidate itself adds to its incumbent."""
    tolerance: float = 0.0
    """A smaller difference does not matter."""

    @property
    def sure(self) -> float:
        """The lower 95 % confidence bound."""
        return self.value - ONE_SIDED * self.se if self.se else self.value

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.value - Z95 * self.se if self.se else self.value

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.value + Z95 * self.se if self.se else self.value


@frozen(kw_only=True)
class Standing:
    """Where a candidate stands: objectives, the most important first, the same ones for all that
    are compared.
    """

    objectives: tuple[Objective, ...]
    incumbent: str
    """Beside which it was measured."""

    def is_ahead(self, other: "Standing", z: float) -> bool:
        """Whether it is better by more than the tolerance and `z` standard errors of the
        difference in the first objective in which the two differ by that.

        Two that were measured beside the same incumbent differ by their own steps alone. Others
        are taken as independent, which overstates the error where their incumbents have steps in
        common.
        """
        same = self.incumbent == other.incumbent
        for mine, theirs in zip(self.objectives, other.objectives, strict=True):
            errors = (mine.step_se, theirs.step_se) if same else (mine.se, theirs.se)
            reach = mine.tolerance + z * math.hypot(*errors)
            if mine.value - theirs.value > reach:
                return True
            if theirs.value - mine.value > reach:
                return False
        return False


def best_first(standings: Sequence[Standing], *, sure: bool = True) -> list[int]:
    """Their places in the order from the best to the worst, the earlier one first where they are
    equal: of one objective by its lower confidence bound, or without `sure` by its estimate.

    Of several objectives the first decides; those whose distance from the best one is within the
    tolerance and the error are taken together and ordered by the next objective, then the rest in
    the same way. So "tied" cannot creep from each to the next, as it would if neighbours were
    compared.
    """
    places = list(range(len(standings)))
    if not standings or len(standings[0].objectives) == 1:

        def key(place: int) -> tuple[float, float]:
            (objective,) = standings[place].objectives
            first = objective.sure if sure else objective.value
            return -first, -objective.value

        return sorted(places, key=key)
    return _grouped(standings, places, 0)


def _grouped(standings: Sequence[Standing], places: list[int], level: int) -> list[int]:
    """These places, by the objectives from this level on."""

    def key(place: int) -> tuple[float, float, float, str]:
        objective = standings[place].objectives[level]
        return -objective.value, objective.se, objective.step_se, standings[place].incumbent

    by_value = sorted(places, key=key)
    if level + 1 == len(standings[0].objectives):
        return by_value
    found: list[int] = []
    while by_value:
        best = _only(standings[by_value[0]], level)
        ahead = {p: best.is_ahead(_only(standings[p], level), Z95) for p in by_value}
        found += _grouped(standings, sorted(p for p in by_value if not ahead[p]), level + 1)
        by_value = [place for place in by_value if ahead[place]]
    return found


def _only(standing: Standing, level: int) -> Standing:
    return Standing(objectives=(standing.objectives[level],), incumbent=standing.incumbent)


def tied_with(standings: Sequence[Standing]) -> list[int]:
    """Of each in an order from the best the first place (0 is the best) whose holder is not ahead
    of it with 95 % confidence: its own, if all before it are.

    Each pair is looked at alone, so of many that are equal one in forty is told apart by chance.
    """
    return [
        next(first for first in range(place + 1) if not standings[first].is_ahead(one, Z95))
        for place, one in enumerate(standings)
    ]
