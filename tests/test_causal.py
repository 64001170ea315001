"""The seed's fitness with its faults bounded, headroom, and credit for predictions."""

import math

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from aiopt.causal import (
    Credit,
    Headroom,
    SeedWeights,
    Signals,
    credit_of,
    headroom,
    seed_causal,
    signals_of,
    summarise,
)
from aiopt.events import Claim, EvidenceCaptured, MechanismChecked, ProfilerUnavailable, Scalar
from tests.factories import make

some = st.none() | st.floats(0, 1e6)
shares = st.none() | st.floats(-1, 2)
ratios = st.none() | st.floats(0.01, 100)


def ratio(value: float, low: float | None = None, high: float | None = None) -> Scalar:
    return Scalar(value=value, unit="ratio", low=low, high=high)


def evidence(**scalars: Scalar) -> EvidenceCaptured:
    return make(
        EvidenceCaptured, scalars={name.replace("__", ":"): s for name, s in scalars.items()}
    )


def coz(**lines: Scalar) -> EvidenceCaptured:
    return make(
        EvidenceCaptured, scalars={f"slope[{line}.c:1,work]": s for line, s in lines.items()}
    )


# ---- the seed's formula ----


@given(shares, some)
def test_the_baseline_is_exactly_one(causal: float | None, off_cpu: float | None) -> None:
    """In every mode: whatever of the signals there is."""
    same = Signals(throughput=1.0, latency=1.0, causal=causal, off_cpu=off_cpu)
    found = seed_causal(same, same)
    assert found is not None
    assert found.value == pytest.approx(1.0)


@given(ratios, ratios, shares, some, shares, some)
def test_nothing_scores_above_what_was_measured(
    throughput: float | None,
    latency: float | None,
    causal: float | None,
    off_cpu: float | None,
    causal0: float | None,
    off_cpu0: float | None,
) -> None:
    candidate = Signals(throughput=throughput, latency=latency, causal=causal, off_cpu=off_cpu)
    found = seed_causal(candidate, Signals(causal=causal0, off_cpu=off_cpu0))
    if found is None:
        return
    assert found.terms.get("causal", 1.0) <= 2.0
    assert 0.25 <= found.terms.get("off_cpu", 1.0) <= 4.0
    assert min(found.terms.values()) <= found.value + 1e-9
    assert found.value <= max(found.terms.values()) + 1e-9
    assert set(found.terms) | set(found.missing) == {"throughput", "latency", "causal", "off_cpu"}


def test_missing_signals_renormalise() -> None:
    fast = Signals(throughput=1.2, latency=0.8)
    found = seed_causal(fast, Signals(causal=0.5, off_cpu=3.0))
    assert found is not None
    assert found.value == pytest.approx((0.3 * 1.2 + 0.2 / 0.8) / 0.5)
    assert found.missing == ("causal", "off_cpu")


def test_without_any_signal_there_is_no_score() -> None:
    assert seed_causal(Signals(), Signals()) is None
    assert seed_causal(Signals(latency=0.0), Signals()) is None
    weights = SeedWeights(throughput=0.0)
    assert seed_causal(Signals(throughput=2.0), Signals(), weights) is None


def test_waiting_less_is_bounded() -> None:
    weights = SeedWeights(throughput=0, latency=0, causal=0, off_cpu=1)
    for now, before, expected in ((0, 10, 4), (0, 0, 1), (10, 0, 0.25), (5, 10, 2)):
        found = seed_causal(Signals(off_cpu=now), Signals(off_cpu=before), weights)
        assert found is not None
        assert found.value == expected


MAIN = make(EvidenceCaptured).workload


def test_signals_come_from_evidence() -> None:
    waits = evidence(**{"off_cpu_ms[I]": ratio(2.0), "off_cpu_ms[L]": ratio(3.0)})
    waits = evolve(waits, profiler="offcpu")
    silent = make(ProfilerUnavailable)
    found = signals_of([coz(a=ratio(0.4), b=ratio(-0.2)), silent, waits], MAIN)
    assert found == Signals(causal=0.4, off_cpu=5.0)
    assert signals_of([coz(a=ratio(-0.4))], MAIN) == Signals(causal=0.0)
    assert signals_of([silent, evidence()], MAIN) == Signals()


def test_what_a_profiler_said_last_counts_and_counts_once() -> None:
    """Of the same workload; and of two profilers of waiting, one is believed."""
    waits = evolve(evidence(**{"off_cpu_ms[L]": ratio(3.0)}), profiler="offcpu")
    same = evolve(waits, profiler="seen-again")
    elsewhere = evolve(waits, workload="another", scalars={"off_cpu_ms[L]": ratio(90.0)})
    again = [coz(a=ratio(0.4)), waits, waits, same, elsewhere, coz(c=ratio(0.3))]
    assert signals_of(again, MAIN) == Signals(causal=0.3, off_cpu=3.0)
    assert headroom([coz(a=ratio(0.4, 0.3, 0.5)), coz(a=ratio(0.1, 0.0, 0.2))]) == Headroom(
        low=0.0, high=0.2, line=""
    )


# ---- headroom ----


