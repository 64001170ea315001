"""Which conclusions hold whatever the weights are: the same question over a grid of them."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from attrs import field, frozen

from aiopt.errors import ConfigError
from aiopt.rescoring import Rescored
from aiopt.stats import Z95

__all__ = ["MOST", "FirstPlace", "OrderRow", "Swing", "WhatIf", "grid_points", "what_if"]

MOST = 500
"""Points of a grid; each is a whole ranking."""
_STEPS = 10

Weights = Mapping[str, float]


@frozen(kw_only=True)
class FirstPlace:
    """A candidate that is first somewhere."""

    experiment: str
    patch: str
    points: int
    """At how many points."""
    where: Mapping[str, tuple[float, float]]
    """Between which weights those lie."""


@frozen(kw_only=True)
class Swing:
    """A decision that depends on the weights."""

    experiment: str
    patch: str
    logged: str
    kept: int
    """At how many points the candidate would have been kept."""
    where: Mapping[str, tuple[float, float]]
    """Between which weights it would be other than it was."""


@frozen(kw_only=True)
class OrderRow:
    """Two of the first candidates."""

    better: str
    worse: str
    points: int
    """At how many points the first is before the second."""
    told_apart: int
    """At how many of those the measurements prove it, with 95 % confidence."""


@frozen(kw_only=True)
class WhatIf:
    """What the weights decide, and what they do not."""

    campaign: str
    points: tuple[Weights, ...]
    """Each adds up to 1."""
    first: tuple[FirstPlace, ...]
    """The one that is first most often first; none if nothing can be ranked."""
    decisions: int
    swings: tuple[Swing, ...]
    """Those that are other than they were at one point at least."""
    order: tuple[OrderRow, ...]
    """Every two of the first ones under equal weights."""
    robust: bool = field(init=False)
    """Whether one candidate is first everywhere and no decision swings."""

    @robust.default
    def _robust(self) -> bool:
        return len(self.first) <= 1 and not self.swings


def grid_points(axes: Mapping[str, Sequence[float] | None]) -> tuple[Weights, ...]:
    """All combinations of the axes' weights, scaled to a sum of 1 and each once. Metrics without
    numbers (None): in tenths, all that add up to 1.

    Raises:
        ConfigError: too many, none at all, or some axes with numbers and some without.
    """
    if any(axis is None for axis in axes.values()):
        if not all(axis is None for axis in axes.values()):
            problem = "either every metric with its weights, or none"
            raise ConfigError("what-if", [("", problem)])
        tenths = itertools.product(range(_STEPS + 1), repeat=len(axes))
        found: Iterator[Sequence[float]] = (each for each in tenths if sum(each) == _STEPS)
    else:
        found = itertools.product(*(axis for axis in axes.values() if axis is not None))
    points: dict[tuple[float, ...], None] = {}
    for each in found:
        total = sum(map(abs, each))
        if total:
            points[tuple(round(weight / total, 9) for weight in each)] = None
        if len(points) > MOST:
            problem = f"more than {MOST} points: take fewer metrics or weights"
            raise ConfigError("what-if", [("", problem)])
    if not points:
        raise ConfigError("what-if", [("", "no point has a weight that is not 0")])
    return tuple(dict(zip(axes, point, strict=True)) for point in points)


def what_if(
    rescore: Callable[[Weights], Rescored],
    points: Sequence[Weights],
    *,
    top: int = 5,
    progress: Callable[[int], None] = lambda done: None,
) -> WhatIf:
    """Ask `rescore` at every point, and at equal weights for the candidates whose order is looked
    at; `progress` is told how many were asked.
    """
    equal = rescore(dict.fromkeys(points[0], 1 / len(points[0])))
    pairs = list(itertools.combinations([r.experiment for r in equal.ranking[:top]], 2))
    firsts = dict[str, list[Weights]]()
    flips = dict[str, list[Weights]]()
    kept, before, apart = Counter[str](), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for done, point in enumerate(points, 1):
        result = rescore({name: weight for name, weight in point.items() if weight})
        if result.ranking:
            firsts.setdefault(result.ranking[0].experiment, []).append(point)
        for decision in result.decisions:
            kept[decision.experiment] += decision.replayed == "keep"
            if decision.flipped:
                flips.setdefault(decision.experiment, []).append(point)
        places = {ranked.experiment: place for place, ranked in enumerate(result.ranking)}
        for better, worse in pairs:
            if better in places and worse in places and places[better] < places[worse]:
                before[better, worse] += 1
                one, other = (result.ranking[places[each]] for each in (better, worse))
                apart[better, worse] += one.standing.is_ahead(other.standing, Z95)
        progress(done)
    patches = {ranked.experiment: ranked.patch for ranked in equal.ranking}
    patches |= {decision.experiment: decision.patch for decision in equal.decisions}
    return WhatIf(
        campaign=equal.campaign,
        points=tuple(points),
        first=tuple(
            FirstPlace(
                experiment=experiment,
                patch=patches[experiment],
                points=len(where),
                where=_ranges(where),
            )
            for experiment, where in sorted(firsts.items(), key=lambda each: -len(each[1]))
        ),
        decisions=len(equal.decisions),
        swings=tuple(
            Swing(
                experiment=decision.experiment,
                patch=decision.patch,
                logged=decision.logged,
                kept=kept[decision.experiment],
                where=_ranges(flips[decision.experiment]),
            )
            for decision in equal.decisions
            if decision.experiment in flips
        ),
        order=tuple(
            OrderRow(
                better=one, worse=other, points=before[one, other], told_apart=apart[one, other]
            )
            for one, other in pairs
        ),
    )


def _ranges(points: Sequence[Weights]) -> Mapping[str, tuple[float, float]]:
    return {
        name: (min(point[name] for point in points), max(point[name] for point in points))
        for name in points[0]
    }
