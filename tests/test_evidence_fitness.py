"""What profilers measured, in rankings: weights and guards of `PROFILER:SCALAR`."""

import math

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from aiopt.errors import ConfigError
from aiopt.events import EvidenceCaptured, Scalar
from aiopt.evidence import change_of, changes_of, is_evidence, latest, scalar_of
from aiopt.fitness import Fitness, Unmeasured, fitness_of
from aiopt.replay import CampaignState, fold
from aiopt.rescoring import rescore
from aiopt.views.evidence import instruction_flags
from tests.factories import make
from tests.test_replay import PARAMS, campaign_log

NAME = "callgrind:instructions"
LOCKS = "offcpu:off_cpu_ms[L]"
LOSS = [1.90, 1.901, 1.902, 1.903, 1.904, 1.905, 1.906, 1.907]
"""Ratios of CPU time of eight pairs: nothing is kept, and all have the baseline as incumbent."""


def evidence(candidate: str, **scalars: Scalar | float) -> EvidenceCaptured:
    """Scalars of callgrind, `instructions=…`, or of offcpu, `locks=…`."""
    values = {
        name: value if isinstance(value, Scalar) else Scalar(value=value, unit="instructions")
        for name, value in scalars.items()
    }
    profiler = "offcpu" if "locks" in values else "callgrind"
    named = {("off_cpu_ms[L]" if k == "locks" else k): value for k, value in values.items()}
    return make(EvidenceCaptured, profiler=profiler, candidate=candidate, scalars=named)


def campaign(*runs: tuple[float | None, float | None]) -> CampaignState:
    """Candidates that are all slower, with instructions and milliseconds of lock waits as
    given; the baseline has 100 of each.
    """
    rule = {**PARAMS, "metrics": {"cpu": {"role": "primary"}, "rss": {}, "extra": {}}}
    (state,) = fold(campaign_log([LOSS] * len(runs), rule)).campaigns.values()
    experiments = list(state.experiments.values())
    first = experiments[0]
    first.profiles += [
        evidence(state.baseline, instructions=100.0),
        evidence(state.baseline, locks=Scalar(value=100.0, unit="ms", low=90.0, high=110.0)),
    ]
    for experiment, (instructions, locks) in zip(experiments, runs, strict=True):
        candidate = experiment.started.candidate
        if instructions is not None:
            experiment.profiles.append(evidence(candidate, instructions=instructions))
        if locks is not None:
            scalar = Scalar(value=locks, unit="ms", low=0.9 * locks, high=1.1 * locks)
            experiment.profiles.append(evidence(candidate, locks=scalar))
    return state


def test_a_ranking_can_be_by_a_scalar_alone() -> None:
    state = campaign((120.0, None), (50.0, None), (None, None))
    result = rescore(state, weights={NAME: 1.0})
    assert [ranked.number for ranked in result.ranking] == [2, 1]
    assert result.ranking[0].step.value == pytest.approx(math.log(2))
    assert result.ranking[1].step.value == pytest.approx(-math.log(1.2))
    reasons = dict(result.unranked)
    assert [*reasons.values()] == ["no profiler has measured what has a weight"]
    assert not result.flips


def test_scalars_and_metrics_add_up_by_their_weights() -> None:
    state = campaign((50.0, None), (200.0, None))
    metric = rescore(state, weights={"cpu": 1.0})
    both = rescore(state, weights={"cpu": 1.0, NAME: 3.0})
    steps, alone = (
        {ranked.number: ranked.step for ranked in result.ranking} for result in (both, metric)
    )
    assert steps[1].value == pytest.approx((alone[1].value + 3 * math.log(2)) / 4)
    assert steps[1].se == pytest.approx(alone[1].se / 4)
    assert steps[1].missing == ()
    assert (both.compared_by, both.lacking) == (("cpu", NAME), {})
    assert [d.replayed for d in both.decisions] == [d.replayed for d in metric.decisions]


def test_candidates_are_compared_on_what_all_of_them_have() -> None:
    """Or only those that have everything, if that is wanted."""
    state = campaign((50.0, None), (None, None))
    weights = {"cpu": 1.0, NAME: 3.0}
    metric, both = rescore(state, weights={"cpu": 1.0}), rescore(state, weights=weights)
    steps, alone = (
        {ranked.number: ranked.step for ranked in result.ranking} for result in (both, metric)
    )
    assert {n: step.value for n, step in steps.items()} == {n: s.value for n, s in alone.items()}
    assert (steps[1].missing, steps[2].missing) == ((), (NAME,))
    assert (both.compared_by, both.lacking) == (("cpu",), {NAME: 1})
    whole = rescore(state, weights=weights, complete=True)
    assert [ranked.number for ranked in whole.ranking] == [1]
    ((_, reason),) = whole.unranked
    assert reason == f"not measured on {NAME}, by which the others are compared"


