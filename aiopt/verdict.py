"""The decision: from the raw events of one experiment to a
verdict, or to the next pair that is needed.

`decide` is pure: no clock, no I/O, no global randomness, so a verdict can be reproduced, and
questioned under other parameters, from the log alone. `Judge` is the same function as a stepper:
ask for the next pair, tell the events of its runs, read the verdict; real campaigns and
simulations both drive it.

The one rule here, `signed-rank`, is a test at a fixed number of pairs. Each pair ran its two arms
side by side in the order of a coin that was logged first, so if the candidate changes nothing, the
sign of each log ratio is a fair coin whatever the noise of the machine, and the exact one-sided
signed-rank test holds its level. A primary is improved if the test rejects "better by at most
`delta0`" at `alpha` shared among the primaries (Bonferroni). Guards, and the primaries that did
not improve, are non-inferiority tests on the same pairs.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, Literal, Protocol

from attrs import evolve, field, frozen

from aiopt.events import (
    ArtifactBuilt,
    AuditMeasured,
    Effect,
    Event,
    GateFailed,
    PairPurpose,
    PairScheduled,
    PairVoided,
    RunMeasured,
    VerdictReached,
)
from aiopt.stats import (
    Direction,
    PairStage,
    best_case_p,
    coin,
    hodges_lehmann,
    interval,
    log_ratio,
    signed_rank_p,
    upper_bound,
)

__all__ = [
    "RULES",
    "Decider",
    "Judge",
    "MetricRule",
    "NeedsMore",
    "Outcome",
    "Pair",
    "Rule",
    "RuleParams",
    "SignedRank",
    "WorkloadRule",
    "audit_of",
    "composite",
    "decide",
    "effects_of",
    "next_pair",
    "pairs_of",
    "params_from",
    "verdict_by",
    "with_weights",
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

    @property
    def needed(self) -> tuple[str, ...]:
        """Metrics without which a run cannot be judged."""
        return tuple(
            name
            for name, metric in self.metrics.items()
            if metric.role in ("primary", "guard") or metric.kind == "digest"
        )


def params_from(data: Mapping[str, Any]) -> RuleParams:
    """The parameters as they were logged in `CampaignStarted.rule_params`.

    Raises:
        ConfigError: unknown or missing names, or values out of range.
    """
    from aiopt.config import structure
    from aiopt.errors import ConfigError

    params = structure(data, RuleParams, "rule parameters")
    problems = []
    if params.pairs < 2:
        problems.append(("pairs", f"{params.pairs}: at least 2"))
    for name in ("alpha", "guard_alpha", "regression_alpha"):
        value = getattr(params, name)
        if not 0 < value < 1:
            problems.append((name, f"{value:g}: a probability between 0 and 1"))
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


# ---- from events to pairs ----


@frozen
class Pair:
    """Two runs side by side: `a` of the incumbent, `b` of the candidate."""

    a: RunMeasured
    b: RunMeasured


def pairs_of(events: Iterable[Event], purpose: PairPurpose, workload: str) -> list[Pair]:
    """The complete pairs of one purpose and workload that were
    not voided, in order of their index.
    """
    runs: dict[tuple[int, int], dict[str, RunMeasured]] = {}
    void: set[tuple[int, int]] = set()
    for event in events:
        match event:
            case RunMeasured() if event.purpose == purpose and event.workload == workload:
                runs.setdefault((event.index, event.attempt), {})[event.arm] = event
            case PairVoided() if event.purpose == purpose and event.workload == workload:
                void.add((event.index, event.attempt))
    return [
        Pair(arms["A"], arms["B"])
        for key, arms in sorted(runs.items())
        if key not in void and len(arms) == 2
    ]


def _differences(pairs: Sequence[Pair], metric: str, direction: Direction) -> list[float] | None:
    """Log cost ratios, positive where the candidate is better; None where one cannot be formed."""
    found = []
    for pair in pairs:
        a, b = pair.a.metrics.get(metric), pair.b.metrics.get(metric)
        if not a or not b:
            return None
        a_value, b_value = median(a), median(b)
        if a_value <= 0 or b_value <= 0:
            return None
        found.append(log_ratio(a_value, b_value, direction))
    return found


def composite(
    pairs: Sequence[Pair], weights: Mapping[str, float], params: RuleParams
) -> list[float] | None:
    """The weighted sum of log ratios for each pair; None where a metric is missing."""
    total = [0.0] * len(pairs)
    for metric, weight in weights.items():
        differences = _differences(pairs, metric, params.metrics[metric].direction)
        if differences is None:
            return None
        total = [sum_ + weight * d for sum_, d in zip(total, differences, strict=True)]
    return total


def _rounded(value: float | None) -> float | None:
    """Ten significant digits, and no infinities: verdicts are compared byte for byte."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.10g}")


