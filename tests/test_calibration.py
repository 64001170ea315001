"""Calibration: what the incumbent against itself says of machine, workload and plan."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopt.calibration import (
    REFRESH_PAIRS,
    Calibrated,
    calibrate,
    calibration_of,
    guard_plan,
    guard_spread,
    missing_calibration,
    needs_anew,
)
from aiopt.events import (
    Arm,
    CalibrationFailed,
    CalibrationMeasured,
    Event,
    LayoutBuilt,
    PairScheduled,
    RunMeasured,
)
from aiopt.pairs import pairs_by_purpose, ten_digits
from aiopt.planning import noise_of, pairs_to_prove, plan_guard, plan_stages, sd_of_pairs
from aiopt.rules import NeedsMore, RuleParams, params_from
from aiopt.verdict import Judge

Values = dict[str, float]
Run = Callable[[PairScheduled, Arm, int], Values]

BASE: dict[str, Any] = {
    "metrics": {"cpu": {"role": "primary", "margin": 0.05}},
    "workloads": {"mixed": {}},
    "ncal": 40,
    "ncal_guard": 10,
}


def params(**changes: Any) -> RuleParams:
    return params_from({**BASE, **changes})


def noisy(seed: int = 1, sd: float = 0.01, **more: float) -> Run:
    """Values that vary by `sd` (natural log); `more` gives other metrics and theirs."""
    rng = np.random.default_rng(seed)

    def run(pair: PairScheduled, arm: Arm, time: int) -> Values:
        return {name: math.exp(rng.normal(0.0, each)) for name, each in {"cpu": sd, **more}.items()}

    return run


def ran(rule: RuleParams, run: Run, seed: int = 1, events: Sequence[Event] = ()) -> list[Event]:
    """The events of a calibration; `run` has the pair, the arm and the number of runs before."""
    judge = Judge(calibration_of, rule, seed=seed, number=0, events=events)
    time = 0
    while (pair := judge.next_pair()) is not None:
        judge.tell(pair)
        for position in (1, 2):
            arm: Arm = "A" if pair.order[position - 1] == "A" else "B"
            judge.tell(
                RunMeasured(
                    purpose=pair.purpose,
                    workload=pair.workload,
                    index=pair.index,
                    attempt=pair.attempt,
                    arm=arm,
                    position=position,
                    metrics={name: (value,) for name, value in run(pair, arm, time).items()},
                    texts={},
                    covariates={},
                    log=None,
                )
            )
            time += 1
    return list(judge.events)


def found(rule: RuleParams, events: Sequence[Event]) -> tuple[CalibrationMeasured, ...]:
    outcome = calibration_of(rule, events)
    assert isinstance(outcome, tuple), outcome
    return outcome


def failed(rule: RuleParams, events: Sequence[Event]) -> CalibrationFailed:
    outcome = calibration_of(rule, events)
    assert isinstance(outcome, CalibrationFailed), outcome
    return outcome


def differences(
    events: Sequence[Event], metric: str = "cpu", workload: str = "mixed"
) -> list[float]:
    """By hand, from the raw runs."""
    values: dict[int, dict[str, float]] = {}
    for event in events:
        if isinstance(event, RunMeasured) and (event.purpose, event.workload) == (
            "calibration",
            workload,
        ):
            values.setdefault(event.index, {})[event.arm] = math.log(event.metrics[metric][0])
    return [values[index]["A"] - values[index]["B"] for index in sorted(values)]


# ---- what is reported ----


def test_the_report_is_the_noise_of_the_pairs_and_the_plan_that_follows() -> None:
    rule = params()
    events = ran(rule, noisy())
    (report,) = found(rule, events)
    d = differences(events)
    runs = [event for event in events if isinstance(event, RunMeasured)]
    logs = [math.log(run.metrics["cpu"][0]) for run in runs]
    slower = [
        first.metrics["cpu"] > second.metrics["cpu"]
        for first, second in zip(runs[::2], runs[1::2], strict=True)
    ]
    noise = noise_of(d, slower, logs)
    plan = plan_stages(
        d, mei=0.03, delta0=0.005, alpha1=0.02, alpha2=0.025, power=0.97, cap=40, boot=160
    )
    assert report == CalibrationMeasured(
        workload="mixed",
        metric="cpu",
        role="primary",
        pairs=40,
        sd_pair=ten_digits(noise.sd_pair),
        delta0=0.005,
        mei_eff=ten_digits(plan.mei_eff),
        n1=plan.n1,
        n2=plan.n2,
        pairs_for_mei=pairs_to_prove(plan, 0.03, 0.005),
        autocorrelation=ten_digits(noise.autocorrelation),
        order_effect_p=ten_digits(noise.order_effect_p),
        layout_sd=None,
        warnings=(),
    )


def test_each_of_several_objectives_has_its_share_of_the_levels() -> None:
    rule = params(
        metrics={"cpu": {"role": "primary"}, "rss": {"role": "primary"}},
        workloads={"mixed": {}, "reads": {}},
    )
    events = ran(rule, noisy(rss=0.02))
    plans = calibrate(rule, pairs_by_purpose(events))
    assert list(plans) == [
        ("cpu", "mixed"),
        ("rss", "mixed"),
        ("cpu", "reads"),
        ("rss", "reads"),
    ]
    for (metric, workload), each in plans.items():
        d = differences(events, metric, workload)
        assert each.plan == plan_stages(
            d,
            mei=0.03,
            delta0=0.005,
            alpha1=0.02 / 4,
            alpha2=0.025 / 4,
            power=0.97,
            cap=40,
            boot=160,
        )
        assert each.sd_pair == sd_of_pairs(d)
        assert (each.screen.n, each.screen.alpha) == (each.plan.n1, 0.02 / 4)
        assert (each.screen.mei, each.screen.sd_pair) == (each.plan.mei_eff, each.sd_pair)


def test_a_composite_is_calibrated_as_one_weighted_sum() -> None:
    rule = params(
        metrics={"cpu": {"role": "primary"}, "rps": {"direction": "higher"}},
        weights={"cpu": 3.0, "rps": 1.0},
    )
    events = ran(rule, noisy(rps=0.02))
    (each,) = calibrate(rule, pairs_by_purpose(events)).values()
    pairs = zip(differences(events, "cpu"), differences(events, "rps"), strict=True)
    expected = [0.75 * cpu - 0.25 * rps for cpu, rps in pairs]  # a rate is better when higher
    assert each.objective.key == ("composite", "mixed")
    assert each.sd_pair == pytest.approx(sd_of_pairs(expected))


def test_the_unit_does_not_matter() -> None:
    rule = params()
    events = ran(rule, noisy())
    other = [
        evolve(event, metrics={"cpu": (2.0**20 * event.metrics["cpu"][0],)})
        if isinstance(event, RunMeasured)
        else event
        for event in events
    ]
    (one,), (two,) = found(rule, events), found(rule, other)
    assert (one.n1, one.n2, one.mei_eff) == (two.n1, two.n2, two.mei_eff)
    assert one.sd_pair == pytest.approx(two.sd_pair)
    assert one.autocorrelation == pytest.approx(two.autocorrelation)


def test_a_rate_is_calibrated_like_the_cost_that_it_is_the_inverse_of() -> None:
    rule = params()
    rate = params(metrics={"cpu": {"role": "primary", "direction": "higher"}})
    events = ran(rule, noisy())
    inverse = [
        evolve(event, metrics={"cpu": (1 / event.metrics["cpu"][0],)})
        if isinstance(event, RunMeasured)
        else event
        for event in events
    ]
    (one,), (two,) = found(rule, events), found(rate, inverse)
    assert (one.n1, one.n2, one.order_effect_p) == (two.n1, two.n2, two.order_effect_p)
    assert one.sd_pair == pytest.approx(two.sd_pair)
    assert one.autocorrelation == pytest.approx(two.autocorrelation)


def test_more_pairs_than_were_planned_change_nothing() -> None:
    long = ran(params(ncal=60), noisy())
    assert found(params(ncal=20), long) == found(params(ncal=20), ran(params(ncal=20), noisy()))


# ---- what is missing ----


def test_pairs_of_every_workload_and_then_of_rebuilds_are_asked_for() -> None:
    rule = params(
        workloads={"mixed": {}, "writes": {"guard": True}}, layout={"rotate": 3, "pairs": 4}
    )
    assert missing_calibration(rule, {}) == NeedsMore(
        purpose="calibration", wanted={"mixed": 40, "writes": 10}, missing=50
    )
    events = ran(rule, noisy())
    plain = [e for e in events if getattr(e, "purpose", "") == "calibration"]
    assert missing_calibration(rule, pairs_by_purpose(plain)) == NeedsMore(
        purpose="layout", wanted={"mixed": 12}, missing=12
    )
    assert missing_calibration(rule, pairs_by_purpose(events)) is None


# ---- what makes a machine or a workload unfit ----


@pytest.mark.parametrize("first", [1.02, 0.98])
def test_a_first_run_that_is_always_slower_or_always_faster_fails(first: float) -> None:
    rng = np.random.default_rng(3)

    def run(pair: PairScheduled, arm: Arm, time: int) -> Values:
        return {"cpu": math.exp(rng.normal(0.0, 0.002)) * (1.0 if time % 2 else first)}

    outcome = failed(params(), ran(params(), run))
    assert outcome.cause == "order_effect"
    assert "cpu (mixed)" in outcome.detail


def test_runs_that_are_all_equal_show_no_order() -> None:
    (report,) = found(params(), ran(params(), lambda pair, arm, time: {"cpu": 3.0}))
    assert report.order_effect_p == 1.0
    assert report.sd_pair == 1e-4
    assert (report.n1, report.n2) == (7, 8)
    assert report.warnings == ()


def test_a_workload_that_is_all_noise_fails_unless_another_objective_can_be_proved() -> None:
    wild = params()
    outcome = failed(wild, ran(wild, noisy(sd=3.0)))
    assert outcome.cause == "noise"
    assert "quieter" in outcome.detail
    both = params(metrics={"cpu": {"role": "primary"}, "rss": {"role": "primary"}})
    cpu, rss = found(both, ran(both, noisy(sd=3.0, rss=0.01)))
    assert (cpu.metric, rss.metric) == ("cpu", "rss")
    assert "too noisy for any proof" in cpu.warnings
    assert rss.warnings == ()


def test_an_objective_that_was_never_measured_fails() -> None:
    rule = params(metrics={"cpu": {"role": "primary"}, "note": {}}, weights={"note": 1.0})
    outcome = failed(rule, ran(rule, noisy()))
    assert outcome.cause == "noise"
    assert "no objective" in outcome.detail
    assert calibrate(rule, pairs_by_purpose(ran(rule, noisy()))) == {}


# ---- what the user is told ----


def test_what_cannot_be_proved_is_said_with_what_it_would_take() -> None:
    (report,) = found(params(), ran(params(), noisy(sd=0.1)))
    assert report.mei_eff > 0.03
    assert report.pairs_for_mei > report.n1 + report.n2
    (warning,) = [w for w in report.warnings if w.startswith("effects below")]
    assert f"{1 - math.exp(-report.mei_eff):.1%}" in warning


def test_a_drifting_machine_and_a_cold_start_are_told_and_not_failed() -> None:
    rng = np.random.default_rng(5)

    def drifting(pair: PairScheduled, arm: Arm, time: int) -> Values:
        return {"cpu": math.exp(0.01 * time + rng.normal(0.0, 0.01))}

    (drift,) = found(params(), ran(params(), drifting))
    assert drift.autocorrelation > 0.5
    assert any("autocorrelation" in warning for warning in drift.warnings)

    def cold(pair: PairScheduled, arm: Arm, time: int) -> Values:
        return {"cpu": math.exp(rng.normal(0.0, 0.01) + (0.2 if time < 3 else 0.0))}

    (start,) = found(params(), ran(params(), cold))
    assert any("warm up" in warning for warning in start.warnings)


# ---- guards ----

GUARDED: dict[str, Any] = {
    "metrics": {
        "cpu": {"role": "primary"},
        "p99": {"role": "guard", "margin": 0.1},
        "errors": {"role": "guard", "limit": 0.0},
        "answers": {"kind": "digest"},
        "note": {},
    },
    "workloads": {"mixed": {}, "writes": {"guard": True, "margin": 0.2}},
}


def test_guards_are_planned_where_they_will_be_tested() -> None:
    rule = params(**GUARDED)
    events = ran(rule, noisy(p99=0.03, errors=0.0, note=0.0))
    guards = [report for report in found(rule, events) if report.role == "guard"]
    assert [(g.metric, g.workload) for g in guards] == [("cpu", "writes"), ("p99", "mixed")]
    cpu, p99 = guards
    assert (cpu.pairs, p99.pairs) == (10, 40)
    assert (cpu.mei_eff, p99.mei_eff) == (ten_digits(math.log1p(0.2)), ten_digits(math.log1p(0.1)))
    assert p99.sd_pair == ten_digits(sd_of_pairs(differences(events, "p99")))
    n, reached = plan_guard(
        differences(events, "p99"),
        margin=math.log1p(0.1),
        alpha=0.035,
        power=0.97,
        cap=120,
        boot=160,
    )
    assert (p99.n1, p99.n2, reached) == (0, max(5, n), True)
    assert p99.warnings == ()


def test_a_guard_that_is_too_noisy_for_its_margin_is_told() -> None:
    rule = params(**GUARDED)
    reports = found(rule, ran(rule, noisy(p99=1.0, errors=0.0, note=0.0)))
    (p99,) = [report for report in reports if report.metric == "p99"]
    assert p99.n2 == 120
    assert "wider margin" in p99.warnings[0]


def test_a_guard_without_values_takes_what_its_level_needs_and_has_no_spread() -> None:
    rule = params(**GUARDED)
    measured = pairs_by_purpose(ran(rule, noisy(errors=0.0)))
    assert guard_plan(rule, measured, "p99", "mixed", 0.1, 40) == (5, True)
    assert guard_spread(rule, measured, "p99", "mixed") is None
    assert guard_spread(rule, measured, "cpu", "mixed") is not None
    assert [e.metric for e in found(rule, ran(rule, noisy(errors=0.0)))] == ["cpu", "cpu"]


# ---- layout ----

ROTATED = {"layout": {"rotate": 4, "pairs": 5}}


def built(*digests: str | None) -> list[Event]:
    return [
        LayoutBuilt(candidate="c", layout=layout, digest=digest)
        for layout, digest in enumerate(digests, start=1)
    ]


def by_rebuild(*bias: float, sd: float = 0.003) -> Run:
    """Rebuild l is worse than the plain build by `bias[l - 1]`."""
    rng = np.random.default_rng(2)

    def run(pair: PairScheduled, arm: Arm, time: int) -> Values:
        worse = bias[pair.layout - 1] if pair.purpose == "layout" and arm == "B" else 0.0
        return {"cpu": math.exp(worse + rng.normal(0.0, sd))}

    return run


def test_rebuilds_that_differ_are_measured_and_told() -> None:
    rule = params(**ROTATED)
    (report,) = found(rule, ran(rule, by_rebuild(-0.05, 0.05, -0.02, 0.02)))
    assert report.layout_sd == pytest.approx(np.std([0.05, -0.05, 0.02, -0.02], ddof=1), rel=0.1)
    (warning,) = report.warnings
    assert "rotating over 4 of them leaves" in warning
    assert f"{(report.layout_sd or 0) * math.sqrt(2 / 4):.1%}" in warning


def test_rebuilds_that_do_not_differ_raise_no_alarm() -> None:
    rule = params(**ROTATED)
    (report,) = found(rule, ran(rule, by_rebuild(0.0, 0.0, 0.0, 0.0)))
    assert report.layout_sd == pytest.approx(0.0, abs=0.003)
    assert report.warnings == ()
    (equal,) = found(rule, ran(rule, lambda pair, arm, time: {"cpu": 3.0}))
    assert (equal.layout_sd, equal.warnings) == (0.0, ())


def test_a_plain_build_that_is_unlucky_lets_rebuilds_pass_the_screen() -> None:
    rule = params(**ROTATED)
    (report,) = found(rule, ran(rule, by_rebuild(-0.06, -0.05, -0.07, -0.05)))
    assert any("pass the screen" in warning for warning in report.warnings)


def test_rebuilds_that_are_one_program_fail_before_any_pair() -> None:
    rule = params(**ROTATED)
    outcome = failed(rule, built("x", "x", "x", "x"))
    assert outcome.cause == "layout"
    assert "byte for byte" in outcome.detail
    for unknown in (built("x", "x", "x"), built(None, None, None, None)):
        assert isinstance(calibration_of(rule, unknown), NeedsMore)
    events = ran(rule, by_rebuild(0.0, 0.0, 0.0, 0.0), events=built("x", "y", "x", "z"))
    (report,) = found(rule, events)
    assert report.warnings == ("the rebuilds 1, 3 are the same program: there are 3 layouts",)


def test_where_nothing_can_be_rebuilt_the_floor_of_layout_is_the_margin() -> None:
    events = ran(params(), noisy())
    floored = params(mei=0.05, layout={"floor": 0.02})
    (report,) = found(floored, events)
    assert report.delta0 == 0.02
    (lower,) = found(params(mei=0.05, layout={"floor": 0.001}), events)
    assert lower.delta0 == 0.005
    rotated = params(mei=0.05, layout={"floor": 0.02, "rotate": 4, "pairs": 5})
    (rebuilt,) = found(rotated, ran(rotated, by_rebuild(0.0, 0.0, 0.0, 0.0)))
    assert rebuilt.delta0 == 0.005


# ---- whether it still holds ----


def calibrated(sd: float) -> Calibrated:
    events = ran(params(), noisy(sd=sd))
    (each,) = calibrate(params(), pairs_by_purpose(events)).values()
    return each


def residuals(sd: float, n: int = REFRESH_PAIRS) -> list[float]:
    values: list[float] = np.random.default_rng(9).normal(0.0, sd, n).tolist()
    return values


@pytest.mark.parametrize(
    ("before", "after", "anew"),
    [
        (0.02, 0.03, False),
        (0.02, 0.15, True),
        (0.02, 0.001, True),
        (1e-7, 1e-5, False),  # both are below what is told apart
        (0.0001, 0.001, False),  # ten times as noisy, and the plan is the same
    ],
)
def test_noise_that_changed_the_plan_asks_for_another_calibration(
    before: float, after: float, anew: bool
) -> None:
    each = calibrated(before)
    assert needs_anew(params(), each, residuals(after)) is anew


def test_only_the_latest_fifty_pairs_are_looked_at_and_fewer_say_nothing() -> None:
    each = calibrated(0.02)
    loud, quiet = residuals(0.15), residuals(0.028)
    assert not needs_anew(params(), each, loud[:-1])
    assert not needs_anew(params(), each, [*loud, *quiet])
    assert needs_anew(params(), each, [*quiet, *loud])


@given(st.integers(0, 10_000), st.floats(0.002, 0.2))
@settings(max_examples=25, deadline=None)
def test_a_calibration_of_pure_noise_is_one_event_and_the_same_each_time(
    seed: int, sd: float
) -> None:
    rule = params(ncal=20)
    events = ran(rule, noisy(seed, sd), seed)
    outcome = calibration_of(rule, events)
    assert calibration_of(rule, list(reversed(events))) == outcome
    assert not isinstance(outcome, NeedsMore)
    if isinstance(outcome, CalibrationFailed):
        assert outcome.cause == "order_effect"  # by chance, at most once in a thousand
    else:
        (report,) = outcome
        assert report.mei_eff >= 0.03
        assert 6 <= report.n1 <= 44
        assert 6 <= report.n2 <= 72
