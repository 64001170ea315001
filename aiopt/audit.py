"""The campaign's result: audit, ablation, and estimates that are shrunken towards the others.

The audit compares the final source with the unmodified one on pairs that nothing was chosen by, so
its estimate is not biased by the choosing. An ablation takes out one kept patch at a time. The
shrunken table is for ranking patches: a normal prior over all that was measured (DerSimonian and
Laird's moments, 1986) takes back some of the luck of the best.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from attrs import frozen

from aiopt.calibration import calibrate, missing_calibration
from aiopt.events import AblationMeasured, AuditMeasured, Event, GateFailed
from aiopt.pairs import composite, effects_of, needs, pairs_by_purpose
from aiopt.rules import NeedsMore, RuleParams
from aiopt.stats import interval, upper_bound

__all__ = ["Shrunken", "ablation_of", "audit_of", "audit_pairs", "not_separable", "shrink"]

_NORMAL_95 = 1.96
_SIGNED_RANK_COST = 1.0233
"""The signed-rank interval is wider than that of the mean, for normal differences: sqrt(pi/3)."""


def audit_pairs(params: RuleParams, sd_pair: float) -> int:
    """Pairs for an interval of the half-width that the audit aims at."""
    n = (_NORMAL_95 * _SIGNED_RANK_COST * sd_pair / params.audit_precision) ** 2
    return min(params.audit_cap, max(params.audit_pairs, math.ceil(n)))


def audit_of(
    baseline: str, final: str
) -> Callable[[RuleParams, Sequence[Event]], AuditMeasured | NeedsMore]:
    """Estimates of the final source against the baseline under every workload."""

    def measured(params: RuleParams, events: Sequence[Event]) -> AuditMeasured | NeedsMore:
        found = pairs_by_purpose(events)
        pairs = {name: found.get(("audit", name), ()) for name in params.workloads}
        first = dict.fromkeys(params.workloads, params.audit_pairs)
        if missing_calibration(params, found) is None:
            for each in calibrate(params, found).values():
                workload = each.objective.workload
                first[workload] = max(first[workload], audit_pairs(params, each.sd_pair))
        missing = needs("audit", first, pairs)
        if missing is not None:
            return missing
        wanted = dict(first)
        for objective in params.objectives:
            n = first[objective.workload]
            d = composite(pairs[objective.workload][:n], objective.weights, params)
            wanted[objective.workload] = max(wanted[objective.workload], _extended(params, d or []))
        missing = needs("audit", wanted, pairs)
        if missing is not None:
            return missing
        return AuditMeasured(
            baseline=baseline, final=final, effects=effects_of(params, events, "audit")
        )

    return measured


def _extended(params: RuleParams, d: Sequence[float]) -> int:
    """Pairs all in all, if the interval is still wider than it should be."""
    low, high = interval(d) if d else (-math.inf, math.inf)
    half = (high - low) / 2
    if not math.isfinite(half) or half <= params.audit_precision:
        return len(d)
    wider = (half / params.audit_precision) ** 2
    return max(len(d), min(params.audit_cap, math.ceil(len(d) * wider)))


def ablation_of(
    final: str, without: str
) -> Callable[[RuleParams, Sequence[Event]], AblationMeasured | NeedsMore]:
    """What one patch contributes: arm A is the final source without it, arm B the final source.

    It is unsupported if for every objective the one-sided 95 % upper bound is below the margin:
    a flag for the user, who may take it out; nothing is reverted.
    """

    def measured(params: RuleParams, events: Sequence[Event]) -> AblationMeasured | NeedsMore:
        failed = next((event for event in events if isinstance(event, GateFailed)), None)
        if failed is not None:
            return not_separable(final, without, f"{failed.gate}: {failed.detail}")
        found = pairs_by_purpose(events)
        pairs = {name: found.get(("ablation", name), ()) for name in params.main}
        missing = needs("ablation", dict.fromkeys(params.main, params.ablation_pairs), pairs)
        if missing is not None:
            return missing
        supported = False
        for objective in params.objectives:
            d = composite(pairs[objective.workload], objective.weights, params) or []
            supported = supported or upper_bound(d, 0.95) >= params.delta0
        return AblationMeasured(
            final=final,
            without=without,
            separable=True,
            detail="",
            effects=effects_of(params, events, "ablation"),
            supported=supported,
        )

    return measured


def not_separable(final: str, without: str, detail: str) -> AblationMeasured:
    """The others do not apply, build or pass their gates without this patch."""
    return AblationMeasured(
        final=final,
        without=without,
        separable=False,
        detail=detail,
        effects=(),
        supported=None,
    )


@frozen
class Shrunken:
    """An estimate and what is left of it beside all the others, natural logs."""

    effect: float
    se: float
    shrunken: float


def shrink(estimates: Mapping[str, tuple[float, float]]) -> Mapping[str, Shrunken]:
    """Each estimate drawn towards the mean of all, the more the less certain it is.

    Args:
        estimates: effect and standard error by name; standard errors above 0.

    A normal prior N(m, t^2) with m the mean weighted by 1/se^2 and t^2 by moments (DerSimonian and
    Laird). For ranking only: it shrinks rare large effects too much.
    """
    weights = {name: 1 / se**2 for name, (_, se) in estimates.items()}
    total = sum(weights.values())
    if not total:
        return {}
    mean = sum(weights[name] * h for name, (h, _) in estimates.items()) / total
    q = sum(weights[name] * (h - mean) ** 2 for name, (h, _) in estimates.items())
    spread = total - sum(w**2 for w in weights.values()) / total
    t2 = max(0.0, (q - (len(estimates) - 1)) / spread) if spread > 0 else 0.0
    return {
        name: Shrunken(h, se, (h / se**2 + mean / t2) / (1 / se**2 + 1 / t2) if t2 > 0 else mean)
        for name, (h, se) in estimates.items()
    }