def test_where_all_have_nothing_in_common_those_with_most_are_compared() -> None:
    state = campaign((50.0, None), (60.0, None), (None, 90.0))
    found = rescore(state, weights={NAME: 1.0, LOCKS: 9.0})
    assert [ranked.number for ranked in found.ranking] == [1, 2]
    assert (found.compared_by, found.lacking) == ((NAME,), {LOCKS: 2})
    ((_, reason),) = found.unranked
    assert reason == f"not measured on {NAME}, by which the others are compared"


def test_what_has_no_pairs_or_no_weight_has_no_fitness() -> None:
    params = campaign((50.0, None)).params
    changes = changes_of(
        [NAME], [evidence("a", instructions=2.0)], [evidence("b", instructions=1.0)]
    )
    assert fitness_of(params, [], {"cpu": 1.0, NAME: 1.0}, changes) == Unmeasured(
        reason="no complete pair"
    )
    assert fitness_of(params, [], {NAME: 0.0}, changes) == Unmeasured(
        reason="no metric with a weight"
    )


def test_a_guard_takes_out_what_is_proved_to_break_it() -> None:
    state = campaign((None, 101.0), (None, 200.0), (None, 115.0), (None, None))
    result = rescore(state, guards={LOCKS: 0.1})
    assert {ranked.number for ranked in result.ranking} == {1, 3, 4}
    ((_, reason),) = result.unranked
    assert reason.startswith("offcpu:off_cpu_ms[L] changed by +100.0 % [+7")
    assert reason.endswith("beyond its margin of 10 %")
    missing = {ranked.number: ranked.step.missing for ranked in result.ranking}
    assert missing == {1: (), 3: (), 4: (LOCKS,)}


def test_a_guard_is_kept_against_the_baseline_and_steps_that_broke_it_still_count() -> None:
    """The second patch changes nothing of it, and has it from the first one."""
    rule = {**PARAMS, "metrics": {"cpu": {"role": "primary"}, "rss": {}, "extra": {}}}
    won = [[0.8 + 0.001 * pair for pair in range(8)], [0.95 + 0.001 * pair for pair in range(8)]]
    (state,) = fold(campaign_log(won, rule)).campaigns.values()
    first, second = state.experiments.values()
    assert second.started.incumbent == first.started.candidate
    first.profiles += [
        evidence(state.baseline, locks=100.0),
        evidence(first.started.candidate, locks=300.0),
    ]
    second.profiles.append(evidence(second.started.candidate, locks=300.0))
    result = rescore(state, guards={LOCKS: 0.1})
    assert (result.ranking, len(result.unranked)) == ((), 2)
    second.profiles[:] = [evidence(second.started.candidate, locks=90.0)]
    free = {ranked.number: ranked.total for ranked in rescore(state).ranking}
    (ranked,) = rescore(state, guards={LOCKS: 0.1}).ranking
    assert (ranked.number, ranked.total) == (2, free[2])


def test_what_was_nothing_and_is_not_any_more_breaks_every_margin() -> None:
    state = campaign((None, 500.0), (None, 0.0))
    first = next(iter(state.experiments.values()))
    first.profiles[:2] = [evidence(state.baseline, locks=0.0)]
    result = rescore(state, guards={LOCKS: 0.1}, weights={"cpu": 1.0, LOCKS: 1.0})
    ((_, reason),) = result.unranked
    assert reason == f"{LOCKS} was 0 and is not any more, beyond its margin of 10 %"
    (ranked,) = result.ranking
    assert (ranked.number, ranked.step.missing) == (2, ())


def test_what_nobody_measured_is_refused() -> None:
    state = campaign((1.0, 1.0))
    with pytest.raises(ConfigError, match="its profilers: callgrind, offcpu"):
        rescore(state, weights={"perf:samples": 1.0})
    with pytest.raises(ConfigError, match="not measured in this campaign"):
        rescore(state, guards={"callgrind:instruction": 0.1})
    with pytest.raises(ConfigError, match="expected PROFILER:SCALAR"):
        rescore(state, guards={"cpu": 0.1})
    (bare,) = fold(campaign_log([LOSS])).campaigns.values()
    with pytest.raises(ConfigError, match="its profilers: none"):
        rescore(bare, weights={NAME: 1.0})


