"""What every decision rule is: its parameters, fixed before a campaign starts, and its contract."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from attrs import evolve, field, frozen

from aiopt.config import structure, unstructure
from aiopt.errors import ConfigError
from aiopt.events import Event, PairPurpose, VerdictReached
from aiopt.stats import Direction

__all__ = [
    "MetricRule",
    "NeedsMore",
    "Rule",
    "RuleParams",
    "WorkloadRule",
    "params_from",
    "vary",
]


@frozen(kw_only=True)
class MetricRule:
    """What a rule needs to know of a metric."""

    direction: Direction = "lower"
    role: Literal["primary", "guard", "info"] = "info"
    margin: float = 0.05
    limit: float | None = None
    kind: Literal["number", "digest"] = "number"


@frozen(kw_only=True)
class WorkloadRule:
    """What a rule needs to know of a workload."""

    guard: bool = False
    margin: float = 0.05


@frozen(kw_only=True)
class RuleParams:
    """The parameters of a rule, fixed before the campaign starts.
    Effects are natural logs of cost ratios.
    """

    metrics: Mapping[str, MetricRule]
    workloads: Mapping[str, WorkloadRule]
    pairs: int = 8
    """Pairs for each workload."""
    alpha: float = 0.01
    """Probability of a false keep for one candidate, all primaries together."""
    delta0: float = 0.005
    """The null hypothesis is "better by at most this"."""
    mei: float = 0.03
    """Smallest effect of interest: what could still be that large was not refuted."""
    guard_alpha: float = 0.05
    guard_pairs: int = 5
    """Pairs for each guard workload: what `guard_alpha` needs."""
    regression_alpha: float = 0.10
    weights: Mapping[str, float] = field(factory=dict)
    """If given, one composite decides in place of the primaries:
    the weighted mean of their log ratios.
    """
    audit_pairs: int = 8

    @property
    def main(self) -> tuple[str, ...]:
        return tuple(name for name, workload in self.workloads.items() if not workload.guard)

    @property
    def guard_workloads(self) -> tuple[str, ...]:
        return tuple(name for name, workload in self.workloads.items() if workload.guard)

    @property
    def objectives(self) -> Mapping[str, Mapping[str, float]]:
        """Name to weights: each primary by itself, or the composite."""
        if self.weights:
            total = sum(abs(weight) for weight in self.weights.values()) or 1.0
            return {"composite": {name: w / total for name, w in self.weights.items()}}
        return {
            name: {name: 1.0} for name, metric in self.metrics.items() if metric.role == "primary"
        }


def params_from(data: Mapping[str, Any]) -> RuleParams:
    """The parameters as they were logged in `CampaignStarted.rule_params`.

    Raises:
        ConfigError: unknown or missing names, or values out of range.
    """
    params = structure(data, RuleParams, "rule parameters")
    problems = []
    if params.pairs < 2:
        problems.append(("pairs", f"{params.pairs}: at least 2"))
    for name in ("alpha", "guard_alpha", "regression_alpha"):
        value = getattr(params, name)
        if not 0 < value < 1:
            problems.append((name, f"{value:g}: a probability between 0 and 1"))
    if 2.0**-params.guard_pairs > params.guard_alpha:
        text = f"{params.guard_pairs} can never prove that a guard holds at {params.guard_alpha:g}"
        problems.append(("guard_pairs", text))
    if params.delta0 < 0 or params.mei <= params.delta0:
        problems.append(("mei", f"{params.mei:g}: must be above delta0 = {params.delta0:g} >= 0"))
    objectives = max(1, len(params.objectives) * len(params.main))
    if not problems and 2.0**-params.pairs > params.alpha / objectives:
        least = math.ceil(-math.log2(params.alpha / objectives))
        problems.append(
            (
                "pairs",
                f"{params.pairs} can never prove anything at alpha = {params.alpha:g} shared "
                f"among {objectives}; at least {least}",
            )
        )
    for name, weight in params.weights.items():
        metric = params.metrics.get(name)
        if metric is None or metric.kind == "digest":
            known = ", ".join(n for n, m in params.metrics.items() if m.kind == "number")
            problems.append((f"weights.{name}", f"no such metric; there are {known}"))
        elif weight == 0 or not math.isfinite(weight):
            problems.append((f"weights.{name}", f"{weight}: a finite number other than 0"))
    if problems:
        raise ConfigError("rule parameters", problems)
    return params


@frozen(kw_only=True)
class NeedsMore:
    """What is missing before a verdict can be reached: the next pair, and how many at most."""

    purpose: PairPurpose
    workload: str
    index: int
    missing: int


class Rule(Protocol):
    """A decision rule. `id` and `version` are logged with every verdict."""

    @property
    def id(self) -> str: ...

    @property
    def version(self) -> int: ...

    def decide(self, params: RuleParams, events: Sequence[Event]) -> "VerdictReached | NeedsMore":
        """The verdict on one experiment, or what is missing for it."""
        ...


def vary(params: RuleParams, **changes: Any) -> RuleParams:
    """The same parameters but for these.

    Raises:
        ConfigError: they make no sense together.
    """
    return params_from(unstructure(evolve(params, **changes)))
