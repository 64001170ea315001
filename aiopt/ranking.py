"""Who is ahead: every measured candidate of a campaign, by a fitness against the baseline.

A candidate is measured beside the incumbent of its time. Its standing against the baseline is that
step on top of the steps of its incumbents, whose variances add up, so candidates of different
incumbents can be compared.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from attrs import evolve, frozen

from aiopt.errors import ConfigError
from aiopt.events import EvidenceCaptured
from aiopt.evidence import Change, changes_of, is_evidence, scalar_of
from aiopt.fitness import Fitness, Unmeasured, compared_by, fitness_of
from aiopt.replay import CampaignState, ExperimentState
from aiopt.rules import RuleParams
from aiopt.scoring import (
    DEFAULT_FITNESS,
    FITNESSES,
    Goals,
    Profiles,
    Scorer,
    Steps,
    goals_of,
    profiles_by_candidate,
)
from aiopt.standing import Objective, Standing, best_first

__all__ = [
    "DEFAULT_FITNESS",
    "FITNESSES",
    "Ranked",
    "Ranking",
    "breaks_a_guard",
    "equal_weights",
    "not_comparable",
    "rank",
]


@frozen(kw_only=True)
class Ranked:
    """A measured candidate and its fitness under the weights."""

    experiment: str
    number: int
    patch: str
    step: Fitness
    """Against the incumbent that it was measured with."""
    total: float
    """Log cost ratio against the baseline: its own step on top of those of its incumbent."""
    low: float
    """Lower 95 % confidence bound of `total`; -inf where a single pair says nothing of the spread.
    """
    se: float
    """Standard error of `total`."""
    standing: Standing
    """What the ranking is by: `total`, or the objectives of another fitness."""


@frozen(kw_only=True)
class Ranking:
    """The candidates of a campaign that were judged, best first, and those without a number."""

    ranked: tuple[Ranked, ...]
    unranked: tuple[tuple[str, str], ...]
    """Experiment and the reason why it has no fitness."""
    baseline: Standing
    compared_by: tuple[str, ...]
    """Signals that all who are ranked were measured on, and that the ranking is by."""
    lacking: Mapping[str, int]
    """Of the other signals, how many candidates lack them."""


def rank(
    campaign: CampaignState,
    *,
    params: RuleParams | None = None,
    weights: Mapping[str, float] | None = None,
    fitness: str = DEFAULT_FITNESS,
    guards: Mapping[str, float] | None = None,
    complete: bool = False,
) -> Ranking:
    """Every candidate with a verdict, best first, by one of FITNESSES (see `aiopt.scoring`); what
    is one number, by its lower confidence bound. The earlier one first where they are equal.

    Without `weights` the primaries count equally. Candidates are compared on the signals that all
    of them have; if `complete`, only those are ranked that have every signal with a weight.
    What profilers measured can have a weight, as `PROFILER:SCALAR`, less being
    better, and be a guard: `guards` are margins by such names, and a candidate of which it is
    proved that it has more than the margin above the baseline (0.05: by 5 %) is not ranked.

    Raises:
        ConfigError: no such fitness, or a weight or guard for what the campaign did not measure.
    """
    params = params or campaign.params
    weights = weights or equal_weights(params)
    profiles = profiles_by_candidate(campaign)
    scorer = _scorer(fitness, campaign, params, profiles)
    evidence = _Evidence(campaign, profiles, {n for n in weights if is_evidence(n)}, guards)
    pooled = fitness != "geometric"
    measured, unranked = dict[str, Fitness](), list[tuple[str, str]]()
    for experiment in campaign.judged():
        own = _alone(params, experiment, weights, evidence, pooled)
        if isinstance(own, Unmeasured):
            unranked.append((experiment.stream, own.reason))
        else:
            measured[experiment.stream] = own
    missing = {stream: frozenset(own.missing) for stream, own in measured.items()}
    used = compared_by(weights, Counter(missing.values()), complete=complete)
    steps = Steps(campaign, params, {n: w for n, w in weights.items() if n in used}, pooled=pooled)
    all_have_all = not any(missing.values())
    ranked = list[Ranked]()
    for experiment in campaign.judged():
        stream = experiment.stream
        if stream not in measured:
            continue
        scored = scorer.score(experiment) if scorer is not None else None
        if lacks := sorted(missing[stream] & used):
            unranked.append((stream, not_comparable(lacks)))
            continue
        if all_have_all:
            taken = steps.follow(experiment, measured[stream])
        else:
            taken = steps.take(experiment, evidence.changes(experiment))
        problem = taken if isinstance(taken, Unmeasured) else scored
        broken = evidence.broken(experiment)
        if isinstance(problem, Unmeasured) or broken:
            reason = problem.reason if isinstance(problem, Unmeasured) else broken
            unranked.append((stream, reason))
            continue
        assert not isinstance(taken, Unmeasured)
        assert not isinstance(scored, Unmeasured)
        own, total = taken
        unknown = {*measured[stream].missing, *evidence.unguarded(experiment)}
        ranked.append(
            Ranked(
                experiment=stream,
                number=experiment.started.number,
                patch=campaign.change_name(experiment),
                step=evolve(own, missing=tuple(sorted(unknown))),
                total=total.value,
                low=total.sure,
                se=total.se,
                standing=Standing(
                    objectives=scored if scored is not None else (total,),
                    incumbent=experiment.started.incumbent,
                ),
            )
        )
    ranked.sort(key=lambda each: each.number)
    place = {experiment.stream: n for n, experiment in enumerate(campaign.judged())}
    zero = (Objective(value=0.0, se=0.0, step_se=0.0),)
    return Ranking(
        ranked=tuple(ranked[n] for n in best_first([each.standing for each in ranked])),
        unranked=tuple(sorted(unranked, key=lambda each: place[each[0]])),
        baseline=Standing(
            objectives=zero if scorer is None else scorer.baseline(), incumbent=campaign.baseline
        ),
        compared_by=tuple(n for n in weights if n in used)
        if scorer is None
        else scorer.compared_by,
        lacking=_lacking(weights, used, missing.values()) if scorer is None else scorer.lacking,
    )


def not_comparable(lacks: Sequence[str]) -> str:
    """Why a candidate is not ranked that lacks signals by which the others are compared."""
    return f"not measured on {', '.join(lacks)}, by which the others are compared"


def _lacking(
    weights: Mapping[str, float], used: frozenset[str], missing: Iterable[frozenset[str]]
) -> Mapping[str, int]:
    """Of signals that are not used, how many candidates have none."""
    everyone = list(missing)
    return {
        name: sum(name in lacks for lacks in everyone)
        for name, weight in weights.items()
        if weight and name not in used
    }


def _scorer(
    fitness: str, campaign: CampaignState, params: RuleParams, profiles: Profiles
) -> Scorer | None:
    """None for what is one number of pairs."""
    if fitness in FITNESSES[:2]:
        return None
    if (goals := goals_of(fitness, params)) is not None:
        return Goals(campaign, params, goals)
    # what only few rankings need
    from aiopt.function_scoring import ByFunction, BySeed
    from aiopt.user_function import user_function

    if fitness == "seed-causal":
        return BySeed(campaign, params, profiles)
    if ":" not in fitness:
        problem = f"{fitness!r}: there are {', '.join(FITNESSES)}"
        raise ConfigError("fitness", [("", problem)])
    return ByFunction(fitness, user_function(fitness), campaign, params, profiles)


def _alone(
    params: RuleParams,
    experiment: ExperimentState,
    weights: Mapping[str, float],
    evidence: "_Evidence",
    pooled: bool,
) -> Fitness | Unmeasured:
    """The fitness on whatever signals the candidate has."""
    assert experiment.verdict is not None
    if experiment.verdict.kind == "invalid":
        return Unmeasured(reason=f"invalid: {experiment.verdict.reason}")
    changes = evidence.changes(experiment)
    return fitness_of(params, experiment.facts, weights, changes, pooled=pooled)


class _Evidence:
    """What profilers say of each candidate beside its incumbent."""

    def __init__(
        self,
        campaign: CampaignState,
        profiles: Profiles,
        weighted: Iterable[str],
        guards: Mapping[str, float] | None,
    ) -> None:
        self._profiles = profiles
        self._baseline = campaign.baseline
        self._weighted, self._guards = tuple(weighted), guards or {}
        for what, names in (("guards", self._guards), ("weights", self._weighted)):
            for name in names:
                self._check(what, name)

    def _check(self, what: str, name: str) -> None:
        if not is_evidence(name):
            problem = "expected PROFILER:SCALAR, such as callgrind:instructions"
            raise ConfigError(what, [(name, problem)])
        answers = [each for answers in self._profiles.values() for each in answers]
        if scalar_of(answers, name) is None:
            known = sorted({a.profiler for a in answers if isinstance(a, EvidenceCaptured)})
            problem = f"not measured in this campaign; its profilers: {', '.join(known) or 'none'}"
            raise ConfigError(what, [(name, problem)])

    def changes(self, experiment: ExperimentState) -> Mapping[str, Change]:
        """Against the incumbent, of what has a weight; what became infinite has no ratio."""
        found = self._of(self._weighted, experiment.started.incumbent, experiment)
        return {name: change for name, change in found.items() if math.isfinite(change.value)}

    def broken(self, experiment: ExperimentState) -> str:
        """Which guard is proved to be broken, and by how much; empty if none is."""
        for name, change in self._guarded(experiment).items():
            if -change.high > math.log1p(self._guards[name]):
                margin = f"beyond its margin of {100 * self._guards[name]:g} %"
                if math.isinf(change.value):
                    return f"{name} was 0 and is not any more, {margin}"
                more = [100 * math.expm1(-x) for x in (change.value, change.high, change.low)]
                return (
                    f"{name} changed by {more[0]:+.1f} % [{more[1]:+.1f}, {more[2]:+.1f}], {margin}"
                )
        return ""

    def unguarded(self, experiment: ExperimentState) -> frozenset[str]:
        """Guards of which candidate or baseline have no measurement."""
        return frozenset(self._guards).difference(self._guarded(experiment))

    def _guarded(self, experiment: ExperimentState) -> Mapping[str, Change]:
        """Against the baseline, as the ranking is: else it could be lost step by step."""
        return self._of(self._guards, self._baseline, experiment)

    def _of(
        self, names: Iterable[str], before: str, experiment: ExperimentState
    ) -> Mapping[str, Change]:
        sides = (self._profiles.get(each, ()) for each in (before, experiment.started.candidate))
        return changes_of(names, *sides)


def equal_weights(params: RuleParams) -> dict[str, float]:
    """Each primary as much as the others."""
    primaries = [name for name, metric in params.metrics.items() if metric.role == "primary"]
    return {name: 1 / len(primaries) for name in primaries}


def breaks_a_guard(
    campaign: CampaignState, experiment: ExperimentState, *, besides: Sequence[str] = ()
) -> bool:
    """Whether its verdict found a guard broken, of another metric than those `besides`. A primary
    may be worse than the incumbent's: that is what the fitness is about.
    """
    verdict = experiment.verdict
    assert verdict is not None
    if verdict.kind == "discard_regression" and not verdict.effects:
        return True  # beyond an absolute limit
    workloads = campaign.params.guard_workloads
    return any(
        effect.state == "broken"
        and (
            effect.workload in workloads
            or (effect.role == "guard" and effect.metric not in besides)
        )
        for effect in verdict.effects
    )
