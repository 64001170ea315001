"""What every decision rule is: its parameters, fixed before a campaign starts, and its contract."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from attrs import evolve, field, frozen

from aiopt.config import structure, unstructure
from aiopt.errors import ConfigError
from aiopt.events import Event, LookTaken, PairPurpose, VerdictReached
from aiopt.stats import Direction

__all__ = [
    "COMPOSITE",
    "LayoutRule",
    "MetricRule",
    "NeedsMore",
    "Objective",
    "Rule",
    "RuleParams",
    "VoidRules",
    "WorkloadRule",
    "params_from",
    "vary",
]

COMPOSITE = "composite"
"""Name of the objective that weights make of several metrics."""


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
class VoidRules:
    """States of the machine in which a pair does not count; 0 or false: that is not looked at.

    They are fixed before a campaign, look at nothing but the machine, and apply to both arms alike.
    """

    steal: float = 0.05
    """Share of the processors' time during a run that the hypervisor gave to others."""
    psi: float = 20.0
    """Percent of the ten seconds before the pair in which something waited for a processor."""
    throttle: bool = True
    """The processor was throttled during a run."""
    pause: float = 60.0
    """Seconds to wait when more than a fifth of the last 25 pairs were voided; doubled each time.
    """


@frozen(kw_only=True)
class LayoutRule:
    """How the accidents of code layout in compiled programs are kept out of verdicts."""

    rotate: int = 0
    """Neutral rebuilds over which confirmation rotates, both arms alike; 0: there are none."""
    pairs: int = 5
    """Calibration pairs of the plain build against each rebuild."""
    floor: float = 0.0
    """Effects (natural log) below it are taken for layout where no rebuild is possible."""


@frozen
class Objective:
    """What one test is about: a primary (or the composite) under one main workload."""

    metric: str
    workload: str
    weights: Mapping[str, float]
    """Of the metrics whose log ratios it sums."""

    @property
    def key(self) -> tuple[str, str]:
        return self.metric, self.workload


@frozen(kw_only=True)
class RuleParams:
    """The parameters of a rule, fixed before the campaign starts.
    Effects are natural logs of cost ratios.
    """

    metrics: Mapping[str, MetricRule]
    workloads: Mapping[str, WorkloadRule]
    delta0: float = 0.005
    """The null hypothesis is "better by at most this"."""
    mei: float = 0.03
    """Smallest effect of interest: the plan aims at it."""
    weights: Mapping[str, float] = field(factory=dict)
    """If given, one composite decides in place of the primaries:
    the weighted mean of their log ratios.
    """
    regression_alpha: float = 0.10
    """Level at which a discarded candidate is called a regression; no keep depends on it."""
    guard_alpha: float = 0.05
    """Probability that a guard seems to hold although it is worse by its margin."""
    void: VoidRules = VoidRules()
    warmup: int = 1
    """Discarded pairs before the first one of a workload, after whatever empties caches."""

    # -- two-stage --
    pfer: float = 0.1
    """False keeps expected in the campaign, at the most, among `planned` candidates."""
    planned: int = 200
    pfer_ext: float | None = None
    """The same for all candidates beyond `planned` together; half of `pfer` if not given."""
    alpha1: float = 0.02
    """Level of the screen."""
    alpha2: float | None = None
    """Level of the confirmation; if not given, what `pfer` allows, at most 0.05."""
    power: float = 0.97
    """Of each stage, at the effect that the plan aims at."""
    cap: int = 40
    """Most pairs that the planner tries for the screen; half as many again for confirmation."""
    ncal: int = 50
    """Calibration pairs of each main workload."""
    ncal_guard: int = 20
    """Calibration pairs of each guard workload, where only the size of a test depends on them."""
    boot: int = 160
    """Resamples of the planner."""
    guard_first: float = 0.035
    """What of `guard_alpha` the first look at a guard may use; the second one has the rest."""
    layout: LayoutRule = LayoutRule()

    # -- signed-rank, and the rules of other tools --
    pairs: int | None = None
    """Pairs for each workload; if not given, what the rule itself says."""
    alpha: float = 0.01
    """Probability of a false keep for one candidate, all primaries together."""
    guard_pairs: int = 5
    """Pairs for each guard workload: what `guard_alpha` needs."""

    # -- audit --
    audit_every: int = 10
    """Keeps between two audits; one more is made at the end."""
    audit_pairs: int = 10
    """The fewest pairs of an audit for each workload."""
    audit_cap: int = 200
    """The most."""
    audit_precision: float = 0.01
    """Half-width (natural log) of the interval that an audit aims at."""
    ablation_pairs: int = 10
    """Pairs of the final source against itself without one patch; 0: no ablation."""

    @property
    def main(self) -> tuple[str, ...]:
        return tuple(name for name, workload in self.workloads.items() if not workload.guard)

    @property
    def guard_workloads(self) -> tuple[str, ...]:
        return tuple(name for name, workload in self.workloads.items() if workload.guard)

    @property
    def primaries(self) -> tuple[str, ...]:
        return tuple(name for name, metric in self.metrics.items() if metric.role == "primary")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Each primary by itself, or the composite, under each main workload."""
        if self.weights:
            total = sum(abs(weight) for weight in self.weights.values()) or 1.0
            deciding: Mapping[str, Mapping[str, float]] = {
                COMPOSITE: {name: w / total for name, w in self.weights.items()}
            }
        else:
            deciding = {name: {name: 1.0} for name in self.primaries}
        return tuple(
            Objective(name, workload, weights)
            for workload in self.main
            for name, weights in deciding.items()
        )

    def direction_of(self, objective: str) -> Direction:
        """Of a metric; a composite is a cost."""
        metric = self.metrics.get(objective)
        return metric.direction if metric is not None else "lower"

    def calibration_pairs(self, workload: str) -> int:
        """How many pairs of the incumbent with itself this workload gets."""
        return self.ncal_guard if self.workloads[workload].guard else self.ncal

    @property
    def confirm_level(self) -> float:
        """alpha2: given, or what the error budget allows each of the planned candidates."""
        if self.alpha2 is not None:
            return self.alpha2
        return min(self.pfer / (self.planned * self.alpha1), 0.05)


def params_from(data: Mapping[str, Any]) -> RuleParams:
    """The parameters as they were logged in `CampaignStarted.rule_params`.

    Raises:
        ConfigError: unknown or missing names, or values out of range.
    """
    params = _in_order(structure(data, RuleParams, "rule parameters"))
    problems = [
        *_objectives(params),
        *_ranges(params),
        *_levels(params),
        *_weights(params),
    ]
    if problems:
        raise ConfigError("rule parameters", problems)
    return params


def _in_order(params: RuleParams) -> RuleParams:
    """By name: a log does not keep the order of the target's tables, and coins depend on it."""
    return evolve(
        params,
        metrics=dict(sorted(params.metrics.items())),
        workloads=dict(sorted(params.workloads.items())),
        weights=dict(sorted(params.weights.items())),
    )