def _effect(
    metric: str,
    workload: str,
    role: Any,
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
            pairs=pairs,
            effect=None,
            low=None,
            high=None,
            p=_rounded(p),
            state=state,
        )
    low, high = interval(d, 0.95)
    return Effect(
        metric=metric,
        workload=workload,
        role=role,
        pairs=pairs,
        effect=_rounded(hodges_lehmann(d)),
        low=_rounded(low),
        high=_rounded(high),
        p=_rounded(p),
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
                d = _differences(pairs, name, metric.direction)
                found.append(_effect(name, workload, metric.role, d, len(pairs)))
    return tuple(found)


# ---- the rule ----


@frozen
class SignedRank:
    """The exact one-sided signed-rank test at a fixed number of
    pairs, curtailed when it can no longer reject.
    """

    id: str = "signed-rank"
    version: int = 1

    def decide(self, params: RuleParams, events: Sequence[Event]) -> VerdictReached | NeedsMore:
        """See `Rule.decide`."""
        gate = _gate(events)
        if gate is not None:
            return self._verdict(*gate, ())
        screens = {name: pairs_of(events, "screen", name) for name in params.main}
        answers = _answers_differ(params, [*screens.values()])
        if answers:
            return self._verdict("invalid", answers, ())
        objectives = list(self._objectives(params, screens))
        least = min(len(pairs) for pairs in screens.values())
        over_limit = _over_limit(params, screens)
        improved = any(effect.state == "improved" for effect in objectives)
        undecided = not improved and not over_limit and least < params.pairs
        if undecided and not self._hopeless(params, screens):
            return _turn(params.main, screens, "screen", params.pairs)
        shown = [effect for effect in objectives if effect.state == "improved" or not improved]
        effects = [*shown, *self._others(params, screens, objectives, improved)]
        if over_limit:
            return self._verdict("discard_regression", over_limit, effects)
        if not improved:
            return self._verdict(*self._not_kept(params, screens, objectives, least), effects)
        broken = [effect for effect in effects if effect.state == "broken"]
        if not broken and params.guard_workloads:
            guards = {name: pairs_of(events, "guard", name) for name in params.guard_workloads}
            answers = _answers_differ(params, [*guards.values()])
            if answers:
                return self._verdict("invalid", answers, effects)
            if min(len(pairs) for pairs in guards.values()) < params.pairs:
                return _turn(params.guard_workloads, guards, "guard", params.pairs)
            effects += self._guard_effects(params, guards)
            broken = [effect for effect in effects if effect.state == "broken"]
        if broken:
            return self._verdict(
                "discard_regression", _name("worse beyond its margin", broken), effects
            )
        unresolved = [effect for effect in effects if effect.state == "unresolved"]
        if unresolved:
            text = _name("may be worse beyond its margin; more pairs would tell", unresolved)
            return self._verdict("inconclusive", text, effects)
        better = [effect for effect in effects if effect.state == "improved"]
        return self._verdict("keep", _name("proved better", better), effects)

    def _objectives(
        self, params: RuleParams, screens: Mapping[str, Sequence[Pair]]
    ) -> Iterator[Effect]:
        level = self._level(params)
        for workload, pairs in screens.items():
            for name, weights in params.objectives.items():
                d = composite(pairs, weights, params)
                complete = d is not None and len(d) >= params.pairs
                p = signed_rank_p(d, params.delta0) if d and complete else None
                state = "improved" if p is not None and p <= level else "unproved"
                yield _effect(name, workload, "primary", d, len(pairs), p, state)

    def _level(self, params: RuleParams) -> float:
        return params.alpha / (len(params.objectives) * len(params.main))

    def _hopeless(self, params: RuleParams, screens: Mapping[str, Sequence[Pair]]) -> bool:
        """Whether no objective could still reject, whatever the remaining pairs bring.

        Stopping then changes no decision, so it costs nothing of the level. Not before four pairs:
        fewer give no estimate.
        """
        for pairs in screens.values():
            if len(pairs) < 4:
                return False
            for weights in params.objectives.values():
                d = composite(pairs, weights, params)
                if d is not None and best_case_p(d, params.pairs, params.delta0) <= self._level(
                    params
                ):
                    return False
        return True

    def _others(
        self,
        params: RuleParams,
        screens: Mapping[str, Sequence[Pair]],
        objectives: Sequence[Effect],
        improved: bool,
    ) -> Iterator[Effect]:
        """Guards and info metrics on the screen's pairs, and the
        primaries that did not improve, as guards.
        """
        better = {(e.metric, e.workload) for e in objectives if e.state == "improved"}
        for workload, pairs in screens.items():
            for name, metric in params.metrics.items():
                if metric.kind != "number" or (name, workload) in better:
                    continue
                d = _differences(pairs, name, metric.direction)
                if metric.role == "primary" and not improved and not params.weights:
                    continue  # already listed as an objective that was not proved
                if metric.limit is not None:
                    state = "held" if _beyond(metric, name, pairs) is None else "broken"
                    yield _effect(name, workload, "guard", d, len(pairs), None, state)
                elif metric.role == "info":
                    yield _effect(name, workload, "info", d, len(pairs))
                else:
                    yield self._guarded(params, name, workload, d, len(pairs), metric.margin)

    def _guard_effects(
        self, params: RuleParams, guards: Mapping[str, Sequence[Pair]]
    ) -> Iterator[Effect]:
        for workload, pairs in guards.items():
            margin = params.workloads[workload].margin
            for name, metric in params.metrics.items():
                if metric.kind != "number":
                    continue
                d = _differences(pairs, name, metric.direction)
                if metric.limit is not None:
                    state = "held" if _beyond(metric, name, pairs) is None else "broken"
                    yield _effect(name, workload, "guard", d, len(pairs), None, state)
                elif metric.role == "primary":
                    yield self._guarded(params, name, workload, d, len(pairs), margin)
                else:
                    yield _effect(name, workload, "info", d, len(pairs))

    def _guarded(
        self,
        params: RuleParams,
        name: str,
        workload: str,
        d: Sequence[float] | None,
        pairs: int,
        margin: float,
    ) -> Effect:
        """Non-inferiority: H0 "worse by at least the margin", tested on the log scale."""
        if not d:
            return _effect(name, workload, "guard", d, pairs, None, "unresolved")
        bound = math.log1p(margin)
        p = signed_rank_p(d, -bound)
        if p <= params.guard_alpha:
            state = "held"
        elif signed_rank_p([-x for x in d], bound) <= params.guard_alpha:
            state = "broken"
        else:
            state = "unresolved"
        return _effect(name, workload, "guard", d, pairs, p, state)

    def _not_kept(
        self,
        params: RuleParams,
        screens: Mapping[str, Sequence[Pair]],
        objectives: Sequence[Effect],
        least: int,
    ) -> tuple[str, str]:
        worse, open_ = [], []
        for effect in objectives:
            d = composite(screens[effect.workload], params.objectives[effect.metric], params)
            if d is None:
                continue
            if signed_rank_p([-x for x in d], params.delta0) <= params.regression_alpha:
                worse.append(effect)
            elif least >= params.pairs and upper_bound(d, 0.90) >= params.mei:
                open_.append(effect)
        if worse:
            return "discard_regression", _name("worse", worse)
        if open_:
            text = f"an effect of {params.mei:.0%} is neither proved nor excluded in {least} pairs"
            return "inconclusive", _name(text, open_)
        if least < params.pairs:
            return (
                "discard_no_effect",
                f"stopped after {least} of {params.pairs} pairs: "
                "no outcome of the others could prove a gain",
            )
        return "discard_no_effect", f"no gain proved in {least} pairs"

    def _verdict(self, kind: Any, reason: str, effects: Iterable[Effect]) -> VerdictReached:
        return VerdictReached(
            kind=kind,
            reason=reason,
            effects=tuple(effects),
            rule=self.id,
            rule_version=self.version,
        )


def _turn(
    workloads: Sequence[str],
    measured: Mapping[str, Sequence[Pair]],
    purpose: PairPurpose,
    pairs: int,
) -> NeedsMore:
    """Workloads take turns, so that a drift of the machine meets all of them alike."""
    index, position = min(
        (len(measured[name]), place)
        for place, name in enumerate(workloads)
        if len(measured[name]) < pairs
    )
    missing = sum(pairs - len(measured[name]) for name in workloads)
    return NeedsMore(purpose=purpose, workload=workloads[position], index=index, missing=missing)


def _gate(events: Iterable[Event]) -> tuple[str, str] | None:
    for event in events:
        match event:
            case GateFailed():
                return "invalid", f"{event.gate}: {event.detail}"
            case ArtifactBuilt() if event.digest == event.incumbent_digest:
                return "no_change", "the build produced the incumbent's files"
            case _:
                continue
    return None


def _answers_differ(params: RuleParams, measured: Sequence[Sequence[Pair]]) -> str:
    for name, metric in params.metrics.items():
        if metric.kind != "digest":
            continue
        for pair in (pair for pairs in measured for pair in pairs):
            a, b = pair.a.texts.get(name), pair.b.texts.get(name)
            if a != b:
                return (
                    f"{name} under workload {pair.a.workload}: incumbent {a}, candidate {b}; "
                    "they must be equal"
                )
    return ""


def _beyond(metric: MetricRule, name: str, pairs: Sequence[Pair]) -> float | None:
    """The first value of the candidate beyond the metric's limit, or None."""
    if metric.limit is None:
        return None
    for pair in pairs:
        for value in pair.b.metrics.get(name, ()):
            beyond = value > metric.limit if metric.direction == "lower" else value < metric.limit
            if beyond:
                return value
    return None


def _over_limit(params: RuleParams, measured: Mapping[str, Sequence[Pair]]) -> str:
    for workload, pairs in measured.items():
        for name, metric in params.metrics.items():
            value = _beyond(metric, name, pairs)
            if value is not None:
                return f"{name} ({workload}): {value:g}, beyond its limit of {metric.limit}"
    return ""


def _name(text: str, effects: Sequence[Effect]) -> str:
    return f"{', '.join(f'{effect.metric} ({effect.workload})' for effect in effects)}: {text}"


RULES: Mapping[str, Rule] = {rule.id: rule for rule in (SignedRank(),)}
"""Every rule, by id."""


def decide(rule: str, params: RuleParams, events: Sequence[Event]) -> VerdictReached | NeedsMore:
    """The verdict of a rule on the events of one experiment, or what is missing for it.

    Raises:
        KeyError: no such rule.
    """
    return RULES[rule].decide(params, events)


def next_pair(
    params: RuleParams, needs: NeedsMore, *, seed: int, number: int, attempt: int = 0
) -> PairScheduled:
    """The pair that is needed, with its coin: a function of seed,
    proposal, purpose, workload and index alone.

    A pair that is repeated (`attempt` above 0) keeps its order.
    """
    stage = PairStage.AUDIT if needs.purpose == "audit" else PairStage.SCREEN
    place = list(params.workloads).index(needs.workload)
    order = coin(seed, number, stage, place * 100_000 + needs.index)
    return PairScheduled(
        purpose=needs.purpose,
        workload=needs.workload,
        index=needs.index,
        attempt=attempt,
        order=order,
    )


Outcome = VerdictReached | AuditMeasured
Decider = Callable[[RuleParams, Sequence[Event]], Outcome | NeedsMore]


def verdict_by(rule: str) -> Decider:
    """`decide` by one rule, for a `Judge`."""
    return lambda params, events: decide(rule, params, events)


def audit_of(baseline: str, final: str) -> Decider:
    """Estimates of the final source against the baseline under every
    workload, from `audit_pairs` pairs of each.
    """

    def measured(params: RuleParams, events: Sequence[Event]) -> AuditMeasured | NeedsMore:
        pairs = {name: pairs_of(events, "audit", name) for name in params.workloads}
        if min(len(found) for found in pairs.values()) < params.audit_pairs:
            return _turn(list(params.workloads), pairs, "audit", params.audit_pairs)
        return AuditMeasured(
            baseline=baseline, final=final, effects=effects_of(params, events, "audit")
        )

    return measured


class Judge:
    """One experiment, step by step: `next_pair`, then `tell` what
    was measured, until there is an `outcome`.
    """

    def __init__(
        self,
        decider: Decider,
        params: RuleParams,
        *,
        seed: int,
        number: int,
        events: Iterable[Event] = (),
    ) -> None:
        self._decider, self._params, self._seed, self._number = decider, params, seed, number
        self._events: list[Event] = []
        self._attempts: dict[tuple[str, str, int], int] = {}
        self._decided: Outcome | NeedsMore | None = None
        self.tell(*events)

    def tell(self, *events: Event) -> None:
        """What happened: PairScheduled, RunMeasured, PairVoided, gates."""
        for event in events:
            self._events.append(event)
            if isinstance(event, PairScheduled):
                key = (event.purpose, event.workload, event.index)
                self._attempts[key] = max(self._attempts.get(key, 0), event.attempt + 1)
        self._decided = None

    @property
    def events(self) -> Sequence[Event]:
        """All that it was told."""
        return tuple(self._events)

    def _now(self) -> Outcome | NeedsMore:
        if self._decided is None:
            self._decided = self._decider(self._params, self._events)
        return self._decided

    @property
    def outcome(self) -> Outcome | None:
        """None while pairs are missing."""
        decided = self._now()
        return None if isinstance(decided, NeedsMore) else decided

    @property
    def missing(self) -> int:
        """Pairs that are missing at the most."""
        decided = self._now()
        return decided.missing if isinstance(decided, NeedsMore) else 0

    def next_pair(self) -> PairScheduled | None:
        """The pair to run next; None when the outcome is there."""
        decided = self._now()
        if not isinstance(decided, NeedsMore):
            return None
        attempt = self._attempts.get((decided.purpose, decided.workload, decided.index), 0)
        return next_pair(
            self._params, decided, seed=self._seed, number=self._number, attempt=attempt
        )


def with_weights(params: RuleParams, weights: Mapping[str, float]) -> RuleParams:
    """The same parameters, with a weighted composite in place of the primaries."""
    return evolve(params, weights=dict(weights))
