"""The decision: from the raw events of one experiment to a verdict, or to the next pair.

`decide` is pure: no clock, no I/O, no global randomness, so a verdict can be reproduced, and
questioned under other parameters, from the log alone. `Judge` is the same function as a stepper:
ask for the next pair, tell the events of its runs, read the verdict; real campaigns and
simulations both drive it. `protocol` is the way in for whoever has costs and no log.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from attrs import frozen

from aiopt.budget import charge
from aiopt.calibration import calibrate, calibration_of
from aiopt.comparisons import COMPARISONS
from aiopt.errors import ConfigError
from aiopt.events import (
    Arm,
    CalibrationFailed,
    CalibrationMeasured,
    Event,
    LevelCharged,
    Order,
    PairPurpose,
    PairScheduled,
    PairVoided,
    RunMeasured,
    VerdictKind,
    VerdictReached,
)
from aiopt.other_tools import OtherTool
from aiopt.pairs import pairs_by_purpose
from aiopt.rules import NeedsMore, Rule, RuleParams, params_from
from aiopt.signed_rank import SignedRank
from aiopt.stats import PairStage, coin
from aiopt.two_stage import TwoStage

__all__ = [
    "DEFAULT_RULE",
    "RULES",
    "Decider",
    "Judge",
    "ProtocolCampaign",
    "ProtocolStepper",
    "ProtocolVerdict",
    "check_rule",
    "decide",
    "next_pair",
    "params_for",
    "protocol",
    "verdict_by",
]

DEFAULT_RULE = "two-stage"

_RULES: Sequence[Rule] = (
    TwoStage(),
    SignedRank(),
    *(OtherTool(comparison) for comparison in COMPARISONS.values()),
)

RULES: Mapping[str, Rule] = {rule.id: rule for rule in _RULES}
"""Every rule, by id: two of ours, then those of other tools."""

T = TypeVar("T")

Decider = Callable[[RuleParams, Sequence[Event]], T | NeedsMore]
"""From events to an outcome, or to what is missing for one."""

_COIN: Mapping[PairPurpose, PairStage] = {
    "calibration": PairStage.CALIBRATION,
    "layout": PairStage.LAYOUT,
    "screen": PairStage.SCREEN,
    "confirm": PairStage.CONFIRM,
    "guard": PairStage.CONFIRM,
    "audit": PairStage.AUDIT,
    "ablation": PairStage.ABLATION,
}
_REBUILT: frozenset[PairPurpose] = frozenset({"confirm", "guard", "audit", "ablation"})


def decide(rule: str, params: RuleParams, events: Sequence[Event]) -> VerdictReached | NeedsMore:
    """The verdict of a rule on the events of one experiment, or what is missing for it.

    `events` begin with those of the experiment's calibration, if its rule needs one.

    Raises:
        KeyError: no such rule.
    """
    return RULES[rule].decide(params, events)


def params_for(rule: str, data: Mapping[str, Any]) -> RuleParams:
    """The parameters of a rule, from what was logged or is to be.

    Raises:
        ConfigError: no such rule, unknown names, values out of range, or such under which the rule
            could never decide.
    """
    check_rule(rule)
    params = params_from(data)
    check_rule(rule, params)
    return params


def check_rule(rule: str, params: RuleParams | None = None) -> None:
    """Is there such a rule, and could it decide under these parameters?

    Raises:
        ConfigError: no.
    """
    if rule not in RULES:
        raise ConfigError("rule", [("", f"no rule {rule!r}; there are {', '.join(RULES)}")])
    problems = list(RULES[rule].problems(params)) if params is not None else []
    if problems:
        raise ConfigError(f"parameters of the rule {rule}", problems)


def verdict_by(rule: str) -> Decider[VerdictReached]:
    """`decide` by one rule, for a `Judge`."""
    return lambda params, events: decide(rule, params, events)


def next_pair(
    params: RuleParams,
    purpose: PairPurpose,
    workload: str,
    index: int,
    *,
    seed: int,
    number: int,
    series: int = 0,
    attempt: int = 0,
) -> PairScheduled:
    """A pair with its coin: a function of seed, proposal, purpose, workload and index alone.

    A pair that is repeated (`attempt` above 0) keeps its order. `series` tells apart what belongs
    to no proposal: the second audit of a campaign is not to repeat the coins of the first.
    """
    places = list(params.workloads)
    place = 2 * (series * len(places) + places.index(workload)) + (purpose == "guard")
    return PairScheduled(
        purpose=purpose,
        workload=workload,
        index=index,
        attempt=attempt,
        order=coin(seed, number, _COIN[purpose], place * 100_000 + index),
        layout=_layout(params, purpose, index, seed, number),
    )


def _layout(params: RuleParams, purpose: PairPurpose, index: int, seed: int, number: int) -> int:
    """Every rebuild once in each round, shuffled; 0 is the plain build."""
    rebuilds = params.layout.rotate
    if purpose == "layout":
        return 1 + index % rebuilds
    if not rebuilds or purpose not in _REBUILT:
        return 0
    sequence = np.random.SeedSequence([seed, number, PairStage.LAYOUT, index // rebuilds])
    rng = np.random.Generator(np.random.PCG64(sequence))
    return 1 + int(rng.permutation(rebuilds)[index % rebuilds])


class Judge(Generic[T]):
    """One experiment, step by step: `next_pair`, then `tell` what
    was measured, until there is an `outcome`.
    """

    def __init__(
        self,
        decider: Decider[T],
        params: RuleParams,
        *,
        seed: int,
        number: int,
        series: int = 0,
        events: Iterable[Event] = (),
    ) -> None:
        self._decider, self._params = decider, params
        self._seed, self._number, self._series = seed, number, series
        self._events: list[Event] = []
        self._attempts: Counter[tuple[str, str, int]] = Counter()
        self._arms: dict[tuple[str, str, int, int], set[Arm]] = {}
        self._valid: Counter[tuple[str, str]] = Counter()
        self._decided: T | NeedsMore | None = None
        self._any_pair_may_decide = any(
            metric.kind == "digest" or metric.limit is not None
            for metric in params.metrics.values()
        )
        self.tell(*events)

    def tell(self, *events: Event) -> None:
        """What happened: PairScheduled, RunMeasured, PairVoided, gates."""
        for event in events:
            self._events.append(event)
            match event:
                case PairScheduled():
                    key = (event.purpose, event.workload, event.index)
                    self._attempts[key] = max(self._attempts[key], event.attempt + 1)
                case RunMeasured():
                    self._measured(event)
                case PairVoided():
                    run = (event.purpose, event.workload, event.index, event.attempt)
                    self._valid[event.purpose, event.workload] -= len(self._arms.pop(run, ())) == 2
                case _:
                    self._decided = None
        if self._any_pair_may_decide or not self._is_waiting():
            self._decided = None

    def _measured(self, event: RunMeasured) -> None:
        arms = self._arms.setdefault(
            (event.purpose, event.workload, event.index, event.attempt), set()
        )
        arms.add(event.arm)
        self._valid[event.purpose, event.workload] += len(arms) == 2

    def _is_waiting(self) -> bool:
        """Whether pairs are still missing that the last decision asked for, so that
        deciding again would say the same.
        """
        decided = self._decided
        if not isinstance(decided, NeedsMore) or decided.maybe_fewer:
            return False
        return any(
            self._valid[decided.purpose, workload] < wanted
            for workload, wanted in decided.wanted.items()
        )

    @property
    def events(self) -> Sequence[Event]:
        """All that it was told."""
        return tuple(self._events)

    def _now(self) -> T | NeedsMore:
        if self._decided is None:
            self._decided = self._decider(self._params, self._events)
        return self._decided

    @property
    def outcome(self) -> T | None:
        """None while pairs are missing."""
        decided = self._now()
        return None if isinstance(decided, NeedsMore) else decided

    @property
    def missing(self) -> int:
        """Pairs that are missing until the next decision."""
        decided = self._now()
        if not isinstance(decided, NeedsMore):
            return 0
        return sum(
            max(0, wanted - self._valid[decided.purpose, workload])
            for workload, wanted in decided.wanted.items()
        )

    def next_pair(self) -> PairScheduled | None:
        """The pair to run next; None when the outcome is there.

        Workloads take turns, so that a drift of the machine meets all of them alike.
        """
        decided = self._now()
        if not isinstance(decided, NeedsMore):
            return None
        places = list(self._params.workloads)
        index, place = min(
            (self._valid[decided.purpose, workload], places.index(workload))
            for workload, wanted in decided.wanted.items()
            if self._valid[decided.purpose, workload] < wanted
        )
        return next_pair(
            self._params,
            decided.purpose,
            places[place],
            index,
            seed=self._seed,
            number=self._number,
            series=self._series,
            attempt=self._attempts[decided.purpose, places[place], index],
        )


# ---- the same, for costs without a log ----

_METRIC, _WORKLOAD = "cost", "main"


@frozen(kw_only=True)
class ProtocolVerdict:
    """What a `ProtocolStepper` ends with."""

    kind: VerdictKind
    keep: bool
    effect: float
    """Natural log of the cost ratio, positive if B is better; NaN if nothing was measured."""
    interval: tuple[float, float]
    """95 %; infinite where the pairs are too few."""
    stage: Literal["", "screen", "confirm"]
    """The last stage entered; only an effect of `confirm` is unbiased."""
    p_screen: float | None
    p_confirm: float | None
    mei_eff: float | None
    needs: int | None
    """If inconclusive: pairs that a proof of the smallest effect of interest would take."""


class ProtocolStepper:
    """Pairs of one calibration or candidate: ask for an order, run, tell the costs."""

    def __init__(self, judge: Judge[Any]) -> None:
        self._judge = judge
        self._pair: PairScheduled | None = None

    def next_pair(self) -> Order | None:
        """In which order to run the arms of the next pair; None: finished.

        Asking again without telling gives the same pair.
        """
        if self._pair is None:
            self._pair = self._judge.next_pair()
            if self._pair is not None:
                self._judge.tell(self._pair)
        return self._pair.order if self._pair is not None else None

    def tell(self, a: float, b: float) -> None:
        """The costs of arm A and of arm B, in this order whatever ran first.

        Raises:
            ValueError: not positive and finite, or there is no pair to tell of.
        """
        pair = self._scheduled()
        for name, cost in (("a", a), ("b", b)):
            if not (cost > 0 and math.isfinite(cost)):
                msg = f"{name} must be a positive, finite cost, found {cost!r}"
                raise ValueError(msg)
        self._judge.tell(self._run(pair, "A", a), self._run(pair, "B", b))
        self._pair = None

    def void(self, reason: str) -> None:
        """The pair does not count, for a reason that has nothing to do with its costs;
        it is repeated in the same order.

        Raises:
            ValueError: there is no pair to void.
        """
        pair = self._scheduled()
        voided = PairVoided(
            purpose=pair.purpose,
            workload=pair.workload,
            index=pair.index,
            attempt=pair.attempt,
            reason=reason,
        )
        self._judge.tell(voided)
        self._pair = None

    @property
    def verdict(self) -> ProtocolVerdict | None:
        """None until it is finished, and for a calibration."""
        outcome = self.outcome
        return _protocol_verdict(outcome) if isinstance(outcome, VerdictReached) else None

    @property
    def outcome(self) -> Any:
        """The event that a campaign would log: `VerdictReached`, or of a calibration
        a tuple of `CalibrationMeasured` or `CalibrationFailed`. None until it is finished.
        """
        return self._judge.outcome

    @property
    def events(self) -> Sequence[Event]:
        """What a campaign would have logged, its calibration's events first."""
        return self._judge.events

    def _scheduled(self) -> PairScheduled:
        if self._pair is None:
            msg = "there is no pair to tell of: call next_pair() first, until it returns None"
            raise ValueError(msg)
        return self._pair

    @staticmethod
    def _run(pair: PairScheduled, arm: Arm, cost: float) -> RunMeasured:
        return RunMeasured(
            purpose=pair.purpose,
            workload=pair.workload,
            index=pair.index,
            attempt=pair.attempt,
            arm=arm,
            position=1 + pair.order.index(arm),
            metrics={_METRIC: (cost,)},
            texts={},
            covariates={},
            log=None,
        )


