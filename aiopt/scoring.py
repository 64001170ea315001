"""What candidates are compared by.

- `weighted`: the weighted mean of log cost ratios, over all pairs of the main workloads.
- `geometric`: the same, but each main workload counts alike, however many pairs it has: the
  geometric mean of ratios (Fleming and Wallace 1986, "How not to lie with statistics").
- `lexicographic:cpu_seconds=0.02,peak_rss_mb`: the first one decides, and where it does not, the
  next; a difference of less than the tolerance, 0.01 if there is none, or less than the error does
  not decide. `lexicographic` alone: the primaries, in the target's order.
- `seed-causal`: see `aiopt.causal`.
- `MODULE:FUNCTION` or `PATH.py:FUNCTION`: see `aiopt.user_function`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from attrs import evolve, frozen

from aiopt.errors import ConfigError
from aiopt.events import EvidenceCaptured, ProfilerUnavailable
from aiopt.evidence import Change
from aiopt.fitness import Fitness, Unmeasured, fitness_of
from aiopt.replay import CampaignState, ExperimentState
from aiopt.rules import RuleParams
from aiopt.standing import Objective

__all__ = [
    "DEFAULT_FITNESS",
    "FITNESSES",
    "OF_PAIRS",
    "UNFOUNDED",
    "Goals",
    "Profiles",
    "Scorer",
    "Steps",
    "goals_of",
    "profiles_by_candidate",
]

DEFAULT_FITNESS = "weighted"
FITNESSES = (DEFAULT_FITNESS, "geometric", "lexicographic", "seed-causal", "MODULE:FUNCTION")
"""What a ranking can be by."""
OF_PAIRS = FITNESSES[:2]
"""Those that are one number which is made of pairs."""

UNFOUNDED = "its incumbent was not measured on what has a weight"
"""Why a step leads nowhere that is known."""

_TOLERANCE = 0.01

Profiles = Mapping[str, Sequence[EvidenceCaptured | ProfilerUnavailable]]


def profiles_by_candidate(campaign: CampaignState) -> Profiles:
    """All that profilers said, by whom they said it of."""
    found: dict[str, list[EvidenceCaptured | ProfilerUnavailable]] = {}
    for experiment in campaign.experiments.values():
        for answer in experiment.profiles:
            found.setdefault(answer.candidate, []).append(answer)
    return found


@frozen
class _Origin:
    """Where a candidate stands against the baseline, over the steps of its incumbents."""

    total: float = 0.0
    variance: float = 0.0

    def after(self, step: Fitness) -> "_Origin":
        """The steps' pairs are different ones, so their variances add up."""
        return _Origin(self.total + step.value, self.variance + step.se * step.se)


class Steps:
    """A number that is made of pairs, against the baseline: a candidate's own step on top of those
    of its incumbents. Experiments are taken in the order of the log.
    """

    def __init__(
        self,
        campaign: CampaignState,
        params: RuleParams,
        weights: Mapping[str, float],
        *,
        pooled: bool = True,
    ) -> None:
        self._params, self._weights, self._pooled = params, weights, pooled
        self._origins = {campaign.baseline: _Origin()}

    def take(
        self, experiment: ExperimentState, changes: Mapping[str, Change] | None = None
    ) -> tuple[Fitness, Objective] | Unmeasured:
        """Its own step, and where that leads; changes are of evidence that has a weight."""
        facts = experiment.facts
        own = fitness_of(self._params, facts, self._weights, changes, pooled=self._pooled)
        return self.follow(experiment, own)

    def follow(
        self, experiment: ExperimentState, own: Fitness | Unmeasured
    ) -> tuple[Fitness, Objective] | Unmeasured:
        """The same, of a step that is known."""
        if isinstance(own, Unmeasured):
            return own
        before = self._origins.get(experiment.started.incumbent)
        if before is None:
            return Unmeasured(reason=UNFOUNDED)
        after = self._origins[experiment.started.candidate] = before.after(own)
        return own, Objective(value=after.total, se=math.sqrt(after.variance), step_se=own.se)


class Scorer(Protocol):
    """A fitness that is more than one number of pairs."""

    @property
    def compared_by(self) -> tuple[str, ...]:
        """What all candidates are compared by, where that is known."""
        ...

    @property
    def lacking(self) -> Mapping[str, int]:
        """What else there is, and how many candidates lack it."""
        ...

    def baseline(self) -> tuple[Objective, ...]:
        """The objectives of the baseline."""
        ...

    def score(self, experiment: ExperimentState) -> tuple[Objective, ...] | Unmeasured:
        """Of an experiment; asked in the order of the log, of each that was measured, once."""
        ...


def goals_of(fitness: str, params: RuleParams) -> Mapping[str, float] | None:
    """Metrics in the order of their importance, each with its tolerance, as a log ratio; None if
    the fitness is not lexicographic.

    Raises:
        ConfigError: no such metric, or what is no tolerance.
    """
    name, _, text = fitness.partition(":")
    if name != "lexicographic":
        return None
    found: dict[str, float] = {}
    problems = []
    for part in text.split(",") if text else params.primaries:
        metric, _, number = part.partition("=")
        try:
            tolerance = float(number) if number else _TOLERANCE
        except ValueError:
            tolerance = math.nan
        known = params.metrics.get(metric)
        if known is None or known.kind != "number" or metric in found:
            there = ", ".join(n for n, m in params.metrics.items() if m.kind == "number")
            problems.append((metric, f"expected a metric, each once; there are {there}"))
        elif not 0 <= tolerance < 1:
            problems.append((part, "expected a tolerance from 0 to 1, such as 0.02 for 2 %"))
        else:
            found[metric] = -math.log1p(-tolerance)
    if problems:
        raise ConfigError(f"fitness {fitness}", problems)
    return found


class Goals:
    """Of `lexicographic`: an objective for each metric; see `Scorer`."""

    def __init__(
        self, campaign: CampaignState, params: RuleParams, goals: Mapping[str, float]
    ) -> None:
        self.compared_by, self.lacking = tuple(goals), dict[str, int]()
        self._goals = goals
        self._steps = {name: Steps(campaign, params, {name: 1.0}) for name in goals}

    def baseline(self) -> tuple[Objective, ...]:
        return tuple(
            Objective(value=0.0, se=0.0, step_se=0.0, tolerance=tolerance)
            for tolerance in self._goals.values()
        )

    def score(self, experiment: ExperimentState) -> tuple[Objective, ...] | Unmeasured:
        taken = {name: steps.take(experiment) for name, steps in self._steps.items()}
        if lacking := [name for name, each in taken.items() if isinstance(each, Unmeasured)]:
            return Unmeasured(reason=f"not measured on {', '.join(lacking)}")
        return tuple(
            evolve(each[1], tolerance=self._goals[name])
            for name, each in taken.items()
            if not isinstance(each, Unmeasured)
        )
