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
    OF_PAIRS,
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
    verdict: str
    """As it was logged: a candidate that ranks first may break a guard."""
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
    compared = _Compared(campaign, params, weights, evidence, pooled=pooled, complete=complete)
    ranked, unranked = list[Ranked](), list[tuple[str, str]]()
    for experiment in campaign.judged():
        found = compared.of(experiment)
        scored = scorer.score(experiment) if scorer is not None and _is_valid(experiment) else None
        broken = evidence.broken(experiment)
        if isinstance(found, Unmeasured):
            unranked.append((experiment.stream, found.reason))
        elif isinstance(scored, Unmeasured):
            unranked.append((experiment.stream, scored.reason))
        elif broken:
            unranked.append((experiment.stream, broken))
        else:
            step, total = found
            unknown = {*step.missing, *evidence.unguarded(experiment)}
            step = evolve(step, missing=tuple(sorted(unknown)))
            objectives = scored if scored is not None else (total,)
            ranked.append(_ranked(campaign, experiment, step, total, objectives))
    ranked.sort(key=lambda each: each.number)
    zero = (Objective(value=0.0, se=0.0, step_se=0.0),)
    return Ranking(
        ranked=tuple(ranked[n] for n in best_first([each.standing for each in ranked])),
        unranked=tuple(unranked),
        baseline=Standing(
            objectives=zero if scorer is None else scorer.baseline(), incumbent=campaign.baseline
        ),
        compared_by=compared.compared_by if scorer is None else scorer.compared_by,
        lacking=compared.lacking if scorer is None else scorer.lacking,
    )


def _ranked(
    campaign: CampaignState,
    experiment: ExperimentState,
    step: Fitness,
    total: Objective,
    objectives: tuple[Objective, ...],
) -> Ranked:
    assert experiment.verdict is not None
    return Ranked(
        experiment=experiment.stream,
        number=experiment.started.number,
        patch=campaign.change_name(experiment),
        verdict=experiment.verdict.kind,
        step=step,
        total=total.value,
        low=total.sure,
        se=total.se,
        standing=Standing(objectives=objectives, incumbent=experiment.started.incumbent),
    )


def _is_valid(experiment: ExperimentState) -> bool:
    return experiment.verdict is not None and experiment.verdict.kind != "invalid"


class _Compared:
    """The fitness of every candidate, on the signals by which all of them are compared."""

    def __init__(
        self,
        campaign: CampaignState,
        params: RuleParams,
        weights: Mapping[str, float],
        evidence: "_Evidence",
        *,
        pooled: bool,
        complete: bool,
    ) -> None:
        self._evidence = evidence
        self._whole = {
            each.stream: fitness_of(
                params, each.facts, weights, evidence.changes(each), pooled=pooled
            )
            for each in campaign.judged()
            if _is_valid(each)
        }
        missing = Counter(
            frozenset(own.missing) for own in self._whole.values() if isinstance(own, Fitness)
        )
        self._used = compared_by(weights, missing, complete=complete)
        used = {name: weight for name, weight in weights.items() if name in self._used}
        self._all_have_all = not any(missing)
        self._steps = Steps(campaign, params, used, pooled=pooled)
        self.compared_by = tuple(used)
        self.lacking = {
            name: sum(count for lacks, count in missing.items() if name in lacks)
            for name, weight in weights.items()
            if weight and name not in used
        }

    def of(self, experiment: ExperimentState) -> tuple[Fitness, Objective] | Unmeasured:
        """The candidate's step and where it leads; asked in the order of the log. What the step
        lacks is of all signals.
        """
        whole = self._whole.get(experiment.stream)
        if whole is None:
            assert experiment.verdict is not None
            return Unmeasured(reason=f"invalid: {experiment.verdict.reason}")
        if isinstance(whole, Unmeasured):
            return whole
        if lacks := sorted(self._used.intersection(whole.missing)):
            return Unmeasured(reason=not_comparable(lacks))
        if self._all_have_all:
            return self._steps.follow(experiment, whole)
        taken = self._steps.take(experiment, self._evidence.changes(experiment))
        if isinstance(taken, Unmeasured):
            return taken
        return evolve(taken[0], missing=whole.missing), taken[1]


def not_comparable(lacks: Sequence[str]) -> str:
    """Why a candidate is not ranked that lacks signals by which the others are compared."""
    return f"not measured on {', '.join(lacks)}, by which the others are compared"


def _scorer(
    fitness: str, campaign: CampaignState, params: RuleParams, profiles: Profiles
) -> Scorer | None:
    """None for what is one number of pairs."""
    if fitness in OF_PAIRS:
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
