"""Fitnesses that are a function of what was measured: the seed's, and a user's own."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from attrs import frozen

from aiopt.causal import (
    SeedCausal,
    SeedWeights,
    Signals,
    seed_causal,
    signal_errors,
    signals_of,
)
from aiopt.errors import ConfigError
from aiopt.evidence import Change, changes_of, scalar_names
from aiopt.fitness import Unmeasured, compared_by
from aiopt.replay import CampaignState, ExperimentState
from aiopt.rules import RuleParams
from aiopt.scoring import Profiles, Steps
from aiopt.standing import Objective
from aiopt.user_function import UserFunction

__all__ = ["ByFunction", "BySeed"]

_THROUGHPUT = ("throughput", "ops_per_sec", "rps", "qps")
_LATENCY = ("p99",)
_TERMS = ("throughput", "latency", "causal", "off_cpu")


@frozen(kw_only=True)
class _Known:
    """Numbers of one candidate, with the standard errors of all that led there and of its step."""

    value: Mapping[str, float]
    se: Mapping[str, float]
    step_se: Mapping[str, float]

    def with_evidence(self, value: Mapping[str, float], se: Mapping[str, float]) -> "_Known":
        """And these, which are measured of candidate and baseline and so have one error."""
        return _Known(
            value={**self.value, **value},
            se={**self.se, **se},
            step_se={**self.step_se, **se},
        )


def _objective(function: Callable[[Mapping[str, float]], float], known: _Known) -> Objective:
    """Errors are carried through by how far the function moves when each number does, by one
    standard error to both sides; numbers are taken as independent.
    """

    def error(errors: Mapping[str, float]) -> float:
        moves = []
        for name, se in errors.items():
            if not math.isfinite(se):
                return math.inf
            ends = [function({**known.value, name: known.value[name] + s * se}) for s in (1, -1)]
            moves.append((ends[0] - ends[1]) / 2)
        return math.hypot(*moves)

    return Objective(value=function(known.value), se=error(known.se), step_se=error(known.step_se))


class _Metrics:
    """Metrics, each by itself, as log ratios to the baseline."""

    def __init__(self, campaign: CampaignState, params: RuleParams, names: Iterable[str]) -> None:
        self._steps = {name: Steps(campaign, params, {name: 1.0}) for name in names}

    def of(self, experiment: ExperimentState) -> _Known:
        found = {name: steps.take(experiment) for name, steps in self._steps.items()}
        taken = {n: each[1] for n, each in found.items() if not isinstance(each, Unmeasured)}
        return _Known(
            value={name: objective.value for name, objective in taken.items()},
            se={name: objective.se for name, objective in taken.items()},
            step_se={name: objective.step_se for name, objective in taken.items()},
        )


class _Failed(Exception):
    """Why a function of the user's gives no number."""


class ByFunction:
    """By a function of the user's, of log ratios to the baseline."""

    def __init__(
        self,
        name: str,
        function: UserFunction,
        campaign: CampaignState,
        params: RuleParams,
        profiles: Profiles,
    ) -> None:
        self.compared_by, self.lacking = tuple[str, ...](), dict[str, int]()
        self._name, self._function, self._profiles = name, function, profiles
        self._baseline = campaign.baseline
        numbers = [name for name, metric in params.metrics.items() if metric.kind == "number"]
        self._metrics = _Metrics(campaign, params, numbers)
        scalars = scalar_names(profiles.get(campaign.baseline, ()))
        self._same = dict.fromkeys([*numbers, *scalars], 0.0)

    def baseline(self) -> tuple[Objective, ...]:
        """Of ratios that are all 1.

        Raises:
            ConfigError: the function gives no number.
        """
        try:
            return (_objective(self._call, _Known(value=self._same, se={}, step_se={})),)
        except _Failed as error:
            raise ConfigError("fitness", [("", f"for the baseline itself: {error}")]) from error

    def score(self, experiment: ExperimentState) -> tuple[Objective, ...] | Unmeasured:
        """See `aiopt.scoring.Scorer`."""
        changes = self._changes(experiment)
        known = self._metrics.of(experiment).with_evidence(
            {name: change.value for name, change in changes.items()},
            {name: change.se for name, change in changes.items()},
        )
        try:
            return (_objective(self._call, known),)
        except _Failed as error:
            return Unmeasured(reason=str(error))

    def _changes(self, experiment: ExperimentState) -> Mapping[str, Change]:
        before = self._profiles.get(self._baseline, ())
        after = self._profiles.get(experiment.started.candidate, ())
        found = changes_of(scalar_names(after), before, after)
        return {name: change for name, change in found.items() if math.isfinite(change.value)}

    def _call(self, ratios: Mapping[str, float]) -> float:
        try:
            value = self._function(ratios)
        except Exception as error:
            raise _Failed(f"{self._name}: {type(error).__name__}: {error}") from error
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
        raise _Failed(f"{self._name} returned {value!r}: expected a finite number")


