"""What must hold of a candidate, however fast it is: gates, answers, limits and guards.

A guard is a non-inferiority test on the log scale, "worse by at least the margin" being what has to
be rejected. All guards must hold (an intersection-union test), so no level is shared among them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from aiopt.events import ArtifactBuilt, Effect, Event, GateFailed, VerdictKind
from aiopt.pairs import Pair, differences, effect_of
from aiopt.rules import MetricRule, Objective, RuleParams
from aiopt.stats import signed_rank_p

__all__ = [
    "ROUNDING",
    "answers_differ",
    "failed_gate",
    "guard_effects",
    "is_worse",
    "main_margins",
    "name_all",
    "over_limit",
    "workload_margins",
]

ROUNDING = 1e-12
"""So that a value which is worse by exactly the margin holds, whatever its logarithms round to."""

GuardState = Literal["held", "broken", "unresolved"]


def failed_gate(events: Iterable[Event]) -> tuple[VerdictKind, str] | None:
    """The verdict that a gate has settled, with its reason; None if all was well so far."""
    for event in events:
        match event:
            case GateFailed():
                return "invalid", f"{event.gate}: {event.detail}"
            case ArtifactBuilt() if event.digest == event.incumbent_digest:
                return "no_change", "the build produced the incumbent's files"
            case _:
                continue
    return None


def answers_differ(params: RuleParams, measured: Iterable[Sequence[Pair]]) -> str:
    """Where incumbent and candidate gave different answers; empty if they never did."""
    digests = [name for name, metric in params.metrics.items() if metric.kind == "digest"]
    if not digests:
        return ""
    for pair in (pair for pairs in measured for pair in pairs):
        for name in digests:
            a, b = pair.a.texts.get(name), pair.b.texts.get(name)
            if a != b:
                return (
                    f"{name} under workload {pair.a.workload}: incumbent {a}, candidate {b}; "
                    "they must be equal"
                )
    return ""


def over_limit(params: RuleParams, measured: Iterable[Sequence[Pair]]) -> str:
    """The first value of the candidate beyond an absolute limit; empty if there is none."""
    limits = [(n, m, m.limit) for n, m in params.metrics.items() if m.limit is not None]
    if not limits:
        return ""
    for pairs in measured:
        for name, metric, limit in limits:
            value = _beyond(limit, metric, name, pairs)
            if value is not None:
                workload = pairs[0].b.workload
                return f"{name} ({workload}): {value:g}, beyond its limit of {limit}"
    return ""


def _beyond(limit: float, metric: MetricRule, name: str, pairs: Sequence[Pair]) -> float | None:
    for pair in pairs:
        for value in pair.b.metrics.get(name, ()):
            if value > limit if metric.direction == "lower" else value < limit:
                return value
    return None


def is_worse(d: Sequence[float], margin: float, alpha: float) -> bool:
    """Whether these log ratios prove a loss of more than the margin (a fraction)."""
    return signed_rank_p([-x for x in d], math.log1p(margin)) <= alpha


def main_margins(params: RuleParams) -> Mapping[str, float]:
    """What must not get worse on the main workloads, and by how much."""
    return {
        name: metric.margin
        for name, metric in params.metrics.items()
        if metric.kind == "number" and metric.role != "info" and metric.limit is None
    }


def workload_margins(params: RuleParams, workload: str) -> Mapping[str, float]:
    """The same for a guard workload: the primaries, by the margin of the workload."""
    return dict.fromkeys(params.primaries, params.workloads[workload].margin)


def guard_effects(
    params: RuleParams,
    workload: str,
    pairs: Sequence[Pair],
    margins: Mapping[str, float],
    *,
    level: float,
    spread: Callable[[str], float | None] = lambda _: None,
) -> list[Effect]:
    """Every metric on these pairs: those with a margin are tested at this level, those with a limit
    are compared with it, the others are only estimated.

    `spread` is what a metric varies by when nothing changes. If that is 0, no pair may be worse by
    more than the margin. A guard is proved broken at the rule's `guard_alpha`.
    """
    effects = []
    for name, metric in params.metrics.items():
        if metric.kind != "number":
            continue
        d = differences(pairs, name, metric.direction)
        role, p, state = "info", None, "info"
        if metric.limit is not None:
            role = "guard"
            state = "held" if _beyond(metric.limit, metric, name, pairs) is None else "broken"
        elif name in margins:
            role = "guard"
            p, state = _non_inferior(params, d, margins[name], level, spread(name))
        effects.append(effect_of(name, workload, role, metric.direction, d, len(pairs), p, state))
    return effects


def _non_inferior(
    params: RuleParams,
    d: Sequence[float] | None,
    margin: float,
    level: float,
    spread: float | None,
) -> tuple[float | None, GuardState]:
    bound = math.log1p(margin)
    if not d:
        return None, "unresolved"
    if spread == 0:
        return None, "held" if all(x >= -bound - ROUNDING for x in d) else "broken"
    p = signed_rank_p(d, -bound)
    if p <= level:
        return p, "held"
    return p, "broken" if is_worse(d, margin, params.guard_alpha) else "unresolved"


def name_all(text: str, effects: Iterable[Effect | Objective]) -> str:
    """`cpu (mixed), rss (mixed): text`."""
    return f"{', '.join(f'{effect.metric} ({effect.workload})' for effect in effects)}: {text}"