def _objectives(params: RuleParams) -> Iterator[tuple[str, str]]:
    if not params.primaries:
        yield "metrics", 'none has the role "primary": nothing could decide'
    if not params.main:
        yield "workloads", "all are guards: there is nothing to decide on"


def _ranges(params: RuleParams) -> Iterator[tuple[str, str]]:
    least = {
        "pairs": 1,
        "planned": 1,
        "cap": 8,
        "ncal": 10,
        "ncal_guard": 6,
        "boot": 50,
        "warmup": 0,
        "audit_every": 1,
        "audit_pairs": 6,
        "audit_cap": params.audit_pairs,
        "ablation_pairs": 0,
    }
    for name, bound in least.items():
        value = getattr(params, name)
        if value is not None and value < bound:
            yield name, f"{value}: at least {bound}"
    if not params.mei > params.delta0 >= 0:
        yield "mei", f"{params.mei:g}: must be above delta0 = {params.delta0:g} >= 0"
    elif params.mei <= params.layout.floor:
        yield "mei", f"{params.mei:g}: must be above the layout floor {params.layout.floor:g}"
    if params.audit_precision <= 0:
        yield "audit_precision", f"{params.audit_precision:g}: above 0"
    if params.layout.rotate == 1 or params.layout.rotate < 0:
        yield "layout.rotate", f"{params.layout.rotate}: 0, or at least 2 rebuilds"
    if params.layout.pairs < 2:
        yield "layout.pairs", f"{params.layout.pairs}: at least 2"


def _levels(params: RuleParams) -> Iterator[tuple[str, str]]:
    levels = (
        "alpha",
        "alpha1",
        "alpha2",
        "power",
        "guard_alpha",
        "guard_first",
        "regression_alpha",
    )
    for name in levels:
        value = getattr(params, name)
        if value is not None and not 0 < value < 1:
            yield name, f"{value:g}: a probability between 0 and 1"
    if params.pfer <= 0:
        yield "pfer", f"{params.pfer:g}: above 0"
    if params.pfer_ext is not None and params.pfer_ext <= 0:
        yield "pfer_ext", f"{params.pfer_ext:g}: above 0"
    if not params.guard_first < params.guard_alpha:
        text = f"{params.guard_first:g}: must leave something of guard_alpha"
        yield "guard_first", f"{text} = {params.guard_alpha:g} for the second look"


def _weights(params: RuleParams) -> Iterator[tuple[str, str]]:
    for name, weight in params.weights.items():
        metric = params.metrics.get(name)
        if metric is None or metric.kind == "digest":
            known = ", ".join(n for n, m in params.metrics.items() if m.kind == "number")
            yield f"weights.{name}", f"no such metric; there are {known}"
        elif weight == 0 or not math.isfinite(weight):
            yield f"weights.{name}", f"{weight}: a finite number other than 0"


@frozen(kw_only=True)
class NeedsMore:
    """What is missing before more can be said: pairs of one purpose, under some workloads."""

    purpose: PairPurpose
    wanted: Mapping[str, int]
    """Workload to the number of valid pairs of this purpose that it should have, all in all."""
    missing: int
    """Valid pairs that are missing until then."""
    maybe_fewer: bool = False
    """Whether any pair before that may decide, so that one asks again after each."""


class Rule(Protocol):
    """A decision rule. `id` and `version` are logged with every verdict."""

    @property
    def id(self) -> str: ...

    @property
    def version(self) -> int: ...

    @property
    def calibrated(self) -> bool:
        """Whether it decides by a plan that calibration pairs are needed for."""
        ...

    def problems(self, params: RuleParams) -> Iterable[tuple[str, str]]:
        """Parameters under which it could never decide, each with what is wrong."""
        ...

    def decide(self, params: RuleParams, events: Sequence[Event]) -> "VerdictReached | NeedsMore":
        """The verdict on one experiment, or what is missing for it.

        `events` are those of the experiment, after those of its calibration.
        """
        ...

    def looks(self, params: RuleParams, events: Sequence[Event]) -> Sequence[LookTaken]:
        """The looks at the pairs so far, in the order in which they were taken."""
        ...


def vary(params: RuleParams, **changes: Any) -> RuleParams:
    """The same parameters but for these.

    Raises:
        ConfigError: they make no sense together.
    """
    return params_from(unstructure(evolve(params, **changes)))
