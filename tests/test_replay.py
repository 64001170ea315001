"""The fold and what is asked of it: laws, on made-up logs."""

import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopt.errors import ConfigError
from aiopt.events import (
    CampaignFinished,
    CampaignResumed,
    CampaignStarted,
    CandidateProposed,
    CandidateRejected,
    Event,
    ExperimentFinished,
    ExperimentStarted,
    GateFailed,
    IncumbentChanged,
    PairScheduled,
    PatchRef,
    Recorded,
    RunMeasured,
    StageStarted,
    VerdictReached,
)
from aiopt.fitness import Fitness, Unmeasured, fitness_of
from aiopt.ids import candidate_id
from aiopt.ranking import rank
from aiopt.replay import CampaignState, LogState, fold, step
from aiopt.rescoring import rescore
from aiopt.rules import params_from
from aiopt.stats import proposal_rng
from aiopt.strategies.genetic import Genetic
from aiopt.strategies.map_elites import MapElites
from aiopt.verdict import Judge, verdict_by
from tests.factories import make

BASE = "5f0c3b1e9d7a48260b1c2d3e4f5061728394a5b6"
PARAMS: dict[str, Any] = {
    "metrics": {
        "cpu": {"role": "primary", "margin": 0.05},
        "rss": {"role": "primary", "margin": 0.05},
        "extra": {"direction": "higher"},
    },
    "workloads": {"mixed": {}},
}

Items = list[tuple[str, Event]]


def started(stream: str, rule: dict[str, Any] = PARAMS) -> Items:
    event = make(
        CampaignStarted, base_commit=BASE, base_tree="t0", rule="signed-rank", rule_params=rule
    )
    return [(stream, event)]


def experiment(
    campaign: str,
    number: int,
    factors: Sequence[float],
    incumbent: tuple[str, tuple[PatchRef, ...]],
    *,
    extra: bool = True,
    rule: dict[str, Any] = PARAMS,
) -> tuple[Items, bool, tuple[str, tuple[PatchRef, ...]]]:
    """All events of one candidate whose pair i has cost factor `factors[i]`, and what follows."""
    genome = (*incumbent[1], PatchRef(name=f"p{number}", digest=f"{number:064d}"))
    candidate = candidate_id(BASE, [patch.digest for patch in genome])
    stream = f"exp-{number:04d}~1"
    proposed = make(
        CandidateProposed,
        number=number,
        candidate=candidate,
        genome=genome,
        parents=(incumbent[0],),
    )
    begun = make(
        ExperimentStarted,
        campaign=campaign,
        number=number,
        purpose="candidate",
        candidate=candidate,
        genome=genome,
        tree=f"t{number}",
        incumbent=incumbent[0],
    )
    items: Items = [(campaign, proposed), (stream, begun)]
    if not factors:
        items.append((stream, GateFailed(gate="test", detail="exit 1")))
    judge = Judge(
        verdict_by("signed-rank"),
        params_from(rule),
        seed=1,
        number=number,
        events=[event for name, event in items if name == stream],
    )
    while (pair := judge.next_pair()) is not None:
        factor = factors[pair.index % len(factors)]
        runs: list[PairScheduled | RunMeasured] = [pair]
        for arm in pair.order:
            scale = factor if arm == "B" else 1.0
            metrics = {"cpu": (scale,), "rss": (100.0 / scale,)}
            if extra:
                metrics["extra"] = (5.0,)
            runs.append(
                make(
                    RunMeasured,
                    purpose="screen",
                    workload="mixed",
                    index=pair.index,
                    attempt=0,
                    arm=arm,
                    metrics=metrics,
                    texts={},
                )
            )
        judge.tell(*runs)
        items += [(stream, run) for run in runs]
    verdict = judge.outcome
    assert isinstance(verdict, VerdictReached)
    items += [(stream, verdict), (stream, make(ExperimentFinished, outcome="judged"))]
    kept = verdict.kind == "keep"
    if kept:
        changed = make(
            IncumbentChanged,
            candidate=candidate,
            genome=genome,
            tree=f"t{number}",
            experiment=stream,
            previous=incumbent[0],
        )
        items.append((campaign, changed))
    return items, kept, (candidate, genome) if kept else incumbent


def recorded(items: Items) -> list[Recorded]:
    versions: dict[str, int] = {}
    found = []
    for seq, (stream, event) in enumerate(items, start=1):
        versions[stream] = versions.get(stream, 0) + 1
        found.append(
            Recorded(
                seq=seq,
                stream=stream,
                version=versions[stream],
                writer=1,
                wseq=seq,
                recorded_at="2026-01-01T00:00:00.000000+00:00",
                hash=b"",
                event=event,
            )
        )
    return found


