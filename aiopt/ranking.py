"""Who is ahead: every measured candidate of a campaign, by a fitness against the baseline.

A candidate is measured beside the incumbent of its time. Its standing against the baseline is that
step on top of the steps of its incumbents, whose variances add up, so candidates of different
incumbents can be compared.
"""

import math
from collections.abc import Iterable, Mapping

from attrs import evolve, frozen

from aiopt.causal import SeedCausal, seed_causal, signals_of
from aiopt.errors import ConfigError
from aiopt.events import EvidenceCaptured, ProfilerUnavailable
from aiopt.evidence import Change, changes_of, is_evidence, scalar_of
from aiopt.fitness import Fitness, Unmeasured, fitness_of
from aiopt.replay import CampaignState, ExperimentState
from aiopt.rules import RuleParams

__all__ = [
    "DEFAULT_FITNESS",
    "FITNESSES",
    "Ranked",
    "Ranking",
    "equal_weights",
    "rank",
]

DEFAULT_FITNESS = "lower-bound"
FITNESSES = (DEFAULT_FITNESS, "seed-causal")
"""What a ranking can be by."""

_ONE_SIDED = 1.6448536269514722
_THROUGHPUT = ("throughput", "ops_per_sec", "rps", "qps")
_LATENCY = ("p99",)


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
    seed: SeedCausal | None = None
    """The score under the fitness `seed-causal`."""


@frozen(kw_only=True)
class Ranking:
    """The candidates of a campaign that were judged, best first, and those without a number."""

    ranked: tuple[Ranked, ...]
    unranked: tuple[tuple[str, str], ...]
    """Experiment and the reason why it has no fitness."""


def rank(
    campaign: CampaignState,
    *,
    params: RuleParams | None = None,
    weights: Mapping[str, float] | None = None,
    fitness: str = DEFAULT_FITNESS,
    guards: Mapping[str, float] | None = None,
) -> Ranking:
    """Every candidate with a verdict, by the lower confidence bound of its log ratio to the
    baseline, or by another of FITNESSES; the earlier one first where they are equal.

    Without `weights` the primaries count equally.
    What profilers measured can have a weight, as `PROFILER:SCALAR`, less being
    better, and be a guard: `guards` are margins by such names, and a candidate of which it is
    proved that it has more than the margin above the baseline (0.05: by 5 %) is not ranked.

    Raises:
        ConfigError: no such fitness, or a weight or guard for what the campaign did not measure.
    """
    params = params or campaign.params
    if fitness not in FITNESSES:
        problem = f"{fitness!r}: there are {', '.join(FITNESSES)}"
        raise ConfigError("fitness", [("", problem)])
    weights = weights or equal_weights(params)
    origins = {campaign.baseline: _Origin()}
    seed = _Seed(campaign, params) if fitness == "seed-causal" else None
    evidence = _Evidence(campaign, {name for name in weights if is_evidence(name)}, guards)
    ranked, unranked = [], []
    for experiment in campaign.judged():
        assert experiment.verdict is not None
        own: Fitness | Unmeasured
        if experiment.verdict.kind == "invalid":
            own = Unmeasured(reason=f"invalid: {experiment.verdict.reason}")
        else:
            own = fitness_of(params, experiment.facts, weights, evidence.changes(experiment))
            if isinstance(own, Fitness) and (unknown := evidence.unguarded(experiment)):
                own = evolve(own, missing=tuple(sorted({*own.missing, *unknown})))
        if isinstance(own, Unmeasured):
            unranked.append((experiment.stream, own.reason))
            continue
        origin = origins.get(experiment.started.incumbent, _Origin()).after(own)
        origins[experiment.started.candidate] = origin
        if broken := evidence.broken(experiment):
            unranked.append((experiment.stream, broken))
            continue
        score = seed.score(experiment) if seed is not None else None
        if seed is not None and score is None:
            unranked.append((experiment.stream, "none of the signals of seed-causal was measured"))
            continue
        ranked.append(
            Ranked(
                experiment=experiment.stream,
                number=experiment.started.number,
                patch=campaign.change_name(experiment),
                step=own,
                total=origin.total,
                low=origin.low,
                se=math.sqrt(origin.variance),
                seed=score,
            )
        )
    return Ranking(ranked=tuple(sorted(ranked, key=_order)), unranked=tuple(unranked))


def _order(ranked: Ranked) -> tuple[float, float, int]:
    first = ranked.seed.value if ranked.seed is not None else ranked.low
    return -first, -ranked.total, ranked.number


@frozen
class _Origin:
    """Where a candidate stands against the baseline, over the steps of its incumbents."""

    total: float = 0.0
    variance: float = 0.0

    def after(self, step: Fitness) -> "_Origin":
        return _Origin(self.total + step.value, self.variance + step.se**2)

    @property
    def low(self) -> float:
        """The steps' pairs are different ones, so their variances add up."""
        return self.total - _ONE_SIDED * math.sqrt(self.variance)


class _Evidence:
    """What profilers say of each candidate beside its incumbent."""

    def __init__(
        self, campaign: CampaignState, weighted: Iterable[str], guards: Mapping[str, float] | None
    ) -> None:
        self._profiles = _profiles_by_candidate(campaign)
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


def _profiles_by_candidate(
    campaign: CampaignState,
) -> dict[str, list[EvidenceCaptured | ProfilerUnavailable]]:
    found: dict[str, list[EvidenceCaptured | ProfilerUnavailable]] = {}
    for experiment in campaign.experiments.values():
        for answer in experiment.profiles:
            found.setdefault(answer.candidate, []).append(answer)
    return found


class _Seed:
    """The signals of the seed's fitness, candidate by candidate, in the order of the log."""

    def __init__(self, campaign: CampaignState, params: RuleParams) -> None:
        self._params = params
        self._throughput = _seed_metric(params, _THROUGHPUT)
        self._latency = _seed_metric(params, _LATENCY)
        self._profiles = _profiles_by_candidate(campaign)
        self._baseline = signals_of(self._profiles.get(campaign.baseline, ()), params.main[0])
        self._totals: dict[str | None, dict[str, float]] = {
            name: {campaign.baseline: 0.0} for name in (self._throughput, self._latency)
        }

    def score(self, experiment: ExperimentState) -> SeedCausal | None:
        candidate = experiment.started.candidate
        throughput = self._total(experiment, self._throughput)
        latency = self._total(experiment, self._latency)
        signals = evolve(
            signals_of(self._profiles.get(candidate, ()), self._params.main[0]),
            throughput=None if throughput is None else math.exp(throughput),
            latency=None if latency is None else math.exp(-latency),
        )
        return seed_causal(signals, self._baseline)

    def _total(self, experiment: ExperimentState, metric: str | None) -> float | None:
        """Log ratio of one metric against the baseline, positive is better."""
        before = self._totals[metric].get(experiment.started.incumbent)
        if metric is None or before is None:
            return None
        own = fitness_of(self._params, experiment.facts, {metric: 1.0})
        if isinstance(own, Unmeasured):
            return None
        total = self._totals[metric][experiment.started.candidate] = before + own.value
        return total


def _seed_metric(params: RuleParams, words: tuple[str, ...]) -> str | None:
    """The first metric whose name has one of the words in it."""
    return next((name for name in params.metrics if any(word in name for word in words)), None)


def equal_weights(params: RuleParams) -> dict[str, float]:
    """Each primary as much as the others."""
    primaries = [name for name, metric in params.metrics.items() if metric.role == "primary"]
    return {name: 1 / len(primaries) for name in primaries}
