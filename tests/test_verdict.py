"""The decision: what it promises, on made-up pairs."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopt.audit import audit_of
from aiopt.errors import ConfigError
from aiopt.events import (
    Arm,
    ArtifactBuilt,
    AuditMeasured,
    GateFailed,
    PairScheduled,
    PairVoided,
    RunMeasured,
    VerdictReached,
)
from aiopt.rules import NeedsMore, RuleParams, params_from, vary
from aiopt.stats import signed_rank_p
from aiopt.verdict import Judge, check_rule, decide, params_for, verdict_by

Values = dict[str, float]

BASE: dict[str, Any] = {
    "metrics": {
        "cpu": {"role": "primary", "margin": 0.05},
        "rss": {"role": "primary", "margin": 0.05},
        "rps": {"role": "guard", "margin": 0.1, "direction": "higher"},
        "errors": {"role": "guard", "limit": 0.0},
        "answers": {"kind": "digest"},
        "note": {},
    },
    "workloads": {"mixed": {}, "writes": {"guard": True, "margin": 0.1}},
}


def params(**changes: Any) -> RuleParams:
    return params_from({**BASE, **changes})


def values(**changes: float) -> Values:
    return {"cpu": 1.0, "rss": 50.0, "rps": 1000.0, "errors": 0.0, "note": 1.0, **changes}


def measured(pair: PairScheduled, arm: Arm, numbers: Values, answers: str = "same") -> RunMeasured:
    return RunMeasured(
        purpose=pair.purpose,
        workload=pair.workload,
        index=pair.index,
        attempt=pair.attempt,
        arm=arm,
        position=1 + pair.order.index(arm),
        metrics={name: (value,) for name, value in numbers.items()},
        texts={"answers": answers},
        covariates={},
        log=None,
    )


def play(
    parameters: RuleParams, a: Any, b: Any, *, seed: int = 1, answers: str = "same"
) -> tuple[VerdictReached, Judge[VerdictReached]]:
    """Judge a candidate: `a` and `b` give the values of one run from the pair and its number."""
    judge = Judge(verdict_by("signed-rank"), parameters, seed=seed, number=1)
    while (pair := judge.next_pair()) is not None:
        judge.tell(
            pair,
            measured(pair, "A", a(pair)),
            measured(pair, "B", b(pair), answers),
        )
    assert isinstance(judge.outcome, VerdictReached)
    return judge.outcome, judge


def wobble(pair: PairScheduled) -> float:
    """A little noise, different in each pair and never the same twice."""
    return 1 + 0.001 * ((pair.index * 37 + 11) % 17) / 17


def same(pair: PairScheduled) -> Values:
    return values()


def times(**factors: float) -> Any:
    def run(pair: PairScheduled) -> Values:
        return {
            name: value * (factors[name] * wobble(pair) if name in factors else 1)
            for name, value in values().items()
        }

    return run


def test_a_clear_gain_that_breaks_no_guard_is_kept() -> None:
    verdict, _ = play(params(), same, times(cpu=0.8))
    assert verdict.kind == "keep"
    (cpu,) = [e for e in verdict.effects if (e.metric, e.workload) == ("cpu", "mixed")]
    assert cpu.state == "improved"
    assert cpu.effect == pytest.approx(-math.log(0.8), abs=0.01)
    assert cpu.low is not None
    assert cpu.effect is not None
    assert cpu.low < cpu.effect
    assert {e.workload for e in verdict.effects} == {"mixed", "writes"}


def test_a_gain_in_a_metric_where_higher_is_better_is_a_gain() -> None:
    metrics = {"rps": {"role": "primary", "direction": "higher"}}
    verdict, _ = play(params(metrics=metrics), same, times(rps=1.3))
    assert verdict.kind == "keep"


def test_no_change_is_stopped_early_and_discarded() -> None:
    """A neutral candidate costs four pairs as soon as nothing could still prove it."""

    def noisy(pair: PairScheduled) -> Values:
        sign = 1 if pair.index % 2 else -1
        return values(cpu=1 + 0.01 * sign * wobble(pair), rss=50 * (1 - 0.01 * sign * wobble(pair)))

    verdict, judge = play(params(), same, noisy)
    assert verdict.kind == "discard_no_effect"
    scheduled = [e for e in judge.events if isinstance(e, PairScheduled)]
    assert len(scheduled) == 4


def test_a_broken_guard_ends_it_before_the_last_pair() -> None:
    """Five pairs prove a loss beyond the margin; the other three could change nothing for good."""

    def large(pair: PairScheduled) -> Values:
        return values(cpu=0.7 * wobble(pair), rss=60 * wobble(pair))

    verdict, judge = play(params(), same, large)
    assert verdict.kind == "discard_regression"
    assert len([e for e in judge.events if isinstance(e, PairScheduled)]) == 5

    def few(pair: PairScheduled) -> Values:
        return values(cpu=0.7 * wobble(pair), rps=700 * wobble(pair))

    verdict, _ = play(params(), same, few)
    assert verdict.kind == "discard_regression"
    assert verdict.reason.startswith("rps (mixed)")


def test_a_loss_is_called_a_regression() -> None:
    verdict, _ = play(params(), same, times(cpu=1.2, rss=1.1))
    assert verdict.kind == "discard_regression"


def test_faster_but_larger_beyond_the_margin_is_a_regression() -> None:
    verdict, _ = play(params(), same, times(cpu=0.7, rss=1.2))
    assert verdict.kind == "discard_regression"
    assert "rss" in verdict.reason


def test_faster_and_larger_within_the_margin_is_kept() -> None:
    verdict, _ = play(params(), same, times(cpu=0.7, rss=1.02))
    assert verdict.kind == "keep"


def test_a_loss_on_a_guard_workload_is_a_regression() -> None:
    def slow_writes(pair: PairScheduled) -> Values:
        return values(cpu=wobble(pair) * (0.7 if pair.workload == "mixed" else 1.4))

    verdict, _ = play(params(), same, slow_writes)
    assert verdict.kind == "discard_regression"
    assert "cpu (writes)" in verdict.reason


def test_a_guard_that_the_pairs_cannot_settle_makes_it_inconclusive() -> None:
    def shaky(pair: PairScheduled) -> Values:
        return values(cpu=0.7 * wobble(pair), rps=1000 * (1.3 if pair.index % 2 else 0.75))

    verdict, _ = play(params(), same, shaky)
    assert verdict.kind == "inconclusive"
    assert "rps" in verdict.reason


def test_one_value_beyond_a_limit_is_enough() -> None:
    def errs(pair: PairScheduled) -> Values:
        return values(cpu=0.7, errors=0.01 if pair.index == 2 else 0.0)

    verdict, _ = play(params(), same, errs)
    assert verdict.kind == "discard_regression"
    assert "errors" in verdict.reason


def test_other_answers_are_invalid_however_fast() -> None:
    verdict, _ = play(params(), same, times(cpu=0.1), answers="other")
    assert verdict.kind == "invalid"
    assert "answers" in verdict.reason


def test_other_answers_on_a_guard_workload_are_invalid_too() -> None:
    judge = Judge(verdict_by("signed-rank"), params(), seed=1, number=1)
    while (pair := judge.next_pair()) is not None:
        answers = "same" if pair.workload == "mixed" else "other"
        faster = measured(pair, "B", times(cpu=0.5)(pair), answers)
        judge.tell(pair, measured(pair, "A", values()), faster)
    assert isinstance(judge.outcome, VerdictReached)
    assert judge.outcome.kind == "invalid"
    assert "writes" in judge.outcome.reason


def test_a_guard_that_was_not_measured_is_not_held() -> None:
    """Missing is no pass: without the metric there is no keep."""

    def without(pair: PairScheduled) -> Values:
        found = times(cpu=0.5)(pair)
        return {name: value for name, value in found.items() if name != "rps"}

    verdict, _ = play(params(), same, without)
    assert verdict.kind == "inconclusive"
    assert "rps" in verdict.reason


def test_a_composite_of_what_was_not_measured_proves_nothing() -> None:
    weighted = vary(params(workloads={"mixed": {}}), weights={"rps": 1.0})
    verdict, _ = play(weighted, same, lambda pair: {"cpu": 1.0, "rss": 50.0, "errors": 0.0})
    assert verdict.kind == "discard_no_effect"


def test_a_failed_gate_is_invalid_without_a_pair() -> None:
    outcome = decide("signed-rank", params(), [GateFailed(gate="test", detail="exit 1")])
    assert isinstance(outcome, VerdictReached)
    assert outcome.kind == "invalid"


def test_an_equal_artifact_is_no_change_without_a_pair() -> None:
    built = ArtifactBuilt(digest="d", files=1, incumbent_digest="d")
    outcome = decide("signed-rank", params(), [built])
    assert isinstance(outcome, VerdictReached)
    assert outcome.kind == "no_change"


def test_a_gain_that_might_be_there_but_is_not_proved_is_inconclusive() -> None:
    def maybe(pair: PairScheduled) -> Values:
        return values(cpu=0.92 - 0.002 * pair.index if pair.index < 7 else 1.06)

    verdict, _ = play(params(), same, maybe)
    assert verdict.kind == "inconclusive"


def test_a_void_pair_is_repeated_in_the_same_order_and_does_not_count() -> None:
    judge = Judge(verdict_by("signed-rank"), params(), seed=3, number=1)
    first = judge.next_pair()
    assert first is not None
    void = PairVoided(
        purpose=first.purpose, workload=first.workload, index=0, attempt=0, reason="interrupted"
    )
    judge.tell(first, measured(first, "A", values()), void)
    again = judge.next_pair()
    assert again is not None
    assert (again.index, again.attempt, again.order) == (0, 1, first.order)


def test_pairs_after_the_verdict_and_halves_of_pairs_change_nothing() -> None:
    verdict, judge = play(params(), same, times(cpu=0.8))
    half = measured(pair_number(99), "A", values(cpu=100.0))
    assert decide("signed-rank", params(), [*judge.events, half]) == verdict


def pair_number(index: int) -> PairScheduled:
    return PairScheduled(purpose="screen", workload="mixed", index=index, attempt=0, order="AB")


effects = st.lists(
    st.integers(-500, 500).map(lambda thousandths: thousandths / 1000),
    min_size=8,
    max_size=8,
    unique_by=lambda effect: abs(effect - 0.005),  # no ties
)


def from_effects(d: Sequence[float], sign: int = 1, unit: float = 1.0) -> tuple[Any, Any]:
    def a(pair: PairScheduled) -> Values:
        return values(cpu=unit)

    def b(pair: PairScheduled) -> Values:
        return values(cpu=unit * math.exp(-sign * d[pair.index % len(d)]))

    return a, b


ONE = {"metrics": {"cpu": {"role": "primary"}}, "workloads": {"mixed": {}}}


@given(effects)
@settings(max_examples=60, deadline=None)
def test_curtailing_never_changes_whether_it_is_kept(d: list[float]) -> None:
    """The early stop saves pairs, not correctness: kept exactly if all eight pairs reject."""
    parameters = params(**ONE)
    verdict, _ = play(parameters, *from_effects(d))
    full = signed_rank_p([-math.log(math.exp(-x)) for x in d], parameters.delta0)
    assert (verdict.kind == "keep") == (full <= parameters.alpha)


@given(effects, st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_the_unit_does_not_matter(d: list[float], unit: float) -> None:
    ours, _ = play(params(**ONE), *from_effects(d))
    scaled, _ = play(params(**ONE), *from_effects(d, unit=unit))
    assert ours.kind == scaled.kind


@given(effects)
@settings(max_examples=60, deadline=None)
def test_a_candidate_and_its_mirror_are_never_both_kept(d: list[float]) -> None:
    one, _ = play(params(**ONE), *from_effects(d))
    other, _ = play(params(**ONE), *from_effects(d, sign=-1))
    assert not (one.kind == "keep" and other.kind == "keep")


@given(effects, st.floats(0, 0.3))
@settings(max_examples=60, deadline=None)
def test_a_better_candidate_is_kept_if_a_worse_one_is(d: list[float], more: float) -> None:
    worse, _ = play(params(**ONE), *from_effects(d))
    better, _ = play(params(**ONE), *from_effects([x + more for x in d]))
    assert worse.kind != "keep" or better.kind == "keep"


@given(effects, st.integers(0, 2**32), st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_the_verdict_is_a_function_of_the_events(d: list[float], seed: int, number: int) -> None:
    """Reproduced from the events alone, whatever seed and number the pairs came from."""
    verdict, judge = play(params(**ONE), *from_effects(d), seed=seed)
    again = Judge(
        verdict_by("signed-rank"), params(**ONE), seed=0, number=number, events=judge.events
    )
    assert again.outcome == verdict
    assert again.next_pair() is None
    assert again.missing == 0


def test_coins_depend_on_seed_proposal_and_workload() -> None:
    def orders(seed: int, number: int) -> list[str]:
        parameters = params(pairs=20)
        judge = Judge(verdict_by("signed-rank"), parameters, seed=seed, number=number)
        found: list[str] = []
        while (pair := judge.next_pair()) is not None and len(found) < 20:
            found.append(pair.order)
            judge.tell(
                pair, measured(pair, "A", values()), measured(pair, "B", times(cpu=0.8)(pair))
            )
        return found

    assert orders(1, 1) == orders(1, 1)
    assert len({tuple(orders(seed, number)) for seed in (1, 2) for number in (1, 2)}) == 4
    assert {"AB", "BA"} == set(orders(1, 1))


def test_workloads_take_turns() -> None:
    parameters = params(workloads={"one": {}, "two": {}}, pairs=9)
    judge = Judge(verdict_by("signed-rank"), parameters, seed=1, number=1)
    seen = []
    for _ in range(4):
        pair = judge.next_pair()
        assert pair is not None
        seen.append((pair.workload, pair.index))
        judge.tell(pair, measured(pair, "A", values()), measured(pair, "B", values(cpu=0.5)))
    assert seen == [("one", 0), ("two", 0), ("one", 1), ("two", 1)]


def test_weights_make_one_composite_decide() -> None:
    """Half the time for a little more memory: a gain by time, a loss by memory alone."""
    verdict, judge = play(params(), same, times(cpu=0.5, rss=1.03))
    assert verdict.kind == "keep"
    for weights, kind in (
        ({"cpu": 0.9, "rss": 0.1}, "keep"),
        ({"rss": 1.0}, "discard_regression"),
    ):
        outcome = decide("signed-rank", vary(params(), weights=weights), judge.events)
        assert isinstance(outcome, VerdictReached)
        assert outcome.kind == kind


def test_what_was_not_run_is_needed_not_guessed() -> None:
    verdict, judge = play(params(), same, times(cpu=0.8))
    assert verdict.kind == "keep"
    outcome = decide("signed-rank", params(pairs=12), judge.events)
    assert isinstance(outcome, NeedsMore)
    assert outcome.missing == 4


def test_an_audit_measures_every_workload() -> None:
    parameters = params(audit_pairs=6)
    judge = Judge(audit_of("base", "final"), parameters, seed=1, number=0)
    while (pair := judge.next_pair()) is not None:
        assert pair.purpose == "audit"
        judge.tell(pair, measured(pair, "A", values()), measured(pair, "B", times(cpu=0.5)(pair)))
    assert isinstance(judge.outcome, AuditMeasured)
    cpu = [e for e in judge.outcome.effects if e.metric == "cpu"]
    assert [e.workload for e in cpu] == ["mixed", "writes"]
    assert all(e.pairs == 6 and e.effect is not None and e.effect > 0.6 for e in cpu)


@pytest.mark.parametrize("pairs", [1, 4, 7])
def test_too_few_pairs_to_prove_anything_are_refused(pairs: int) -> None:
    """Two primaries share the level of 0.01: eight pairs reach 0.005, seven do not."""
    with pytest.raises(ConfigError, match=f"pairs: {pairs} can never prove .* at least 8"):
        check_rule("signed-rank", params(pairs=pairs))
    check_rule("signed-rank", params(pairs=8))


def test_too_few_pairs_for_a_guard_are_refused_by_the_rule_that_counts_them() -> None:
    with pytest.raises(ConfigError, match=r"guard_pairs: 4 can never prove .* at least 5"):
        check_rule("signed-rank", params(guard_pairs=4))
    strict = params(guard_alpha=0.01, guard_first=0.005)
    with pytest.raises(ConfigError, match="guard_pairs"):
        check_rule("signed-rank", strict)
    check_rule("two-stage", strict)  # it plans its own


def test_an_unknown_rule_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match="no rule 'magic'; there are two-stage, signed-rank"):
        params_for("magic", {})


def test_several_samples_of_one_run_count_as_their_median() -> None:
    parameters = params(**ONE)
    judge = Judge(verdict_by("signed-rank"), parameters, seed=1, number=1)
    while (pair := judge.next_pair()) is not None:
        samples: dict[Arm, tuple[float, ...]] = {
            "A": (1.0, 1.0, 9.0),
            "B": (0.5 + 0.001 * pair.index, 0.1, 8.0),
        }
        runs = [
            evolve(measured(pair, arm, {}), metrics={"cpu": values})
            for arm, values in samples.items()
        ]
        judge.tell(pair, *runs)
    assert isinstance(judge.outcome, VerdictReached)
    assert judge.outcome.kind == "keep"
    assert judge.outcome.effects[0].effect == pytest.approx(math.log(2), abs=0.02)
