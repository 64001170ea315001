"""Comparable numbers for candidates: always folded from the runs, never logged.

The one measure here is the weighted mean of log cost ratios against the incumbent,
direction-aware, so positive is better and a change of units changes nothing. A candidate that was
not measured has no number but a reason, so it can never outrank one that was.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import frozen

from aiopt.events import Event
from aiopt.pairs import composite, pairs_by_purpose
from aiopt.rules import RuleParams
from aiopt.stats import hodges_lehmann, interval, standard_error

__all__ = ["Fitness", "Unmeasured", "fitness_of"]


@frozen(kw_only=True)
class Fitness:
    """A log cost ratio (positive is better) with its 95 % interval.

    Estimates of a screen are good enough to search by, with their standard error in mind. They are
    biased by the stopping, and the incumbent never changes because of one.
    """

    value: float
    low: float
    high: float
    se: float
    """Standard error; infinite for a single pair."""
    pairs: int
    stage: Literal["screen", "confirm"]
    """Which pairs it is made of; those of the confirmation, where there are any, are unbiased."""
    missing: tuple[str, ...]
    """Metrics with a weight that this candidate was not measured on; the others were renormalised.
    """


@frozen(kw_only=True)
class Unmeasured:
    """Why a candidate has no fitness."""

    reason: str


def fitness_of(
    params: RuleParams, facts: Sequence[Event], weights: Mapping[str, float]
) -> Fitness | Unmeasured:
    """The fitness of one experiment on the pairs of its main workloads."""
    measured = pairs_by_purpose(facts)
    stage: Literal["screen", "confirm"] = (
        "confirm" if any(purpose == "confirm" for purpose, _ in measured) else "screen"
    )
    differences: list[float] = []
    missing: set[str] = set()
    for workload in params.main:
        pairs = measured.get((stage, workload), ())
        if not pairs:
            continue
        present = {
            name: weight
            for name, weight in weights.items()
            if composite(pairs, {name: 1.0}, params) is not None
        }
        missing |= weights.keys() - present.keys()
        total = sum(abs(weight) for weight in present.values())
        if total == 0:
            continue
        normalised = {name: weight / total for name, weight in present.items()}
        differences += composite(pairs, normalised, params) or []
    if not differences:
        return Unmeasured(reason="no complete pair" if not missing else "no metric with a weight")
    low, high = interval(differences, 0.95)
    return Fitness(
        value=hodges_lehmann(differences),
        low=low,
        high=high,
        se=standard_error(differences),
        stage=stage,
        pairs=len(differences),
        missing=tuple(sorted(missing)),
    )