def campaign_log(
    histories: Sequence[Sequence[float]], rule: dict[str, Any] = PARAMS
) -> list[Recorded]:
    items = started("cmp-0001~1", rule)
    incumbent: tuple[str, tuple[PatchRef, ...]] = (candidate_id(BASE, ()), ())
    for number, factors in enumerate(histories, start=1):
        more, _, incumbent = experiment("cmp-0001~1", number, factors, incumbent, rule=rule)
        items += more
    items.append(("cmp-0001~1", make(CampaignFinished)))
    return recorded(items)


histories = st.lists(
    st.lists(st.floats(0.5, 1.5), max_size=8).filter(lambda found: len(found) != 1),
    min_size=1,
    max_size=4,
)


@given(histories, st.data())
@settings(max_examples=30, deadline=None)
def test_folding_in_parts_is_folding_at_once(drawn: list[list[float]], data: st.DataObject) -> None:
    log = campaign_log(drawn)
    cut = data.draw(st.integers(0, len(log)))
    assert fold(log[cut:], fold(log[:cut])) == fold(log)


@given(histories)
@settings(max_examples=20, deadline=None)
def test_the_logged_verdicts_are_reproduced(drawn: list[list[float]]) -> None:
    """Under the campaign's own rule and parameters nothing flips."""
    (state,) = fold(campaign_log(drawn)).campaigns.values()
    result = rescore(state)
    assert result.flips == ()
    assert all(decision.same_premise for decision in result.decisions)
    assert all(decision.logged == decision.replayed for decision in result.decisions)
    assert len(result.ranking) + len(result.unranked) == len(drawn)


