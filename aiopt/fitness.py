"""Comparable numbers for candidates: always folded from the runs, never logged.

The one measure here is the weighted mean of log cost ratios against the incumbent,
direction-aware, so positive is better and a change of units changes nothing. A candidate that was
not measured has no number but a reason, so it can never outrank one that was.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import evolve, frozen

from aiopt.events import Event
from aiopt.evidence import Change, is_evidence
from aiopt.pairs import composite, pairs_by_purpose
from aiopt.rules import RuleParams
from aiopt.stats import Z95, estimate

__all__ = ["Fitness", "Unmeasured", "compared_by", "fitness_of"]


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
    params: RuleParams,
    facts: Sequence[Event],
    weights: Mapping[str, float],
    changes: Mapping[str, Change] | None = None,
    *,
    pooled: bool = True,
) -> Fitness | Unmeasured:
    """The fitness of one experiment on the pairs of its main workloads: all pairs together, or
    unless `pooled` the mean of the workloads, each of which counts alike.

    Weights of names with a colon are of what profilers measured (see `aiopt.evidence`), whose
    `changes` are given; they add to what the pairs say, each in proportion to its weight. With
    them, the interval is that of a normal distribution with the variances of both.
    """
    of_metrics = {name: weight for name, weight in weights.items() if not is_evidence(name)}
    paired = _of_pairs(params, facts, of_metrics, pooled)
    known = {
        name: (weights[name], change) for name, change in (changes or {}).items() if name in weights
    }
    if not known:
        if isinstance(paired, Unmeasured) and not of_metrics:
            return Unmeasured(reason="no profiler has measured what has a weight")
        return paired if isinstance(paired, Unmeasured) else _without(paired, weights, known)
    parts = [(weight, change.value, change.se) for weight, change in known.values()]
    if isinstance(paired, Fitness):
        present = sum(abs(w) for name, w in of_metrics.items() if name not in paired.missing)
        parts.append((present, paired.value, paired.se))
    elif of_metrics:
        return paired
    total = sum(abs(weight) for weight, _, _ in parts)
    if total == 0:
        return Unmeasured(reason="no metric with a weight")
    value = sum(weight * part for weight, part, _ in parts) / total
    se = math.sqrt(sum((weight * error) ** 2 for weight, _, error in parts)) / total
    both = Fitness(
        value=value,
        low=value - Z95 * se,
        high=value + Z95 * se,
        se=se,
        pairs=paired.pairs if isinstance(paired, Fitness) else 0,
        stage=paired.stage if isinstance(paired, Fitness) else "screen",
        missing=paired.missing if isinstance(paired, Fitness) else (),
    )
    return _without(both, weights, known)


def _without(
    fitness: Fitness, weights: Mapping[str, float], known: Mapping[str, object]
) -> Fitness:
    """The same, and which evidence with a weight is missing."""
    absent = {name for name in weights if is_evidence(name) and name not in known}
    return evolve(fitness, missing=tuple(sorted({*fitness.missing, *absent})))


def _of_pairs(
    params: RuleParams, facts: Sequence[Event], weights: Mapping[str, float], pooled: bool
) -> Fitness | Unmeasured:
    measured = pairs_by_purpose(facts)
    stage: Literal["screen", "confirm"] = (
        "confirm" if any(purpose == "confirm" for purpose, _ in measured) else "screen"
    )
    samples: list[list[float]] = []
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
        samples.append(composite(pairs, normalised, params) or [])
    if not samples:
        return Unmeasured(reason="no complete pair" if not missing else "no metric with a weight")
    value, low, high, se = _pooled(samples) if pooled else _averaged(samples)
    return Fitness(
        value=value,
        low=low,
        high=high,
        se=se,
        stage=stage,
        pairs=sum(map(len, samples)),
        missing=tuple(sorted(missing)),
    )


def _pooled(samples: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    return estimate([difference for sample in samples for difference in sample])


def _averaged(samples: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    if len(samples) == 1:
        return estimate(samples[0])
    found = [estimate(sample) for sample in samples]
    value = sum(one[0] for one in found) / len(found)
    se = math.hypot(*(one[3] for one in found)) / len(found)
    return value, value - Z95 * se, value + Z95 * se, se


def compared_by(
    weights: Mapping[str, float], patterns: Mapping[frozenset[str], int], *, complete: bool = False
) -> frozenset[str]:
    """The signals by which candidates are compared: what all of them have. Where there is nothing
    that all have: what the most have, with what all of those have. If `complete`, all signals. Who
    lacks one of the result is not compared.

    `patterns` are the sets of signals that some lack, and how many do.
    """
    names = [name for name, weight in weights.items() if weight]
    common = set(names).difference(*patterns)
    if complete or common or not patterns:
        return frozenset(names if complete else common)

    def having(name: str) -> tuple[int, float]:
        return (
            sum(count for pattern, count in patterns.items() if name not in pattern),
            abs(weights[name]),
        )

    first = max(names, key=having)
    return frozenset(names).difference(*(p for p in patterns if first not in p))