def _protocol_verdict(verdict: VerdictReached) -> ProtocolVerdict:
    effect = next(iter(verdict.effects), None)
    value = low = high = None
    if effect is not None:
        value, low, high = effect.effect, effect.low, effect.high
    return ProtocolVerdict(
        kind=verdict.kind,
        keep=verdict.kind == "keep",
        effect=math.nan if value is None else value,
        interval=(-math.inf if low is None else low, math.inf if high is None else high),
        stage=verdict.stage,
        p_screen=verdict.p_screen,
        p_confirm=verdict.p_confirm,
        mei_eff=verdict.mei_eff,
        needs=verdict.pairs_needed,
    )


class ProtocolCampaign:
    """The rule `two-stage` on one cost: first the calibration, then any number of candidates."""

    def __init__(self, params: Mapping[str, Any], seed: int) -> None:
        self.rule_params = params_for(
            DEFAULT_RULE,
            {
                "metrics": {_METRIC: {"role": "primary"}},
                "workloads": {_WORKLOAD: {}},
                **params,
            },
        )
        self._seed = seed
        self._calibration: ProtocolStepper | None = None
        self._plan: Mapping[str, Any] | None = None
        self._charged: list[LevelCharged] = []

    def calibration(self) -> ProtocolStepper:
        """Pairs of the incumbent against itself; the same stepper however often it is asked for."""
        if self._calibration is None:
            judge = Judge(calibration_of, self.rule_params, seed=self._seed, number=0)
            self._calibration = ProtocolStepper(judge)
        return self._calibration

    @property
    def plan(self) -> Mapping[str, Any]:
        """What the calibration led to: `n1`, `n2`, `sd_pair`, `mei_eff`, `warnings` and more.

        Raises:
            ValueError: the calibration is not finished.
        """
        if self._plan is None:
            self._plan = self._planned(self._calibrated())
        return self._plan

    def _calibrated(self) -> ProtocolStepper:
        stepper = self.calibration()
        if stepper.outcome is None:
            msg = "the calibration comes first: run the pairs of calibration() to their end"
            raise ValueError(msg)
        return stepper

    def _planned(self, stepper: ProtocolStepper) -> Mapping[str, Any]:
        params, outcome = self.rule_params, stepper.outcome
        (each,) = calibrate(params, pairs_by_purpose(stepper.events)).values()
        if isinstance(outcome, CalibrationFailed):
            warnings: tuple[str, ...] = (f"{outcome.cause}: {outcome.detail}",)
        else:
            found: CalibrationMeasured = outcome[0]
            warnings = found.warnings
        return {
            "n1": each.plan.n1,
            "n2": each.plan.n2,
            "sd_pair": each.sd_pair,
            "mei_eff": each.plan.mei_eff,
            "reached": each.plan.reached,
            "delta0": each.delta0,
            "alpha1": params.alpha1,
            "alpha2": params.confirm_level,
            "warnings": warnings,
        }

    def candidate(self) -> ProtocolStepper:
        """Pairs of the next candidate, which is charged to the error budget.

        Raises:
            ValueError: the calibration is not finished.
        """
        calibrated = self._calibrated()
        number = len(self._charged) + 1
        charged = charge(self.rule_params, number, self._charged, "")
        self._charged.append(charged)
        judge = Judge(
            verdict_by(DEFAULT_RULE),
            self.rule_params,
            seed=self._seed,
            number=number,
            events=[*calibrated.events, charged],
        )
        return ProtocolStepper(judge)


def protocol(params: Mapping[str, Any], seed: int) -> ProtocolCampaign:
    """A campaign without a log: the decisions of aiopt for costs from anywhere.

    It drives the same rule and the same `Judge` as real campaigns do, so it serves simulations,
    and whoever has a benchmark but no target:

        campaign = protocol({"mei": 0.05}, seed=1)
        pairs = campaign.calibration()
        while (order := pairs.next_pair()) is not None:
            pairs.tell(*run_both(order))          # the incumbent twice
        pairs = campaign.candidate()
        while (order := pairs.next_pair()) is not None:
            pairs.tell(*run_both(order))          # costs of A (incumbent) and of B (candidate)
        print(pairs.verdict)

    Args:
        params: any of `RuleParams` by name; the others have their defaults.
        seed: of the coins.

    Raises:
        ConfigError: unknown names, or values out of range.
    """
    return ProtocolCampaign(params, seed)
