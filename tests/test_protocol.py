"""The way in for costs without a log: `aiopt.verdict:protocol`."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopt.budget import charge_of
from aiopt.codec import encode
from aiopt.errors import ConfigError
from aiopt.events import CalibrationFailed, LevelCharged, VerdictReached
from aiopt.rules import NeedsMore, vary
from aiopt.verdict import (
    RULES,
    ProtocolCampaign,
    ProtocolStepper,
    ProtocolVerdict,
    decide,
    protocol,
)

Cost = Callable[[], float]


def noisy(seed: int, sd: float = 0.0125) -> Cost:
    rng = np.random.default_rng(seed)
    return lambda: math.exp(rng.normal(0.0, sd))


def calibrated(
    seed: int, cost: Cost, params: Mapping[str, Any] | None = None, unit: float = 1.0
) -> ProtocolCampaign:
    campaign = protocol({"ncal": 20, **(params or {})}, seed)
    pairs = campaign.calibration()
    while pairs.next_pair() is not None:
        pairs.tell(unit * cost(), unit * cost())
    return campaign


def judged(
    campaign: ProtocolCampaign, cost: Cost, gain: float, unit: float = 1.0
) -> tuple[ProtocolVerdict, ProtocolStepper]:
    stepper = campaign.candidate()
    while stepper.next_pair() is not None:
        a, b = cost(), cost()
        stepper.tell(unit * a, unit * b * math.exp(-gain))
    assert stepper.verdict is not None
    return stepper.verdict, stepper


def test_a_campaign_from_calibration_to_verdicts() -> None:
    cost = noisy(1)
    campaign = calibrated(1, cost)
    plan = campaign.plan
    assert {"n1", "n2", "sd_pair", "mei_eff", "warnings"} <= set(plan)
    assert plan["mei_eff"] == 0.03
    kept, _ = judged(campaign, cost, 0.06)
    assert (kept.kind, kept.keep, kept.stage) == ("keep", True, "confirm")
    assert kept.interval[0] < kept.effect < kept.interval[1]
    assert kept.effect == pytest.approx(0.06, abs=0.02)
    assert kept.p_screen is not None
    assert kept.p_confirm is not None
    lost, _ = judged(campaign, cost, -0.06)
    assert (lost.kind, lost.keep, lost.stage) == ("discard_regression", False, "screen")
    assert lost.p_confirm is None
    none, _ = judged(campaign, cost, 0.0)
    assert not none.keep


def test_the_calibration_comes_first() -> None:
    campaign = protocol({}, 1)
    with pytest.raises(ValueError, match="calibration comes first"):
        campaign.candidate()
    with pytest.raises(ValueError, match="calibration comes first"):
        _ = campaign.plan
    assert campaign.calibration() is campaign.calibration()
    assert campaign.calibration().verdict is None


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown"):
        protocol({"alhpa1": 0.02}, 1)
    with pytest.raises(ConfigError, match="mei"):
        protocol({"mei": 0.001}, 1)
    with pytest.raises(ConfigError, match="alpha1"):
        protocol({"alpha1": 1e-5, "cap": 10}, 1)
    stepper = protocol({}, 1).calibration()
    with pytest.raises(ValueError, match="no pair"):
        stepper.tell(1.0, 1.0)
    with pytest.raises(ValueError, match="no pair"):
        stepper.void("noise")
    stepper.next_pair()
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive"):
            stepper.tell(1.0, wrong)


def test_asking_again_gives_the_same_pair_and_a_void_one_is_repeated_in_the_same_order() -> None:
    stepper = protocol({}, 7).calibration()
    orders = []
    for _ in range(12):
        order = stepper.next_pair()
        assert stepper.next_pair() == order
        stepper.void("the machine was throttled")
        assert stepper.next_pair() == order
        stepper.tell(1.0, 1.0)
        orders.append(order)
    assert set(orders) == {"AB", "BA"}


def test_void_pairs_count_for_nothing() -> None:
    plain, voided = noisy(3), noisy(3)
    one = calibrated(3, plain)
    two = protocol({"ncal": 20}, 3)
    pairs = two.calibration()
    while pairs.next_pair() is not None:
        pairs.void("first try")
        pairs.next_pair()
        pairs.tell(voided(), voided())
    assert one.plan == two.plan


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.03, 0.06, -0.04]))
@settings(max_examples=40, deadline=None)
def test_another_unit_changes_nothing(seed: int, gain: float) -> None:
    verdicts = []
    for unit in (1.0, 1024.0):  # a power of two, so that the logs differ by rounding alone
        cost = noisy(seed)
        campaign = calibrated(seed, cost, unit=unit)
        verdict, stepper = judged(campaign, cost, gain, unit)
        verdicts.append((verdict.kind, round(verdict.effect, 9), len(stepper.events)))
    assert verdicts[0] == verdicts[1]


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.03, 0.06]))
@settings(max_examples=40, deadline=None)
def test_with_the_arms_swapped_the_verdict_mirrors(seed: int, gain: float) -> None:
    """The first look's estimate changes its sign, and of a candidate and its mirror image at most
    one is kept.
    """
    campaign = calibrated(seed, noisy(seed))
    verdicts, first_looks = [], []
    for swap in (False, True):
        cost = noisy(seed + 1)
        stepper = calibrated(seed, noisy(seed)).candidate()
        while stepper.next_pair() is not None:
            pair = (cost(), cost() * math.exp(-gain))
            stepper.tell(*(reversed(pair) if swap else pair))
        verdicts.append(stepper.verdict)
        first_looks.append(RULES["two-stage"].looks(campaign.rule_params, stepper.events)[0])
    one, other = (verdict for verdict in verdicts if verdict is not None)
    assert first_looks[0].effect == pytest.approx(-first_looks[1].effect, abs=1e-9)
    assert not (one.keep and other.keep)
    if one.keep:
        assert other.kind in ("discard_regression", "discard_no_effect")


@given(st.integers(0, 10_000), st.floats(0.0, 0.05))
@settings(max_examples=40, deadline=None)
def test_a_candidate_that_is_cheaper_in_every_run_is_kept_if_the_other_was(
    seed: int, more: float
) -> None:
    verdicts = []
    for extra in (0.0, more):
        cost = noisy(seed)
        campaign = calibrated(seed, cost)
        verdicts.append(judged(campaign, cost, 0.05 + extra)[0])
    if verdicts[0].p_screen == verdicts[1].p_screen and verdicts[0].keep:
        assert verdicts[1].keep


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.02, 0.05]))
@settings(max_examples=30, deadline=None)
def test_a_verdict_is_reproduced_byte_for_byte_and_questioned_under_other_parameters(
    seed: int, gain: float
) -> None:
    cost = noisy(seed)
    campaign = calibrated(seed, cost)
    _, stepper = judged(campaign, cost, gain)
    again = decide("two-stage", campaign.rule_params, stepper.events)
    assert isinstance(again, VerdictReached)
    assert encode(again) == encode(stepper.outcome)
    for change in ({"alpha1": 0.005}, {"mei": 0.06}, {"delta0": 0.02}, {"pfer": 0.01}):
        other = decide("two-stage", vary(campaign.rule_params, **change), stepper.events)
        assert isinstance(other, VerdictReached | NeedsMore)
    longer = vary(campaign.rule_params, ncal=40)
    needs = decide("two-stage", longer, stepper.events)
    assert needs == NeedsMore(purpose="calibration", wanted={"main": 40}, missing=20)


def test_candidates_are_charged_in_turn() -> None:
    campaign = calibrated(1, noisy(1), {"planned": 2})
    levels = []
    for _ in range(4):
        stepper = campaign.candidate()
        (charged,) = [event for event in stepper.events if isinstance(event, LevelCharged)]
        levels.append((charged.ordinal, charged.charged))
    assert [ordinal for ordinal, _ in levels] == [1, 2, 3, 4]
    assert levels[0][1] == levels[1][1] >= levels[2][1]
    assert [cost for _, cost in levels] == [charge_of(campaign.rule_params, t) for t in range(1, 5)]


def test_a_machine_on_which_the_order_matters_warns() -> None:
    campaign = protocol({}, 1)
    pairs = campaign.calibration()
    while (order := pairs.next_pair()) is not None:
        first, second = 1.10, 1.0
        pairs.tell(*((first, second) if order == "AB" else (second, first)))
    assert isinstance(pairs.outcome, CalibrationFailed)
    assert pairs.outcome.cause == "order_effect"
    (warning,) = campaign.plan["warnings"]
    assert warning.startswith("order_effect")


def test_coins_depend_on_the_seed_and_the_candidate() -> None:
    def orders(seed: int, candidate: int) -> str:
        campaign = calibrated(seed, lambda: 1.0)
        stepper = campaign.candidate()
        for _ in range(candidate - 1):
            stepper = campaign.candidate()
        found = []
        for _ in range(4):
            found.append(stepper.next_pair() or "")
            stepper.tell(1.0, 1.0)
        return "".join(found)

    assert orders(1, 1) == orders(1, 1)
    assert len({orders(seed, n) for seed in (1, 2, 3) for n in (1, 2, 3)}) > 5


def test_events_are_what_a_log_holds() -> None:
    _, stepper = judged(calibrated(5, noisy(5)), noisy(5), 0.05)
    for event in stepper.events:
        name, version, payload = encode(event)
        assert (name, version) == (type(event).__name__, 1)
        assert orjson.loads(payload)


def test_an_objective_that_has_no_value_leaves_no_effect() -> None:
    metrics = {"cost": {"role": "primary"}, "other": {}}
    campaign = calibrated(1, noisy(1), {"metrics": metrics, "weights": {"other": 1.0}})
    assert isinstance(campaign.calibration().outcome, CalibrationFailed)
    stepper = campaign.candidate()
    assert stepper.next_pair() is None
    assert stepper.verdict is not None
    assert (stepper.verdict.kind, stepper.verdict.stage) == ("inconclusive", "")
    assert math.isnan(stepper.verdict.effect)
    assert stepper.verdict.interval == (-math.inf, math.inf)