def test_headroom_is_between_the_bounds() -> None:
    profile = coz(a=ratio(0.4, 0.3, 0.5), b=ratio(0.1, -0.4, 0.6), c=ratio(0.1))
    assert headroom([profile, make(ProfilerUnavailable)]) == Headroom(
        low=0.3, high=0.6, line="a.c:1"
    )


def test_only_the_upper_bound_says_that_nothing_is_left() -> None:
    little = headroom([coz(a=ratio(0.0, -0.02, 0.03))])
    assert little is not None
    assert (little.low, little.line, little.exhausted) == (0.0, "", True)
    unclear = headroom([coz(a=ratio(0.0, -0.3, 0.3))])
    assert unclear is not None
    assert not unclear.exhausted
    wild = headroom([coz(a=ratio(0.0, -0.9, 1.4))])
    assert wild is not None
    assert wild.high == 1.0  # nobody saves more than all
    assert headroom([coz(a=ratio(0.2))]) is None


# ---- credit ----


def checked(change: Scalar | None, function: str = "a.c:1") -> MechanismChecked:
    return MechanismChecked(
        claim=Claim(function=function, metric="cpu"),
        profiler="coz",
        status="confirmed",
        change=change,
        detail="",
    )


HALVED = Scalar(value=math.log(0.5), unit="ln ratio", low=math.log(0.45), high=math.log(0.55))
PARENT = coz(a=ratio(0.6, 0.5, 0.7), b=ratio(0.0, -0.05, 0.05))


def credit(realised: Scalar, function: str = "a.c:1") -> Credit:
    found = credit_of(checked(HALVED, function), realised, [make(ProfilerUnavailable), PARENT])
    assert found is not None
    return found


def test_a_promise_that_was_kept_is_confirmed() -> None:
    found = credit(ratio(0.28, 0.25, 0.31))
    assert found.predicted.value == pytest.approx(0.3)
    assert found.predicted.low == pytest.approx(0.5 * 0.45)
    assert found.predicted.high == pytest.approx(0.7 * 0.55)
    assert found.status == "confirmed"
    assert found.ratio == pytest.approx(0.28 / 0.3)


def test_a_promise_that_was_not_kept_is_absorbed() -> None:
    assert credit(ratio(0.0, -0.02, 0.02)).status == "absorbed"


def test_a_gain_without_a_promise_has_another_cause() -> None:
    unexpected = credit(ratio(0.3, 0.28, 0.32), "b.c:1")
    assert (unexpected.status, unexpected.ratio) == ("other_cause", None)


def test_a_promise_need_not_be_exact() -> None:
    assert credit(ratio(0.8, 0.78, 0.82)).status == "exceeded"
    assert credit(ratio(0.05, 0.04, 0.06)).status == "fell_short"


def test_nothing_promised_and_nothing_gained() -> None:
    assert credit(ratio(0.0, -0.02, 0.02), "b.c:1").status == "no_effect"


def test_without_intervals_estimates_have_to_do() -> None:
    found = credit_of(
        checked(Scalar(value=math.log(0.5), unit="ln ratio")), ratio(0.3), [coz(a=ratio(0.6))]
    )
    assert found is not None
    assert found.status == "confirmed"


def test_a_curve_says_more_than_its_slope() -> None:
    """It flattens where another thread becomes critical; beyond its points the slope has to do."""
    curve = {
        "slope[a.c:1,work]": ratio(0.6, 0.5, 0.7),
        "delta[a.c:1,work,40]": ratio(0.4, 0.35, 0.45),
        "delta[a.c:1,work,60]": ratio(0.5, 0.4, 0.6),
        "delta[a.c:1,other,50]": ratio(-1.0),
    }
    parent = [make(EvidenceCaptured, scalars=curve)]
    half = credit_of(checked(HALVED), ratio(0.45, 0.44, 0.46), parent)
    assert half is not None
    assert half.predicted.value == pytest.approx(0.45)
    assert half.status == "confirmed"
    assert half.predicted.low is not None
    assert half.predicted.high is not None
    assert 0.35 < half.predicted.low < 0.45 < half.predicted.high < 0.6
    most = Scalar(value=math.log(0.1), unit="ln ratio")
    beyond = credit_of(checked(most), ratio(0.5), parent)
    assert beyond is not None
    assert beyond.predicted.value == pytest.approx(0.9 * 0.6)


def test_a_bound_of_zero_is_a_bound() -> None:
    found = credit_of(checked(HALVED), ratio(0.0, -0.01, 0.01), [coz(a=ratio(0.3, 0.0, 0.6))])
    assert found is not None
    assert (found.predicted.low, found.status) == (0.0, "no_effect")


def test_where_nothing_is_known_there_is_no_credit() -> None:
    assert credit_of(checked(None), ratio(0.3), [PARENT]) is None
    assert credit_of(checked(HALVED, "other.c:9"), ratio(0.3), [PARENT]) is None


def test_a_campaign_is_summed_up() -> None:
    kept, lost = credit(ratio(0.28, 0.25, 0.31)), credit(ratio(0.0, -0.02, 0.02))
    other = credit(ratio(0.3, 0.28, 0.32), "b.c:1")
    found = summarise([kept, lost, other])
    assert found.counts == {"confirmed": 1, "absorbed": 1, "other_cause": 1}
    assert found.median_ratio == pytest.approx((0.28 / 0.3) / 2)
    assert summarise([]).median_ratio is None
