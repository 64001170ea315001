"""The rule `two-stage` on made-up runs: objectives, stages, guards, labels."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from aiopt.calibration import calibration_of
from aiopt.codec import encode
from aiopt.events import (
    ArtifactBuilt,
    Effect,
    Event,
    GateFailed,
    LevelCharged,
    PairScheduled,
    PairVoided,
    RunMeasured,
    VerdictReached,
)
from aiopt.rules import NeedsMore, RuleParams, params_from, vary
from aiopt.verdict import RULES, Judge, decide, verdict_by
from tests.factories import make
from tests.test_verdict import measured

Runs = dict[str, float]
Run = Callable[[PairScheduled, np.random.Generator], Runs]

SD = {"cpu": 0.01, "rss": 0.003, "p99": 0.1, "rps": 0.01}

TARGET: dict[str, Any] = {
    "metrics": {
        "cpu": {"role": "primary", "margin": 0.05},
        "rss": {"role": "primary", "margin": 0.05},
        "p99": {"role": "guard", "margin": 0.5},
        "errors": {"role": "guard", "limit": 0.0},
        "answers": {"kind": "digest"},
        "rps": {"direction": "higher"},
    },
    "workloads": {"mixed": {}, "writes": {"guard": True, "margin": 0.1}},
    "ncal": 30,
    "ncal_guard": 10,
}


def params(**changes: Any) -> RuleParams:
    return params_from({**TARGET, **changes})


def incumbent(pair: PairScheduled, rng: np.random.Generator) -> Runs:
    noisy = {name: math.exp(rng.normal(0.0, sd)) for name, sd in SD.items()}
    return {
        "cpu": noisy["cpu"],
        "rss": 50 * noisy["rss"],
        "p99": 20 * noisy["p99"],
        "rps": 500 * noisy["rps"],
        "errors": 0.0,
    }


def better(workload: str | None = None, **gains: float) -> Run:
    """As the incumbent, but for these gains (natural logs), everywhere or in one workload."""

    def run(pair: PairScheduled, rng: np.random.Generator) -> Runs:
        values = dict(incumbent(pair, rng))
        if workload in (None, pair.workload):
            for name, gain in gains.items():
                values[name] *= math.exp(gain if name == "rps" else -gain)
        return values

    return run


def run_pairs(judge: Judge[Any], a: Run, b: Run, seed: int, answers: str = "same") -> None:
    rng = np.random.default_rng(seed)
    while (pair := judge.next_pair()) is not None:
        runs = {"A": a(pair, rng), "B": b(pair, rng)}
        judge.tell(
            pair,
            measured(pair, "A", runs["A"]),
            measured(pair, "B", runs["B"], answers),
        )


def calibration(rule: RuleParams, seed: int = 1) -> list[Event]:
    judge: Judge[Any] = Judge(calibration_of, rule, seed=seed, number=0)
    run_pairs(judge, incumbent, incumbent, seed)
    assert isinstance(judge.outcome, tuple)
    return list(judge.events)


def judged(
    candidate: Run, *, rule: RuleParams | None = None, seed: int = 1, answers: str = "same"
) -> tuple[VerdictReached, Sequence[Event]]:
    rule = rule or params()
    judge = Judge(
        verdict_by("two-stage"), rule, seed=seed, number=1, events=calibration(rule, seed)
    )
    run_pairs(judge, incumbent, candidate, seed + 1000, answers)
    assert judge.outcome is not None
    return judge.outcome, judge.events


def count(events: Sequence[Event], purpose: str, workload: str = "mixed") -> int:
    return sum(
        isinstance(e, PairScheduled) and (e.purpose, e.workload) == (purpose, workload)
        for e in events
    )


def effect(verdict: VerdictReached, metric: str, workload: str = "mixed") -> Effect:
    (found,) = [e for e in verdict.effects if (e.metric, e.workload) == (metric, workload)]
    return found


# ---- keeps ----


def test_a_gain_in_one_primary_is_screened_confirmed_guarded_and_kept() -> None:
    verdict, events = judged(better(cpu=0.06))
    assert (verdict.kind, verdict.stage) == ("keep", "confirm")
    assert effect(verdict, "cpu").state == "improved"
    assert effect(verdict, "cpu").effect == pytest.approx(0.06, abs=0.015)
    assert effect(verdict, "cpu").pairs == count(events, "confirm")
    assert effect(verdict, "rss").state == "held"
    assert effect(verdict, "p99").state == "held"
    assert effect(verdict, "errors").state == "held"
    assert effect(verdict, "rps").state == "info"
    assert effect(verdict, "cpu", "writes").state == "held"
    assert verdict.p_screen is not None
    assert verdict.p_confirm is not None
    assert verdict.p_confirm <= 0.025
    assert count(events, "screen") >= 6
    assert 5 <= count(events, "guard", "writes") < count(events, "confirm") + 10


def test_the_claim_comes_from_confirmation_pairs_alone() -> None:
    """A candidate that was only lucky in the screen is not confirmed."""

    def lucky(pair: PairScheduled, rng: np.random.Generator) -> Runs:
        return better(cpu=0.08 if pair.purpose == "screen" else 0.0)(pair, rng)

    verdict, events = judged(lucky)
    assert verdict.kind == "discard_no_effect"
    assert verdict.stage == "confirm"
    assert effect(verdict, "cpu").effect == pytest.approx(0.0, abs=0.015)
    assert effect(verdict, "cpu").pairs == count(events, "confirm")


def test_two_primaries_are_claimed_if_both_were_proved_on_fresh_pairs() -> None:
    verdict, _ = judged(better(cpu=0.06, rss=0.10))
    improved = {e.metric for e in verdict.effects if e.state == "improved"}
    assert improved == {"cpu", "rss"}
    assert verdict.reason.endswith("proved better")


def test_what_did_not_pass_the_screen_is_claimed_if_fresh_pairs_prove_it_beside_the_other() -> None:
    """Holm: the second claim is tested at what the first one left, on pairs that both share."""

    def late(rss: float) -> Run:
        def run(pair: PairScheduled, rng: np.random.Generator) -> Runs:
            return better(cpu=0.1, rss=rss if pair.purpose == "confirm" else -0.01)(pair, rng)

        return run

    rule = params(workloads={"mixed": {}})
    for rss, improved in ((0.03, {"cpu", "rss"}), (0.006, {"cpu"})):
        verdict, events = judged(late(rss), rule=rule)
        assert verdict.kind == "keep"
        looks = RULES["two-stage"].looks(rule, events)
        assert {look.metric for look in looks if look.purpose == "confirm"} == {"cpu"}
        assert {e.metric for e in verdict.effects if e.state == "improved"} == improved
        level = next(look.level for look in looks if look.purpose == "confirm")
        for metric in ("cpu", "rss"):
            p = effect(verdict, metric).p
            assert p is not None
            if effect(verdict, metric).role == "primary":
                assert p <= level  # of all objectives that entered together


def test_objectives_share_the_levels_of_both_stages() -> None:
    rule = params(workloads={"mixed": {}}, mei=0.15)  # so large that both take as few pairs
    _, events = judged(better(cpu=0.3, rss=0.3), rule=rule)
    looks = RULES["two-stage"].looks(rule, events)
    screens = [look for look in looks if look.purpose == "screen"]
    confirms = [look for look in looks if look.purpose == "confirm"]
    assert {look.metric for look in screens} == {look.metric for look in confirms} == {"cpu", "rss"}
    assert all(look.used <= 0.02 / 2 for look in screens)
    assert all(0 < look.level <= 0.025 / 2 for look in confirms)
    alone, events = judged(better(cpu=0.3, rss=-0.01), rule=rule)
    (confirm,) = [
        look for look in RULES["two-stage"].looks(rule, events) if look.purpose == "confirm"
    ]
    assert alone.kind == "keep"
    assert 0.025 / 2 < confirm.level <= 0.025  # the whole level is for the only one that entered


def test_a_primary_that_improved_less_than_the_margin_is_not_claimed() -> None:
    verdict, _ = judged(better(cpu=0.06, rss=0.002))
    assert verdict.kind == "keep"
    assert effect(verdict, "rss").state == "held"
    assert effect(verdict, "rss").role == "guard"


def test_a_rate_is_better_when_it_is_higher() -> None:
    metrics = {"rps": {"role": "primary", "direction": "higher"}}
    for gain, kinds in ((0.06, {"keep"}), (-0.06, {"discard_regression", "discard_no_effect"})):
        verdict, _ = judged(better(rps=gain), rule=params(metrics=metrics))
        assert verdict.kind in kinds


def test_any_main_workload_may_improve_while_the_others_hold() -> None:
    rule = params(workloads={"mixed": {}, "reads": {}})
    verdict, events = judged(better("reads", cpu=0.06), rule=rule)
    assert verdict.kind == "keep"
    assert effect(verdict, "cpu", "reads").state == "improved"
    assert effect(verdict, "cpu", "mixed").state == "held"
    assert count(events, "screen", "mixed") == count(events, "screen", "reads")
    assert count(events, "confirm", "mixed") == count(events, "confirm", "reads")


def test_weights_make_one_composite_decide() -> None:
    rule = params(weights={"cpu": 0.5, "rss": 0.5})
    verdict, _ = judged(better(cpu=0.10, rss=0.04), rule=rule)
    assert verdict.kind == "keep"
    assert effect(verdict, "composite").effect == pytest.approx(0.07, abs=0.015)
    traded, _ = judged(better(cpu=0.30, rss=-0.20), rule=rule)
    assert traded.kind == "discard_regression"  # rss is still a guard by its own margin


def test_a_large_gain_is_confirmed_on_fewer_pairs() -> None:
    rule = params(
        weights={"cpu": 1.0}, workloads={"mixed": {}}, metrics={"cpu": TARGET["metrics"]["cpu"]}
    )
    sizes = {}
    for gain in (0.03, 0.15):
        verdict, events = judged(better(cpu=gain), rule=rule, seed=4)
        assert verdict.kind == "keep"
        sizes[gain] = count(events, "confirm")
    assert sizes[0.15] < sizes[0.03]


# ---- discards ----


def test_nothing_is_soon_discarded() -> None:
    verdict, events = judged(better())
    assert verdict.kind == "discard_no_effect"
    assert verdict.stage == "screen"
    assert count(events, "screen") <= 12
    assert count(events, "confirm") == count(events, "guard", "writes") == 0
    assert verdict.p_confirm is None


def test_a_loss_is_a_regression() -> None:
    verdict, _ = judged(better(cpu=-0.04))
    assert verdict.kind == "discard_regression"
    assert "cpu (mixed): worse" in verdict.reason


def test_faster_but_larger_beyond_the_margin_ends_with_the_screen() -> None:
    verdict, events = judged(better(cpu=0.10, rss=-0.15))
    assert verdict.kind == "discard_regression"
    assert "rss (mixed): worse beyond its margin" in verdict.reason
    assert count(events, "confirm") == 0


def test_a_loss_on_a_guard_workload_is_a_regression() -> None:
    def run(pair: PairScheduled, rng: np.random.Generator) -> Runs:
        return better(cpu=-0.25 if pair.workload == "writes" else 0.06)(pair, rng)

    verdict, events = judged(run)
    assert verdict.kind == "discard_regression"
    assert "cpu (writes): worse beyond its margin" in verdict.reason
    assert count(events, "guard", "writes") > 0


def test_a_guard_that_is_broken_in_the_confirmation_spares_the_guard_workload() -> None:
    """A loss that the pairs of the screen did not show."""

    def run(pair: PairScheduled, rng: np.random.Generator) -> Runs:
        return better(cpu=0.06, rss=-0.3 if pair.purpose == "confirm" else 0.0)(pair, rng)

    verdict, events = judged(run)
    assert verdict.kind == "discard_regression"
    assert verdict.stage == "confirm"
    assert "rss (mixed): worse beyond its margin" in verdict.reason
    assert count(events, "guard", "writes") == 0


def test_what_may_still_be_large_enough_is_inconclusive_and_says_what_would_tell() -> None:
    metrics = {"p99": {"role": "primary"}}
    rule = params(metrics=metrics, workloads={"mixed": {}}, ncal=50)
    verdicts = [judged(better(p99=0.02), rule=rule, seed=seed)[0] for seed in range(5)]
    open_ = [verdict for verdict in verdicts if verdict.kind == "inconclusive"]
    assert open_
    for verdict in open_:
        assert verdict.pairs_needed is not None
        assert verdict.pairs_needed > 300
        assert f"about {verdict.pairs_needed} would tell" in verdict.reason
        assert verdict.mei_eff is not None
        assert verdict.mei_eff > 0.03


def test_gates_and_answers_come_before_any_number() -> None:
    rule = params()
    failed = [*calibration(rule), GateFailed(gate="test", detail="exit 1")]
    verdict = decide("two-stage", rule, failed)
    assert isinstance(verdict, VerdictReached)
    assert (verdict.kind, verdict.reason, verdict.stage) == ("invalid", "test: exit 1", "")
    same = make(ArtifactBuilt, digest="a", incumbent_digest="a")
    unchanged = decide("two-stage", rule, [same])
    assert isinstance(unchanged, VerdictReached)
    assert unchanged.kind == "no_change"
    other, events = judged(better(cpu=0.3), answers="wrong")
    assert other.kind == "invalid"
    assert count(events, "screen") == 1


def test_one_value_beyond_a_limit_is_enough() -> None:
    def run(pair: PairScheduled, rng: np.random.Generator) -> Runs:
        return {**better(cpu=0.3)(pair, rng), "errors": 0.01 if pair.index == 2 else 0.0}

    verdict, events = judged(run)
    assert verdict.kind == "discard_regression"
    assert "beyond its limit" in verdict.reason
    assert count(events, "screen") == 3


def test_without_a_calibration_it_asks_for_one() -> None:
    needs = decide("two-stage", params(), [])
    assert needs == NeedsMore(purpose="calibration", wanted={"mixed": 30, "writes": 10}, missing=40)


def test_a_calibration_without_the_objective_proves_nothing() -> None:
    rule = params()
    _, events = judged(better(cpu=0.06), rule=rule)
    other = vary(
        rule,
        metrics={**rule.metrics, "missing": evolve(rule.metrics["cpu"], role="info")},
        weights={"missing": 1.0},
    )
    verdict = decide("two-stage", other, events)
    assert isinstance(verdict, VerdictReached)
    assert verdict.kind == "inconclusive"
    assert RULES["two-stage"].looks(other, events) == []
    assert RULES["two-stage"].looks(other, []) == ()


# ---- guards ----


def test_an_unresolved_guard_buys_pairs_once_and_is_then_inconclusive() -> None:
    """A p99 that is worse by just about its margin."""
    rule = params(workloads={"mixed": {}})
    verdict, events = judged(better(cpu=0.06, p99=-0.36), rule=rule, seed=2)
    assert verdict.kind == "inconclusive"
    assert effect(verdict, "p99").state == "unresolved"
    extra = count(events, "guard", "mixed")
    assert extra > 0
    assert effect(verdict, "p99").pairs == count(events, "confirm") + extra
    assert effect(verdict, "cpu").pairs == count(events, "confirm")  # the extra serve guards only
    assert verdict.pairs_needed is not None


def test_the_second_look_at_a_guard_may_settle_it() -> None:
    rule = params(workloads={"mixed": {}})
    outcomes = set()
    for seed in range(1, 12):
        verdict, events = judged(better(cpu=0.06, p99=-0.28), rule=rule, seed=seed)
        if count(events, "guard", "mixed"):
            outcomes.add(effect(verdict, "p99").state)
    assert "held" in outcomes


def test_a_guard_that_never_varies_must_not_get_worse_in_any_pair() -> None:
    metrics = {**TARGET["metrics"], "size": {"role": "guard", "margin": 0.03}}
    rule = params(metrics=metrics, workloads={"mixed": {}})

    def sized(candidate: Run, size: Callable[[PairScheduled], float]) -> Run:
        return lambda pair, rng: {**candidate(pair, rng), "size": size(pair)}

    for size, kind in (
        (lambda pair: 102.0, "keep"),
        (
            lambda pair: 104.0 if (pair.purpose, pair.index) == ("confirm", 3) else 100.0,
            "discard_regression",
        ),
    ):
        judge: Judge[Any] = Judge(calibration_of, rule, seed=1, number=0)
        run_pairs(judge, sized(incumbent, lambda _: 100.0), sized(incumbent, lambda _: 100.0), 1)
        events = list(judge.events)
        candidate = Judge(verdict_by("two-stage"), rule, seed=1, number=1, events=events)
        run_pairs(candidate, sized(incumbent, lambda _: 100.0), sized(better(cpu=0.06), size), 1001)
        assert candidate.outcome is not None
        assert candidate.outcome.kind == kind


def test_a_guard_workload_that_needs_a_second_look_gets_one() -> None:
    found = set()
    for seed in range(1, 10):
        rule = params()

        def run(pair: PairScheduled, rng: np.random.Generator) -> Runs:
            gain = -0.093 if pair.workload == "writes" else 0.06
            return better(cpu=gain)(pair, rng)

        verdict, events = judged(run, rule=rule, seed=seed)
        if verdict.kind == "inconclusive":
            assert effect(verdict, "cpu", "writes").state == "unresolved"
            assert count(events, "guard", "writes") > 12
        found.add(verdict.kind)
    assert "inconclusive" in found


def test_levels_that_no_number_of_pairs_reaches_are_refused_beforehand() -> None:
    problems = dict(RULES["two-stage"].problems(params(alpha1=1e-7, alpha2=1e-12, cap=12)))
    assert set(problems) == {"alpha1", "alpha2"}
    assert dict(RULES["two-stage"].problems(params())) == {}


# ---- replay ----


def test_a_verdict_depends_on_nothing_but_its_pairs() -> None:
    verdict, events = judged(better(cpu=0.06))
    rule = params()
    assert encode(decide("two-stage", rule, events)) == encode(verdict)  # type: ignore[arg-type]
    runs = [e for e in events if isinstance(e, RunMeasured)]
    shuffled = [runs[i] for i in np.random.default_rng(1).permutation(len(runs))]
    assert decide("two-stage", rule, shuffled) == verdict
    late = [
        evolve(run, index=run.index + 500, metrics={**run.metrics, "cpu": (9.0,)})
        for run in runs
        if run.purpose in ("screen", "confirm")
    ]
    assert decide("two-stage", rule, [*events, *late]) == verdict


def test_screen_pairs_never_become_confirmation_pairs() -> None:
    verdict, events = judged(better(cpu=0.06))
    without = [e for e in events if getattr(e, "purpose", "") != "confirm"]
    needs = decide("two-stage", params(), without)
    assert isinstance(needs, NeedsMore)
    assert (needs.purpose, needs.missing) == ("confirm", count(events, "confirm"))
    assert verdict.kind == "keep"


def test_needs_more_counts_down_to_the_next_look() -> None:
    rule = params(workloads={"mixed": {}})
    judge = Judge(verdict_by("two-stage"), rule, seed=1, number=1, events=calibration(rule))
    rng = np.random.default_rng(5)
    missing = []
    for _ in range(4):
        missing.append(judge.missing)
        pair = judge.next_pair()
        assert pair is not None
        judge.tell(
            pair,
            measured(pair, "A", incumbent(pair, rng)),
            measured(pair, "B", better(cpu=0.05)(pair, rng)),
        )
    assert missing == [4, 3, 2, 1]
    assert judge.missing == 2  # the look after four pairs leads on to six


def test_a_void_pair_does_not_count_and_is_repeated_in_the_same_order() -> None:
    rule = params(workloads={"mixed": {}})
    judge = Judge(verdict_by("two-stage"), rule, seed=1, number=1, events=calibration(rule))
    first = judge.next_pair()
    assert first is not None
    rng = np.random.default_rng(5)
    runs = [
        measured(first, "A", incumbent(first, rng)),
        measured(first, "B", incumbent(first, rng)),
    ]
    void = PairVoided(
        purpose=first.purpose,
        workload=first.workload,
        index=first.index,
        attempt=first.attempt,
        reason="throttled",
        rule="throttle",
    )
    judge.tell(first, *runs)
    assert judge.missing == 3
    judge.tell(void)  # as a log that was merged might tell it
    again = judge.next_pair()
    assert again == evolve(first, attempt=1)
    assert judge.missing == 4


def test_looks_are_what_the_stages_did() -> None:
    verdict, events = judged(better(cpu=0.06))
    looks = RULES["two-stage"].looks(params(), events)
    assert [look.purpose for look in looks] == sorted(
        (look.purpose for look in looks), key=["screen", "confirm"].index
    )
    last = looks[-1]
    assert (last.purpose, last.action, last.metric) == ("confirm", "pass", "cpu")
    assert last.p == verdict.p_confirm
    assert last.pairs == count(events, "confirm")
    assert {look.action for look in looks[:-1]} <= {"continue", "futile", "pass"}


def test_beyond_the_planned_candidates_the_confirmation_is_stricter() -> None:
    rule = params(planned=2, workloads={"mixed": {}})
    pairs = {}
    for ordinal in (1, 40):
        charged = LevelCharged(
            number=1, ordinal=ordinal, charged=0.0, spent=0.0, left=0.0, calibration=""
        )
        events = [*calibration(rule), charged]
        judge = Judge(verdict_by("two-stage"), rule, seed=1, number=1, events=events)
        run_pairs(judge, incumbent, better(cpu=0.05), 7)
        pairs[ordinal] = count(judge.events, "confirm")
    assert pairs[40] > pairs[1]
