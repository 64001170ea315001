"""Credit and headroom, folded over a campaign, and how they are shown."""

import math

import pytest

from aiopt.cli._report import causal_lines
from aiopt.events import (
    Claim,
    Effect,
    Event,
    EvidenceCaptured,
    ExperimentStarted,
    MechanismChecked,
    Scalar,
    VerdictReached,
)
from aiopt.ids import candidate_id
from aiopt.replay import CampaignState, fold
from aiopt.views import causal_view
from tests.factories import make
from tests.test_replay import BASE, recorded, started

CAMPAIGN, EXPERIMENT = "cmp-0001~1", "exp-0001~1"
BASELINE = candidate_id(BASE, ())


def ratio(value: float, low: float, high: float) -> Scalar:
    return Scalar(value=value, unit="ratio", low=low, high=high)


def campaign(*more: Event) -> CampaignState:
    parent = make(
        EvidenceCaptured,
        profiler="coz",
        candidate=BASELINE,
        scalars={"slope[a.c:1,work]": ratio(0.6, 0.5, 0.7)},
    )
    begun = make(
        ExperimentStarted,
        campaign=CAMPAIGN,
        number=1,
        purpose="candidate",
        candidate="child",
        incumbent=BASELINE,
    )
    items: list[tuple[str, Event]] = [
        *started(CAMPAIGN),
        (EXPERIMENT, begun),
        (EXPERIMENT, parent),
        *((EXPERIMENT, event) for event in more),
    ]
    (state,) = fold(recorded(items)).campaigns.values()
    return state


def claimed(metric: str = "cpu") -> MechanismChecked:
    return make(
        MechanismChecked,
        claim=Claim(function="a.c:1", metric=metric),
        change=Scalar(
            value=math.log(0.5), unit="ln ratio", low=math.log(0.45), high=math.log(0.55)
        ),
    )


def verdict(effect: float) -> VerdictReached:
    found = Effect(
        metric="cpu",
        workload="mixed",
        role="primary",
        direction="lower",
        pairs=9,
        effect=effect,
        low=effect - 0.02,
        high=effect + 0.02,
    )
    return make(VerdictReached, kind="keep", effects=(found,))


def test_what_was_promised_and_what_came() -> None:
    view = causal_view(campaign(claimed(), verdict(-math.log(0.72))))
    assert view is not None
    assert view.headroom is not None
    assert (view.headroom.line, view.headroom.high) == ("a.c:1", 0.7)
    (row,) = view.credits
    assert row.credit.status == "confirmed"
    assert row.ratio == pytest.approx(0.28 / 0.3)
    text = "\n".join(causal_lines(view))
    assert "one line could save between 50 % and 70 % of the time, most surely in a.c:1" in text
    assert "93 % came true in the median (1 confirmed)" in text
    assert "+30.0 %   +28.0 %   0.93  confirmed" in text


def test_a_claim_in_another_metric_has_no_credit() -> None:
    view = causal_view(campaign(claimed("rss"), verdict(0.3)))
    assert view is not None
    assert view.credits == ()
    assert "came true" not in "\n".join(causal_lines(view))
    assert causal_view(campaign(claimed())) is not None


def test_without_causal_profiles_there_is_nothing_to_show() -> None:
    (state,) = fold(recorded(started(CAMPAIGN))).campaigns.values()
    assert causal_view(state) is None
