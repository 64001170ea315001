"""Laws of the whole decision, from calibration to verdict, on costs of every shape of noise."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopt.events import (
    LookTaken,
    PairScheduled,
    PairVoided,
    RunMeasured,
    VerdictReached,
)
from aiopt.rules import NeedsMore
from aiopt.sequential import looks_at
from aiopt.stats import hodges_lehmann, interval, upper_bound
from aiopt.verdict import (
    RULES,
    ProtocolCampaign,
    ProtocolStepper,
    ProtocolVerdict,
    decide,
    protocol,
)

SHAPES: dict[str, Callable[[np.random.Generator], Iterator[float]]] = {}
"""ln(cost) of one run after the other."""


def shape(make: Callable[[np.random.Generator], Iterator[float]]) -> None:
    SHAPES[make.__name__] = make


@shape
def quiet(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield rng.normal(0.0, 0.005)


@shape
def drifting(rng: np.random.Generator) -> Iterator[float]:
    level = 0.0
    while True:
        level = 0.9 * level + rng.normal(0.0, 0.01)
        yield level + rng.normal(0.0, 0.01)


@shape
def spiky(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield rng.normal(0.0, 0.01) + (rng.exponential(0.3) if rng.random() < 0.1 else 0.0)


@shape
def loud(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield rng.standard_t(2) * 0.1


@shape
def counted(rng: np.random.Generator) -> Iterator[float]:
    """Whole numbers, with many ties."""
    while True:
        yield math.log(100 + rng.integers(-2, 3))


shapes = st.sampled_from(sorted(SHAPES))
seeds = st.integers(0, 10_000)
gains = st.sampled_from([0.0, 0.01, 0.03, 0.06, 0.3, -0.04, -0.3])
rules = st.sampled_from(
    [
        {},
        {"delta0": 0.0},
        {"mei": 0.06, "delta0": 0.02},
        {"planned": 5, "cap": 20},
        {"alpha1": 0.1, "alpha2": 0.001},
    ]
)


class Machine:
    """Costs that depend on nothing but how many runs of a stepper there were before."""

    def __init__(self, name: str, seed: int) -> None:
        self._name, self._seed = name, seed

    def run(
        self,
        stepper: ProtocolStepper,
        gain: float,
        number: int,
        cost: Callable[[float], float] = math.exp,
        voids: np.random.Generator | None = None,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        values = SHAPES[self._name](np.random.default_rng([self._seed, number]))
        first_pair = True
        while (order := stepper.next_pair()) is not None:
            if voids is not None and (first_pair or voids.random() < 0.2):
                first_pair = False
                stepper.void("the machine was throttled")
                assert stepper.next_pair() == order
            first, second = next(values), next(values)
            a, b = (first, second) if order == "AB" else (second, first)
            stepper.tell(cost(a), cost(b - gain))
            told()

    def calibrated(
        self,
        rule: dict[str, Any],
        cost: Callable[[float], float] = math.exp,
        voids: np.random.Generator | None = None,
    ) -> ProtocolCampaign:
        campaign = protocol({"ncal": 20, **rule}, self._seed)
        self.run(campaign.calibration(), 0.0, 0, cost, voids)
        return campaign

    def judged(
        self,
        rule: dict[str, Any],
        gain: float,
        cost: Callable[[float], float] = math.exp,
        voids: np.random.Generator | None = None,
    ) -> tuple[ProtocolVerdict, ProtocolStepper]:
        stepper = self.calibrated(rule, cost, voids).candidate()
        self.run(stepper, gain, 1, cost, voids)
        assert stepper.verdict is not None
        return stepper.verdict, stepper


def pairs_of(stepper: ProtocolStepper, purpose: str) -> int:
    """Valid ones."""
    runs = [e for e in stepper.events if isinstance(e, RunMeasured) and e.purpose == purpose]
    return len(runs) // 2


def differences(stepper: ProtocolStepper, purpose: str) -> list[float]:
    """By hand, from the raw runs."""
    logs: dict[int, dict[str, float]] = {}
    for event in stepper.events:
        if isinstance(event, RunMeasured) and event.purpose == purpose:
            (value,) = event.metrics["cost"]
            logs.setdefault(event.index, {})[event.arm] = math.log(value)
    return [logs[index]["A"] - logs[index]["B"] for index in sorted(logs)]


def looks_of(campaign_rule: Any, events: Sequence[Any]) -> list[LookTaken]:
    return list(RULES["two-stage"].looks(campaign_rule, events))


@given(shapes.filter(lambda name: name != "counted"), seeds, rules, gains)
@settings(max_examples=60, deadline=None)
def test_a_rate_is_judged_like_the_cost_that_it_is_the_inverse_of(
    name: str, seed: int, rule: dict[str, Any], gain: float
) -> None:
    """Where there are no ties, which the rounding of an inverse would break."""
    machine = Machine(name, seed)
    cost, _ = machine.judged(rule, gain)
    metric = {"metrics": {"cost": {"role": "primary", "direction": "higher"}}}
    rate, _ = machine.judged({**rule, **metric}, gain, lambda x: 1 / math.exp(x))
    assert (rate.kind, rate.stage, rate.needs) == (cost.kind, cost.stage, cost.needs)
    assert rate.effect == pytest.approx(cost.effect, abs=1e-9)
    assert rate.interval == pytest.approx(cost.interval, abs=1e-9)
    assert rate.p_screen == pytest.approx(cost.p_screen)
    assert rate.p_confirm == pytest.approx(cost.p_confirm)


@given(shapes, seeds, rules, gains)
@settings(max_examples=60, deadline=None)
def test_voided_pairs_leave_the_verdict_as_it_is(
    name: str, seed: int, rule: dict[str, Any], gain: float
) -> None:
    """However many there are, in calibration and candidate: they are repeated in the same order."""
    machine = Machine(name, seed)
    plain, without = machine.judged(rule, gain)
    voided, some = machine.judged(rule, gain, voids=np.random.default_rng(seed))
    assert any(isinstance(event, PairVoided) for event in some.events)
    assert voided == plain
    orders = {(e.purpose, e.index): e.order for e in without.events if isinstance(e, PairScheduled)}
    for event in some.events:
        if isinstance(event, PairScheduled):
            assert event.order == orders[event.purpose, event.index]


@given(shapes, seeds, rules, gains)
@settings(max_examples=40, deadline=None)
def test_until_the_last_pair_it_counts_down_to_a_look_and_decides_nothing(
    name: str, seed: int, rule: dict[str, Any], gain: float
) -> None:
    machine = Machine(name, seed)
    campaign = machine.calibrated(rule)
    stepper = campaign.candidate()
    params = campaign.rule_params
    answers: list[VerdictReached | NeedsMore] = [decide("two-stage", params, stepper.events)]
    machine.run(
        stepper,
        gain,
        1,
        told=lambda: answers.append(decide("two-stage", params, stepper.events)),
    )
    *before, last = answers
    assert isinstance(last, VerdictReached)
    wanted, stage = 0, "screen"
    for done, answer in enumerate(before):
        assert isinstance(answer, NeedsMore)
        if answer.purpose != stage:
            stage, wanted = answer.purpose, 0
        (total,) = answer.wanted.values()
        have = done - (pairs_of(stepper, "screen") if stage == "confirm" else 0)
        assert answer.missing == total - have > 0
        assert total >= wanted  # a look is never put off nearer
        wanted = total
    looks = looks_of(params, stepper.events)
    for purpose in ("screen", "confirm"):
        taken = [look.pairs for look in looks if look.purpose == purpose]
        n = pairs_of(stepper, purpose)
        assert taken == sorted(set(taken))
        assert taken[-1:] == ([n] if n else [])
    screens = [look.pairs for look in looks if look.purpose == "screen"]
    assert screens == list(looks_at(campaign.plan["n1"], 4)[: len(screens)])


@given(shapes, seeds, rules, gains)
@settings(max_examples=60, deadline=None)
def test_a_verdict_says_what_its_looks_said(
    name: str, seed: int, rule: dict[str, Any], gain: float
) -> None:
    machine = Machine(name, seed)
    verdict, stepper = machine.judged(rule, gain)
    campaign = machine.calibrated(rule)
    params = campaign.rule_params
    looks = looks_of(params, stepper.events)
    d = differences(stepper, verdict.stage)
    assert verdict.effect == pytest.approx(hodges_lehmann(d), rel=1e-9)
    assert verdict.interval == pytest.approx(interval(d), rel=1e-9)
    screens = [look for look in looks if look.purpose == "screen"]
    confirms = [look for look in looks if look.purpose == "confirm"]
    assert verdict.p_screen == screens[-1].p
    assert verdict.p_confirm == (confirms[-1].p if confirms else None)
    assert verdict.stage == looks[-1].purpose
    assert verdict.effect == looks[-1].effect
    assert verdict.keep == (
        screens[-1].action == "pass" and bool(confirms) and confirms[-1].action == "pass"
    )
    assert screens[-1].used <= params.alpha1 * (1 + 1e-9)
    if confirms:
        assert screens[-1].action == "pass"
        assert confirms[-1].used <= params.confirm_level * (1 + 1e-9)
    if verdict.kind == "inconclusive":
        assert verdict.needs is not None
        assert verdict.needs > 0
        assert looks[-1].action == "cap" or campaign.plan["mei_eff"] > params.mei
        assert upper_bound(differences(stepper, verdict.stage), 0.9) >= params.mei
    if verdict.kind == "keep":
        assert verdict.effect > params.delta0


@given(shapes, seeds, rules, gains, st.data())
@settings(max_examples=40, deadline=None)
def test_an_experiment_that_was_cut_off_is_never_judged(
    name: str, seed: int, rule: dict[str, Any], gain: float, data: st.DataObject
) -> None:
    """What is missing is said, also by a replay of its log, and never guessed."""
    machine = Machine(name, seed)
    verdict, stepper = machine.judged(rule, gain)
    params = machine.calibrated(rule).rule_params
    again = decide("two-stage", params, stepper.events)
    assert isinstance(again, VerdictReached)
    assert again.kind == verdict.kind
    cut = data.draw(st.integers(0, len(stepper.events) - 1))
    assert isinstance(decide("two-stage", params, stepper.events[:cut]), NeedsMore)


@given(shapes, seeds, st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_candidates_do_not_depend_on_each_other(name: str, seed: int, others: int) -> None:
    """The n-th candidate of a campaign is judged alike whatever became of those before it."""
    machine = Machine(name, seed)
    verdicts = []
    for gain in (0.0, 0.3, None):
        campaign = machine.calibrated({})
        for number in range(others):
            before = campaign.candidate()
            if gain is not None:
                machine.run(before, gain, 100 + number)
        stepper = campaign.candidate()
        machine.run(stepper, 0.05, 1)
        verdicts.append(stepper.verdict)
    assert verdicts[0] == verdicts[1] == verdicts[2]


def test_the_shapes_are_told_apart() -> None:
    """All kinds of verdicts come up, so that the laws above say something of each."""
    kinds = {
        Machine(name, seed).judged({}, gain)[0].kind
        for name in SHAPES
        for seed in range(3)
        for gain in (0.0, 0.06, -0.3)
    }
    assert kinds == {"keep", "discard_no_effect", "discard_regression", "inconclusive"}