class BySeed:
    """By the seed's formula; terms that not all candidates have are left out of all."""

    def __init__(self, campaign: CampaignState, params: RuleParams, profiles: Profiles) -> None:
        self._workload, self._profiles = params.main[0], profiles
        self._baseline = signals_of(profiles.get(campaign.baseline, ()), self._workload)
        throughput = _first_with(params, _THROUGHPUT)
        latency = _first_with(params, _LATENCY)
        self._names = {"throughput": throughput, "latency": latency}
        metrics = _Metrics(campaign, params, {n for n in (throughput, latency) if n is not None})
        self._known = {
            experiment.stream: self._of(experiment, metrics.of(experiment))
            for experiment in campaign.judged()
        }
        scored = [self._scored(known.value, SeedWeights()) for known in self._known.values()]
        lacking = Counter(frozenset(_TERMS).difference(one.terms) for one in scored if one)
        whole = {name: getattr(SeedWeights(), name) for name in _TERMS}
        used = compared_by(whole, lacking)
        self._weights = SeedWeights(**{n: whole[n] if n in used else 0.0 for n in _TERMS})
        self.compared_by = tuple(name for name in _TERMS if name in used)
        self.lacking = {
            name: sum(count for pattern, count in lacking.items() if name in pattern)
            for name in _TERMS
            if name not in used
        }

    def _of(self, experiment: ExperimentState, metrics: _Known) -> _Known:
        """By the names of the terms."""

        def renamed(found: Mapping[str, float]) -> dict[str, float]:
            return {
                term: found[name]
                for term, name in self._names.items()
                if name is not None and name in found
            }

        profiles = self._profiles.get(experiment.started.candidate, ())
        signals = signals_of(profiles, self._workload)
        measured = {"causal": signals.causal, "off_cpu": signals.off_cpu}
        values = {name: value for name, value in measured.items() if value is not None}
        errors = signal_errors(profiles, self._workload)
        return _Known(
            value=renamed(metrics.value),
            se=renamed(metrics.se),
            step_se=renamed(metrics.step_se),
        ).with_evidence(values, {name: errors[name] for name in values})

    def _scored(self, value: Mapping[str, float], weights: SeedWeights) -> SeedCausal | None:
        throughput, latency = value.get("throughput"), value.get("latency")
        signals = Signals(
            throughput=None if throughput is None else math.exp(throughput),
            latency=None if latency is None else math.exp(-latency),
            causal=value.get("causal"),
            off_cpu=value.get("off_cpu"),
        )
        return seed_causal(signals, self._baseline, weights)

    def baseline(self) -> tuple[Objective, ...]:
        """Exactly 1."""
        return (Objective(value=1.0, se=0.0, step_se=0.0),)

    def score(self, experiment: ExperimentState) -> tuple[Objective, ...] | Unmeasured:
        """See `aiopt.scoring.Scorer`."""
        known = self._known[experiment.stream]
        if self._scored(known.value, SeedWeights()) is None:
            return Unmeasured(reason="none of the signals of seed-causal was measured")
        if self._scored(known.value, self._weights) is None:
            return Unmeasured(reason="none of the signals was measured that the others have")
        return (_objective(self._value, known),)

    def _value(self, value: Mapping[str, float]) -> float:
        scored = self._scored(value, self._weights)
        assert scored is not None
        return scored.value


def _first_with(params: RuleParams, words: tuple[str, ...]) -> str | None:
    """The first metric whose name has one of the words in it."""
    return next((name for name in params.metrics if any(word in name for word in words)), None)