def test_names_of_scalars_have_a_colon_and_may_have_more() -> None:
    answers = [evidence("a", instructions=1.0), evidence("a", instructions=2.0), "no event"]
    assert is_evidence(NAME)
    assert not is_evidence("cpu_seconds")
    found = scalar_of(answers, NAME)
    assert found is not None
    assert found.value == 2.0
    assert scalar_of(answers, "perf:instructions") is None
    odd = evidence("a", **{"slope[a.c:10,round]": 0.5})
    assert scalar_of([odd], "callgrind:slope[a.c:10,round]") == Scalar(
        value=0.5, unit="instructions"
    )


def test_without_an_interval_only_counts_are_taken_for_exact() -> None:
    for unit, expected in (("instructions", 0.0), ("bytes", math.sqrt(2) * 0.05)):
        found = change_of(Scalar(value=2.0, unit=unit), Scalar(value=1.0, unit=unit))
        assert found is not None
        assert found.se == pytest.approx(expected)


def test_only_what_ran_the_same_workload_is_compared() -> None:
    one, other = (
        evolve(evidence("a", instructions=value), workload=workload)
        for value, workload in ((1.0, "one"), (8.0, "other"))
    )
    now = evolve(one, scalars={"instructions": Scalar(value=2.0, unit="instructions")})
    assert changes_of([NAME], [one, other], [now])[NAME].value == pytest.approx(-math.log(2))
    assert changes_of([NAME], [other], [now]) == {}
    assert latest([one, other, now]) == (other, now)


def test_a_ratio_with_nothing_says_nothing() -> None:
    zero, one = Scalar(value=0.0, unit=""), Scalar(value=1.0, unit="")
    assert change_of(None, one) is None
    assert change_of(one, None) is None
    for more in (one, evolve(one, low=0.2, high=1.8)):
        appeared, gone = change_of(zero, more), change_of(more, zero)
        assert appeared is not None
        assert gone is not None
        assert (appeared.value, gone.high) == (-math.inf, math.inf)
    perhaps = evolve(one, low=0.0, high=3.0)
    assert change_of(zero, perhaps) is None
    assert change_of(perhaps, zero) is None
    assert change_of(one, evolve(one, value=-1.0)) is None
    nothing = change_of(zero, zero)
    assert nothing is not None
    assert (nothing.value, nothing.se) == (0, 0)
    assert changes_of([NAME], [evidence("a", instructions=1.0)], []) == {}


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.floats(0.0, 0.5))
def test_less_is_better_and_the_interval_holds_the_change(a: float, b: float, w: float) -> None:
    first, second = (Scalar(value=v, unit="", low=v * (1 - w), high=v * (1 + w)) for v in (a, b))
    change, back = change_of(first, second), change_of(second, first)
    assert change is not None
    assert back is not None
    assert change.value == pytest.approx(-back.value)
    assert (change.value > 0) == (math.log(a / b) > 0)
    assert change.low <= change.value <= change.high
    assert change.se == pytest.approx(math.sqrt(2) * w / 1.959963984540054)


@given(st.dictionaries(st.sampled_from(["cpu", "rss", NAME, LOCKS]), st.floats(-3, 3)))
def test_whatever_the_weights_a_fitness_is_finite_or_has_a_reason(
    weights: dict[str, float],
) -> None:
    state = campaign((50.0, 200.0))
    (experiment,) = state.experiments.values()
    changes = changes_of([NAME, LOCKS], experiment.profiles[:2], experiment.profiles[2:])
    found = fitness_of(state.params, experiment.facts, weights, changes)
    if isinstance(found, Unmeasured):
        assert found.reason
    else:
        assert isinstance(found, Fitness)
        assert math.isfinite(found.value)
        assert found.low <= found.value <= found.high


def test_more_instructions_in_what_was_kept_are_flagged() -> None:
    state = campaign((103.0, None), (100.5, None), (None, None))
    flags = [
        instruction_flags(state, status, state.baseline, experiment.started.candidate)
        for experiment in state.experiments.values()
        for status in ("keep", "no_change")
    ]
    assert flags == [("kept, though callgrind counts +3.0 % instructions",), (), (), (), (), ()]