@given(st.lists(st.floats(0.5, 0.97), min_size=8, max_size=8), st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_the_order_in_which_independent_experiments_end_does_not_matter(
    factors: list[float], random: Any
) -> None:
    """Two experiments on one incumbent, interleaved in any way, fold to the same experiments."""
    base: tuple[str, tuple[PatchRef, ...]] = (candidate_id(BASE, ()), ())
    one, _, _ = experiment("cmp-0001~1", 1, [1.2 * f for f in factors], base)
    two, _, _ = experiment("cmp-0001~1", 2, [1.3 * f for f in factors], base)
    one = [item for item in one if not isinstance(item[1], IncumbentChanged)]
    two = [item for item in two if not isinstance(item[1], IncumbentChanged)]
    left, right, mixed = list(one), list(two), started("cmp-0001~1")
    while left or right:
        source = left if left and (not right or random.random() < 0.5) else right
        mixed.append(source.pop(0))
    plain = fold(recorded([*started("cmp-0001~1"), *one, *two]))
    shuffled = fold(recorded(mixed))
    for state in (plain, shuffled):
        for campaign in state.campaigns.values():
            for each in campaign.experiments.values():
                each.verdict_seq = 0
    ours, theirs = (next(iter(s.campaigns.values())) for s in (plain, shuffled))
    assert dict(ours.experiments) == dict(theirs.experiments)
    assert {n: p.status for n, p in ours.proposals.items()} == {
        n: p.status for n, p in theirs.proposals.items()
    }


@given(
    st.lists(st.floats(1.2, 1.6), min_size=2, max_size=5),
    st.randoms(use_true_random=False),
    st.integers(0, 50),
)
@settings(max_examples=25, deadline=None)
def test_what_strategies_ask_for_does_not_depend_on_that_order(
    middles: list[float], random: Any, seed: int
) -> None:
    """Nor do the ranking and the archive; candidates were proposed in one order, and are measured
    side by side.
    """
    base: tuple[str, tuple[PatchRef, ...]] = (candidate_id(BASE, ()), ())
    each = [
        experiment("cmp-0001~1", number, [middle + 0.001 * pair for pair in range(8)], base)[0]
        for number, middle in enumerate(middles, 1)
    ]
    proposed = [items[0] for items in each]
    rest = [items[1:] for items in each]

    def state_of(log: Items) -> CampaignState:
        (state,) = fold(recorded([*started("cmp-0001~1"), *proposed, *log])).campaigns.values()
        return state

    plain = state_of([item for items in rest for item in items])
    mixed = list[tuple[str, Event]]()
    while any(rest):
        mixed.append(random.choice([items for items in rest if items]).pop(0))
    shuffled = state_of(mixed)
    assert rank(plain).ranked == rank(shuffled).ranked
    for strategy in (Genetic(crossover=0.8), MapElites(crossover=0.8, parents="curiosity")):
        asked = [strategy.ask(s, proposal_rng(seed, 9), 4) for s in (plain, shuffled)]
        assert asked[0] == asked[1]
        children = [each for each in asked[0] if each.operator not in ("propose", "rewrite")]
        assert len({each.genome for each in children if not each.parts}) == len(
            [each for each in children if not each.parts]
        )
    assert MapElites().archive(plain) == MapElites().archive(shuffled)


def test_a_gain_in_time_for_a_loss_in_memory_depends_on_the_weights() -> None:
    (state,) = fold(
        campaign_log([[0.7, 0.71, 0.72, 0.73, 0.74, 0.75, 0.76, 0.77]])
    ).campaigns.values()
    assert next(iter(state.experiments.values())).verdict is not None
    logged = rescore(state)
    assert [d.logged for d in logged.decisions] == ["discard_regression"]
    fast = rescore(state, weights={"cpu": 1.0})
    assert [(d.replayed, d.flipped) for d in fast.decisions] == [("discard_regression", False)]
    assert fast.ranking[0].step.value > 0
    small = rescore(state, weights={"rss": 1.0})
    assert small.ranking[0].step.value < 0
    both = rescore(state, weights={"cpu": 0.5, "rss": 0.5})
    assert both.ranking[0].step.value == pytest.approx(0, abs=1e-9)


def test_a_weight_for_an_unknown_metric_is_refused() -> None:
    (state,) = fold(campaign_log([[0.9] * 8])).campaigns.values()
    with pytest.raises(ConfigError, match="no such metric"):
        rescore(state, weights={"speed": 1.0})


def test_a_candidate_that_was_not_measured_has_a_reason_and_no_rank() -> None:
    """Whatever the weights, and also where all that were measured are losses."""
    (state,) = fold(campaign_log([[], [1.5] * 8])).campaigns.values()
    for weights in ({"cpu": 1.0}, {"rss": 1.0}, {"cpu": -1.0}):
        result = rescore(state, weights=weights)
        assert [ranked.number for ranked in result.ranking] == [2]
        assert result.unranked == (("exp-0001~1", "invalid: test: exit 1"),)


def test_a_missing_signal_renormalises_and_is_named() -> None:
    base: tuple[str, tuple[PatchRef, ...]] = (candidate_id(BASE, ()), ())
    items, _, _ = experiment("cmp-0001~1", 1, [0.8] * 8, base, extra=False)
    (state,) = fold(recorded([*started("cmp-0001~1"), *items])).campaigns.values()
    facts = state.experiments["exp-0001~1"].facts
    params = params_from(PARAMS)
    with_extra = fitness_of(params, facts, {"cpu": 0.5, "extra": 0.5})
    assert isinstance(with_extra, Fitness)
    assert with_extra.missing == ("extra",)
    assert with_extra.value == pytest.approx(-math.log(0.8))
    assert fitness_of(params, facts, {"extra": 1.0}) == Unmeasured(reason="no metric with a weight")


def test_a_workload_without_pairs_is_left_out() -> None:
    base: tuple[str, tuple[PatchRef, ...]] = (candidate_id(BASE, ()), ())
    items, _, _ = experiment("cmp-0001~1", 1, [0.8] * 8, base)
    (state,) = fold(recorded([*started("cmp-0001~1"), *items])).campaigns.values()
    facts = state.experiments["exp-0001~1"].facts
    params = params_from({**PARAMS, "workloads": {"mixed": {}, "other": {}}, "pairs": 9})
    found = fitness_of(params, facts, {"cpu": 1.0})
    assert isinstance(found, Fitness)
    assert found.pairs == 5  # then the loss of memory was proved


def test_totals_stand_on_what_was_kept() -> None:
    """A candidate's total is its own step on top of its incumbent's."""
    gain = [0.90, 0.901, 0.902, 0.903, 0.904, 0.905, 0.906, 0.907]
    rule = {**PARAMS, "metrics": {"cpu": {"role": "primary"}, "rss": {}, "extra": {}}}
    (state,) = fold(campaign_log([gain, gain], rule)).campaigns.values()
    first, second = sorted(rescore(state).ranking, key=lambda ranked: ranked.number)
    assert len(state.kept) == 2
    assert second.total == pytest.approx(first.total + second.step.value)
    assert first.total == pytest.approx(first.step.value)
    other = rescore(state, weights={"rss": 1.0})
    assert [d.replayed for d in other.decisions] == ["discard_regression"] * 2
    assert [d.same_premise for d in other.decisions] == [True, False]
    assert other.parts_at == other.decisions[0].seq


def test_the_ranking_is_by_what_is_sure() -> None:
    """A larger estimate from pairs that scatter comes after a smaller one that is sure."""
    noisy = [0.60, 1.35, 0.58, 1.30, 0.62, 1.34, 0.60, 1.30]
    sure = [0.90, 0.901, 0.902, 0.903, 0.904, 0.905, 0.906, 0.907]
    rule = {**PARAMS, "metrics": {"cpu": {"role": "primary"}, "rss": {}, "extra": {}}}
    (state,) = fold(campaign_log([noisy, sure], rule)).campaigns.values()
    ranking = rescore(state).ranking
    assert [ranked.number for ranked in ranking] == [2, 1]
    assert all(ranked.low <= ranked.total for ranked in ranking)


def test_the_seed_s_fitness_can_be_chosen() -> None:
    """Of the signals that there are; the baseline would be exactly 1."""
    rule = {
        **PARAMS,
        "metrics": {"cpu": {"role": "primary"}, "rss": {}, "extra": {}},
    }
    gain = [0.90, 0.901, 0.902, 0.903, 0.904, 0.905, 0.906, 0.907]
    (state,) = fold(campaign_log([gain, gain], rule)).campaigns.values()
    unmeasured = rescore(state, fitness="seed-causal")
    assert unmeasured.ranking == ()
    assert {reason for _, reason in unmeasured.unranked} == {
        "none of the signals of seed-causal was measured"
    }
    # A campaign like this one, but its metric is a latency.
    for experiment in state.experiments.values():
        experiment.facts[:] = [
            evolve(fact, metrics={**fact.metrics, "p99_ms": fact.metrics["cpu"]})
            if isinstance(fact, RunMeasured)
            else fact
            for fact in experiment.facts
        ]
    params = params_from({**PARAMS, "metrics": {"p99_ms": {"role": "primary"}}})
    found = rescore(state, params=params, fitness="seed-causal")
    second, first = found.ranking
    assert (second.number, first.number) == (2, 1)
    for ranked in found.ranking:
        (score,) = ranked.standing.objectives
        assert score.value == pytest.approx(math.exp(ranked.total))
        assert score.se == pytest.approx(score.value * ranked.se, rel=0.01)
        assert score.step_se == pytest.approx(score.value * ranked.step.se, rel=0.01)
    assert found.compared_by == ("latency",)
    assert found.lacking == {"throughput": 2, "causal": 2, "off_cpu": 2}
    # Of a step that was not measured in it, and of what came after, it says nothing.
    first_experiment = next(iter(state.experiments.values()))
    for fact in first_experiment.facts:
        if isinstance(fact, RunMeasured):
            del cast(dict[str, Any], fact.metrics)["p99_ms"]
    metrics = {"cpu": {"role": "primary"}, "p99_ms": {}}
    both = rescore(state, params=params_from({**PARAMS, "metrics": metrics}), fitness="seed-causal")
    assert (both.ranking, len(both.unranked)) == ((), 2)
    with pytest.raises(
        ConfigError,
        match="there are weighted, geometric, lexico",
    ):
        rescore(state, fitness="mine")


def test_rejections_resumes_and_stages_are_followed() -> None:
    items = started("cmp-0001~1")
    proposed = make(CandidateProposed, number=1)
    items += [("cmp-0001~1", proposed)]
    state = fold(recorded(items))
    (campaign,) = state.campaigns.values()
    assert [p.status for p in campaign.unsettled()] == ["proposed"]
    rejected = make(CandidateRejected, number=1, reason="duplicate")
    items += [("cmp-0001~1", rejected), ("cmp-0001~1", make(StageStarted, run="incumbent"))]
    (campaign,) = fold(recorded(items)).campaigns.values()
    assert list(campaign.unsettled()) == []
    assert campaign.proposals[1].rejected == rejected
    assert len(list(campaign.cut_off_stages())) == 1
    items += [("cmp-0001~1", make(CampaignResumed))]
    (campaign,) = fold(recorded(items)).campaigns.values()
    assert list(campaign.cut_off_stages()) == []
    assert campaign.resumes == 1


def test_streams_that_nobody_began_are_passed_over() -> None:
    """A log may hold streams of other kinds; the fold keeps its place and nothing else."""
    (event,) = recorded([("other-0001~1", make(CampaignFinished))])
    state = step(LogState(), event)
    assert state == LogState(last_seq=1)


def test_a_state_is_not_shared_with_its_copy() -> None:
    log = campaign_log([[0.8] * 8])
    state = fold(log[:5])
    before = copy.deepcopy(state)
    fold(log[5:], copy.deepcopy(state))
    assert state == before
