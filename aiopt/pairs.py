"""From the events of an experiment to its pairs, their log ratios, and what these add up to."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from attrs import field, frozen

from aiopt.events import Effect, Event, PairPurpose, PairVoided, RunMeasured
from aiopt.rules import NeedsMore, RuleParams
from aiopt.stats import Direction, hodges_lehmann, interval, log_ratio

__all__ = [
    "Pair",
    "composite",
    "differences",
    "effect_of",
    "effects_of",
    "log_costs",
    "needs",
    "pairs_by_purpose",
    "pairs_of",
    "rounded",
    "ten_digits",
]


@frozen
class Pair:
    """Two runs side by side: `a` of the incumbent, `b` of the candidate."""

    a: RunMeasured
    b: RunMeasured
    _ratios: dict[tuple[str, Direction], float | None] = field(
        init=False, factory=dict, eq=False, repr=False
    )
    """What was worked out already: a decision asks for the same ratios again and again."""

    def ratio(self, metric: str, direction: Direction) -> float | None:
        """Log cost ratio, positive where the candidate is better; None where there can be none."""
        key = metric, direction
        if key not in self._ratios:
            self._ratios[key] = _ratio(self, metric, direction)
        return self._ratios[key]


def _ratio(pair: Pair, metric: str, direction: Direction) -> float | None:
    a, b = pair.a.metrics.get(metric), pair.b.metrics.get(metric)
    if not a or not b:
        return None
    a_value = a[0] if len(a) == 1 else median(a)
    b_value = b[0] if len(b) == 1 else median(b)
    if a_value <= 0 or b_value <= 0:
        return None
    return log_ratio(a_value, b_value, direction)


def pairs_by_purpose(
    events: Iterable[Event],
) -> Mapping[tuple[PairPurpose, str], Sequence[Pair]]:
    """The complete pairs that were not voided, by purpose and workload, in order of their index."""
    runs: dict[tuple[PairPurpose, str], dict[tuple[int, int], list[RunMeasured | None]]] = {}
    void: set[tuple[str, str, int, int]] = set()
    for event in events:
        match event:
            case RunMeasured():
                arms = runs.setdefault((event.purpose, event.workload), {}).setdefault(
                    (event.index, event.attempt), [None, None]
                )
                arms[event.arm == "B"] = event
            case PairVoided():
                void.add((event.purpose, event.workload, event.index, event.attempt))
            case _:
                pass
    found = {}
    for key, pairs in runs.items():
        found[key] = [
            Pair(a, b)
            for (index, attempt), (a, b) in sorted(pairs.items(), key=lambda item: item[0])
            if a is not None and b is not None and (*key, index, attempt) not in void
        ]
    return found


def pairs_of(events: Iterable[Event], purpose: PairPurpose, workload: str) -> Sequence[Pair]:
    """The complete pairs of one purpose and workload that were
    not voided, in order of their index.
    """
    return pairs_by_purpose(events).get((purpose, workload), [])


def differences(pairs: Sequence[Pair], metric: str, direction: Direction) -> list[float] | None:
    """Log cost ratios, positive where the candidate is better; None where one cannot be formed."""
    found = []
    for pair in pairs:
        ratio = pair.ratio(metric, direction)
        if ratio is None:
            return None
        found.append(ratio)
    return found


def composite(
    pairs: Sequence[Pair], weights: Mapping[str, float], params: RuleParams
) -> list[float] | None:
    """The weighted sum of log ratios for each pair; None where a metric is missing."""
    total = [0.0] * len(pairs)
    for metric, weight in weights.items():
        ratios = differences(pairs, metric, params.metrics[metric].direction)
        if ratios is None:
            return None
        total = [sum_ + weight * d for sum_, d in zip(total, ratios, strict=True)]
    return total


def log_costs(
    pairs: Sequence[Pair], weights: Mapping[str, float], params: RuleParams
) -> tuple[list[float], list[float]] | None:
    """ln(cost) of arm A and of arm B in each pair, the weighted sum where there are several
    metrics; None where a metric is missing.
    """
    found: tuple[list[float], list[float]] = ([], [])
    for pair in pairs:
        for run, costs in zip((pair.a, pair.b), found, strict=True):
            total = 0.0
            for name, weight in weights.items():
                values = run.metrics.get(name)
                value = median(values) if values else 0.0
                if value <= 0:
                    return None
                sign = 1 if params.metrics[name].direction == "lower" else -1
                total += sign * weight * math.log(value)
            costs.append(total)
    return found


def ten_digits(value: float) -> float:
    """As decisions are logged: they are compared byte for byte, on other machines too."""
    return float(f"{value:.10g}")


def rounded(value: float | None) -> float | None:
    """Ten significant digits, and no infinities."""
    return None if value is None or not math.isfinite(value) else ten_digits(value)


def effect_of(
    metric: str,
    workload: str,
    role: Any,
    direction: Direction,
    d: Sequence[float] | None,
    pairs: int,
    p: float | None = None,
    state: Any = "info",
) -> Effect:
    if not d:
        return Effect(
            metric=metric,
            workload=workload,
            role=role,
            direction=direction,
            pairs=pairs,
            effect=None,
            low=None,
            high=None,
            p=rounded(p),
            state=state,
        )
    low, high = interval(d, 0.95)
    return Effect(
        metric=metric,
        workload=workload,
        role=role,
        direction=direction,
        pairs=pairs,
        effect=rounded(hodges_lehmann(d)),
        low=rounded(low),
        high=rounded(high),
        p=rounded(p),
        state=state,
    )


def effects_of(
    params: RuleParams, events: Sequence[Event], purpose: PairPurpose
) -> tuple[Effect, ...]:
    """Estimate and interval of every numeric metric under every
    workload that has pairs of this purpose.
    """
    found = []
    for workload in params.workloads:
        pairs = pairs_of(events, purpose, workload)
        if not pairs:
            continue
        for name, metric in params.metrics.items():
            if metric.kind == "number":
                d = differences(pairs, name, metric.direction)
                found.append(
                    effect_of(name, workload, metric.role, metric.direction, d, len(pairs))
                )
    return tuple(found)


def needs(
    purpose: PairPurpose, wanted: Mapping[str, int], measured: Mapping[str, Sequence[Pair]]
) -> NeedsMore | None:
    """What is missing of these numbers of pairs; None if nothing is."""
    missing = sum(max(0, n - len(measured[workload])) for workload, n in wanted.items())
    return NeedsMore(purpose=purpose, wanted=wanted, missing=missing) if missing else None
