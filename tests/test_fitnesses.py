"""What a ranking can be by: every named fitness, and functions of the user's."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from aiopt.causal import signal_errors
from aiopt.errors import ConfigError
from aiopt.events import EvidenceCaptured, RunMeasured, Scalar
from aiopt.fitness import Fitness, Unmeasured, compared_by, fitness_of
from aiopt.ranking import rank
from aiopt.replay import CampaignState, fold
from aiopt.rescoring import rescore
from aiopt.rules import params_from
from aiopt.stats import Z95, proposal_rng
from aiopt.strategies.genetic import Genetic
from aiopt.strategies.map_elites import MapElites
from aiopt.user_function import user_function

from .factories import make
from .test_evidence_fitness import evidence
from .test_replay import PARAMS, campaign_log

METRICS = {"cpu": {"role": "primary"}, "rss": {}, "extra": {"direction": "higher"}}
RULE: dict[str, Any] = {**PARAMS, "metrics": METRICS}


def factors(middle: float, spread: float = 0.001) -> list[float]:
    """Of eight pairs."""
    return [middle + spread * (pair - 3.5) for pair in range(8)]


def campaign(
    *each: Mapping[str, Sequence[float]], rule: Mapping[str, Any] = RULE, worse: float = 1.9
) -> CampaignState:
    """Candidates that are measured beside the baseline, with factors of their metrics in each pair;
    all are slower at first, so that none is kept.
    """
    (state,) = fold(campaign_log([factors(worse)] * len(each), dict(rule))).campaigns.values()
    for experiment, wanted in zip(state.judged(), each, strict=True):
        experiment.facts[:] = [
            evolve(
                fact,
                metrics={
                    name: (of_pair[fact.index % len(of_pair)] if fact.arm == "B" else 1.0,)
                    for name, of_pair in wanted.items()
                },
            )
            if isinstance(fact, RunMeasured)
            else fact
            for fact in experiment.facts
        ]
    return state


def order(state: CampaignState, fitness: str, **options: Any) -> list[int]:
    return [ranked.number for ranked in rescore(state, fitness=fitness, **options).ranking]


# ---- geometric ----


def test_the_geometric_mean_counts_workloads_alike() -> None:
    """However many pairs each of them has."""
    state = campaign({"cpu": factors(0.5)})
    (experiment,) = state.judged()
    other = [
        evolve(fact, workload="other", metrics={"cpu": (0.9 if fact.arm == "B" else 1.0,)})
        for fact in experiment.facts
        if isinstance(fact, RunMeasured) and fact.index < 3
    ]
    params = params_from({**RULE, "workloads": {"mixed": {}, "other": {}}})
    facts = [*experiment.facts, *other]
    mean = fitness_of(params, facts, {"cpu": 1.0}, pooled=False)
    pooled = fitness_of(params, facts, {"cpu": 1.0})
    assert isinstance(mean, Fitness)
    assert isinstance(pooled, Fitness)
    assert mean.value == pytest.approx((math.log(2) - math.log(0.9)) / 2, abs=0.005)
    assert pooled.value > mean.value
    assert mean.pairs == pooled.pairs > 3
    alone = [fitness_of(params, part, {"cpu": 1.0}) for part in (experiment.facts, other)]
    errors = [each.se for each in alone if isinstance(each, Fitness)]
    assert mean.se == pytest.approx(math.hypot(*errors) / 2)
    assert (mean.low + mean.high) / 2 == pytest.approx(mean.value)


def test_with_one_workload_both_means_are_the_same() -> None:
    state = campaign({"cpu": factors(0.9)}, {"cpu": factors(0.8)})
    weighted, geometric = rank(state), rank(state, fitness="geometric")
    assert weighted == geometric
    assert rescore(state, fitness="geometric").fitness == "geometric"


# ---- lexicographic ----


def test_lexicographic_the_first_metric_decides_unless_it_is_too_close() -> None:
    state = campaign(
        {"cpu": factors(0.90), "rss": factors(0.9)},
        {"cpu": factors(0.895), "rss": factors(1.1)},
        {"cpu": factors(0.70), "rss": factors(2.0)},
    )
    assert order(state, "lexicographic:cpu,rss") == [3, 1, 2]
    assert order(state, "lexicographic:cpu=0.001,rss") == [3, 2, 1]
    assert order(state, "lexicographic:rss,cpu") == [1, 2, 3]
    assert order(state, "lexicographic") == order(state, "lexicographic:cpu") == [3, 2, 1]
    ranking = rank(state, fitness="lexicographic:cpu,rss")
    assert ranking.compared_by == ("cpu", "rss")
    assert [len(ranked.standing.objectives) for ranked in ranking.ranked] == [2, 2, 2]
    assert [objective.value for objective in ranking.baseline.objectives] == [0.0, 0.0]


def test_lexicographic_needs_every_metric_of_it() -> None:
    state = campaign({"cpu": factors(0.9), "rss": factors(0.9)}, {"cpu": factors(0.8)})
    found = rescore(state, fitness="lexicographic:cpu,rss")
    assert [ranked.number for ranked in found.ranking] == [1]
    ((_, reason),) = found.unranked
    assert reason == "not measured on rss"


@pytest.mark.parametrize(
    ("fitness", "problem"),
    [
        ("lexicographic:colour", "expected a metric, each once; there are cpu, extra, rss"),
        ("lexicographic:cpu,cpu", "each once"),
        ("lexicographic:cpu=much", "expected a tolerance from 0 to 1"),
        ("lexicographic:cpu=2", "expected a tolerance from 0 to 1"),
        ("mine", "'mine': there are weighted, geometric, lexicographic, seed-causal, MODULE"),
    ],
)
def test_a_fitness_that_makes_no_sense(fitness: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        rank(campaign({"cpu": factors(0.9)}), fitness=fitness)


# ---- the user's function ----


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_fitness.py").write_text(
        "calls = []\n"
        "def cpu(ratios): return ratios['cpu']\n"
        "def both(ratios): return 2 * ratios['cpu'] + ratios['rss']\n"
        "def worst(ratios): return min(ratios.get('cpu', 0), ratios.get('rss', 0))\n"
        "def scalars(ratios): return ratios['callgrind:instructions']\n"
        "def nothing(ratios): return None\n"
        "def wild(ratios): return float('nan') if ratios['cpu'] else 0.0\n"
        "def broken(ratios): return 1 / ratios['cpu']\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return str(tmp_path / "my_fitness.py")


def test_a_function_of_one_ratio_ranks_as_that_metric_does(module: str) -> None:
    """With its errors; by name and by path."""
    state = campaign({"cpu": factors(0.9)}, {"cpu": factors(0.8, 0.02)}, {"cpu": factors(1.1)})
    plain = rank(state, weights={"cpu": 1.0})
    for name in ("my_fitness:cpu", f"{module}:cpu"):
        found = rank(state, fitness=name, weights={"cpu": 1.0})
        for mine, theirs in zip(found.ranked, plain.ranked, strict=True):
            (one,), (other,) = mine.standing.objectives, theirs.standing.objectives
            assert mine.number == theirs.number
            assert one.value == pytest.approx(other.value)
            assert one.se == pytest.approx(other.se)
            assert one.step_se == pytest.approx(other.step_se)


def test_errors_of_several_numbers_add_up(module: str) -> None:
    state = campaign({"cpu": factors(0.9, 0.01), "rss": factors(0.8, 0.02)})
    (cpu,), (rss,) = (rank(state, weights={name: 1.0}).ranked for name in ("cpu", "rss"))
    (ranked,) = rank(state, fitness="my_fitness:both").ranked
    (score,) = ranked.standing.objectives
    assert score.value == pytest.approx(2 * cpu.total + rss.total)
    assert score.se == pytest.approx(math.hypot(2 * cpu.se, rss.se))
    assert rank(state, fitness="my_fitness:worst").ranked[0].standing.objectives[0].value == (
        pytest.approx(min(cpu.total, rss.total))
    )


def test_a_function_gets_what_profilers_measured(module: str) -> None:
    state = campaign({"cpu": factors(0.9)}, {"cpu": factors(0.9)})
    first, second = state.judged()
    first.profiles += [
        evidence(state.baseline, instructions=100.0),
        evidence(first.started.candidate, instructions=50.0),
    ]
    found = rank(state, fitness="my_fitness:scalars")
    (ranked,) = found.ranked
    assert ranked.standing.objectives[0].value == pytest.approx(math.log(2))
    ((stream, reason),) = found.unranked
    assert stream == second.stream
    assert reason == "my_fitness:scalars: KeyError: 'callgrind:instructions'"


def test_a_function_that_gives_no_number_is_said_so(module: str) -> None:
    state = campaign({"cpu": factors(0.9)})
    ((_, reason),) = rank(state, fitness="my_fitness:wild").unranked
    assert reason == "my_fitness:wild returned nan: expected a finite number"
    for name, problem in (
        ("my_fitness:nothing", "for the baseline itself: my_fitness:nothing returned None"),
        ("my_fitness:broken", "for the baseline itself: my_fitness:broken: ZeroDivisionError"),
        ("my_fitness:number", "there is no function 'number' in my_fitness"),
        ("my_fitness:gone", "there is no function 'gone' in my_fitness"),
        ("no_such_module:f", "no_such_module does not import: ModuleNotFoundError"),
        ("no/such/file.py:f", "no/such/file.py does not import: FileNotFoundError"),
    ):
        with pytest.raises(ConfigError, match=problem):
            rank(state, fitness=name)


def test_a_module_that_is_only_a_file_here_is_pointed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command `aiopt` does not look for modules in the working directory."""
    (tmp_path / "only_here.py").write_text("def f(ratios): return 1.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p not in ("", ".")])
    with pytest.raises(ConfigError, match=r"only_here.py is a file here, so only_here.py:f would"):
        user_function("only_here:f")
    assert user_function("only_here.py:f")({}) == 1.0


def test_one_pair_has_no_error_that_is_known(module: str) -> None:
    state = campaign({"cpu": factors(0.9)})
    (experiment,) = state.judged()
    experiment.facts[:] = [
        fact for fact in experiment.facts if not isinstance(fact, RunMeasured) or fact.index < 1
    ]
    (ranked,) = rank(state, fitness="my_fitness:cpu").ranked
    assert ranked.standing.objectives[0].se == math.inf


def test_a_file_that_was_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "it.py"
    path.write_text("def f(ratios): return 1.0\n")
    assert user_function(f"{path}:f") is user_function(f"{path}:f")
    assert user_function(f"{path}:f")({}) == 1.0
    path.write_text("def f(ratios): return 22.0\n")
    assert user_function(f"{path}:f")({}) == 22.0


# ---- the seed's formula ----


def causal_evidence(candidate: str, slope: float, waiting: float) -> list[EvidenceCaptured]:
    """A causal profile with one line, and an off-CPU profile."""
    slopes = {
        "slope[a.c:1,done]": Scalar(value=slope, unit="ratio", low=slope - 0.1, high=slope + 0.1)
    }
    waits = {"off_cpu_ms[L]": Scalar(value=waiting, unit="ms", low=waiting - 10, high=waiting + 10)}
    return [
        make(
            EvidenceCaptured, profiler=name, workload="mixed", candidate=candidate, scalars=scalars
        )
        for name, scalars in (("coz", slopes), ("offcpu", waits))
    ]


def test_errors_of_profiles_are_carried_into_the_seeds_score() -> None:
    rule = {**RULE, "metrics": {"cpu": {"role": "primary"}, "p99_ms": {}}}
    state = campaign({"cpu": factors(0.9), "p99_ms": factors(0.8)}, rule=rule)
    (experiment,) = state.judged()
    (plain,) = rank(state, fitness="seed-causal").ranked
    experiment.profiles += [
        *causal_evidence(state.baseline, 0.5, 100.0),
        *causal_evidence(experiment.started.candidate, 0.2, 50.0),
    ]
    found = rank(state, fitness="seed-causal")
    assert found.compared_by == ("latency", "causal", "off_cpu")
    assert found.lacking == {"throughput": 1}
    (ranked,) = found.ranked
    (score,), (before,) = ranked.standing.objectives, plain.standing.objectives
    assert score.value == pytest.approx((0.2 / 0.8 + 0.3 * 1.8 / 1.5 + 0.2 * 2.0) / 0.7, rel=1e-3)
    causal, off_cpu = 0.1 / Z95 / 1.5, 2.0 * 10 / Z95 / 50
    expected = math.hypot(0.2 * before.se, 0.3 * causal, 0.2 * off_cpu) / 0.7
    assert score.se == pytest.approx(expected, rel=0.05)


def test_terms_of_the_seed_that_some_lack_are_left_out_of_all() -> None:
    """And who has none of those that are left is not ranked."""
    rule = {**RULE, "metrics": {"cpu": {"role": "primary"}, "p99_ms": {}}}
    both = {"cpu": factors(0.9), "p99_ms": factors(0.8)}
    state = campaign(both, both, {"cpu": factors(0.9)}, rule=rule)
    first, second, third = state.judged()
    first.profiles += [
        *causal_evidence(state.baseline, 0.5, 100.0),
        *causal_evidence(first.started.candidate, 0.2, 50.0),
        *causal_evidence(third.started.candidate, 0.2, 50.0),
    ]
    found = rank(state, fitness="seed-causal")
    assert found.compared_by == ("causal", "off_cpu")
    assert found.lacking == {"throughput": 3, "latency": 1}
    assert [ranked.number for ranked in found.ranked] == [1, 3]
    ((stream, reason),) = found.unranked
    assert (stream, reason) == (
        second.stream,
        "none of the signals was measured that the others have",
    )
    errors = signal_errors(causal_evidence("c", 0.2, 50.0), "mixed")
    assert errors == pytest.approx({"causal": 0.1 / Z95, "off_cpu": 10 / Z95})
    without = make(
        EvidenceCaptured, workload="mixed", scalars={"off_cpu_ms[L]": Scalar(value=1.0, unit="ms")}
    )
    assert signal_errors([without], "mixed") == {"causal": 0.0, "off_cpu": 0.0}


# ---- all of them ----

FITNESSES = ["weighted", "geometric", "lexicographic:cpu,rss", "my_fitness:both"]


@pytest.mark.parametrize("fitness", FITNESSES)
def test_units_and_directions(fitness: str, module: str) -> None:
    """In milliseconds instead of seconds the ranking is the same; in operations per second, which
    are the better the more they are, too.
    """
    plain = [
        {"cpu": factors(c), "rss": factors(r)} for c, r in ((0.9, 1.0), (0.8, 1.2), (1.1, 0.7))
    ]
    state = campaign(*plain)
    wanted = order(state, fitness)
    assert len(wanted) == 3
    for experiment in state.judged():
        experiment.facts[:] = [
            evolve(fact, metrics={n: (v[0] * 1000,) for n, v in fact.metrics.items()})
            if isinstance(fact, RunMeasured)
            else fact
            for fact in experiment.facts
        ]
    assert order(state, fitness) == wanted
    turned = {**RULE, "metrics": {"cpu": {"role": "primary", "direction": "higher"}, "rss": {}}}
    inverse = [{"cpu": [1 / x for x in each["cpu"]], "rss": each["rss"]} for each in plain]
    assert order(campaign(*inverse, rule=turned, worse=0.5), fitness) == wanted


@pytest.mark.parametrize("fitness", [*FITNESSES, "my_fitness:wild"])
def test_what_failed_or_was_not_measured_is_never_ranked(fitness: str, module: str) -> None:
    state = campaign({"cpu": factors(3.0), "rss": factors(3.0)}, {}, {"cpu": factors(0.1)})
    invalid = [*state.judged()][2]
    assert invalid.verdict is not None
    invalid.verdict = evolve(invalid.verdict, kind="invalid", reason="exit 1")
    found = rank(state, fitness=fitness)
    assert {ranked.number for ranked in found.ranked} <= {1}
    reasons = dict(found.unranked)
    assert "invalid: exit 1" in reasons.values()
    assert len(reasons) + len(found.ranked) == 3


def test_strategies_take_each_of_them(module: str) -> None:
    state = campaign({"cpu": factors(0.9), "rss": factors(0.9)}, {"cpu": factors(0.8)})
    for fitness in FITNESSES:
        (child,) = Genetic(fitness=fitness).ask(state, proposal_rng(1, 1), 1)
        assert child.operator == "propose"
    with pytest.raises(ConfigError, match="lexicographic has none"):
        MapElites(fitness="lexicographic")
    assert MapElites(fitness="my_fitness:worst").archive(state).elites


# ---- what candidates are compared by ----

signals = st.frozensets(st.sampled_from("abcd"))


@given(
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from([-1.0, 0.5, 2.0]), min_size=1),
    st.dictionaries(signals, st.integers(1, 5), max_size=4),
)
def test_all_who_are_compared_have_all_they_are_compared_by(
    weights: dict[str, float], patterns: dict[frozenset[str], int]
) -> None:
    """And there is always something, if anybody has anything."""
    used = compared_by(weights, patterns)
    assert used <= weights.keys()
    some = [lacks for lacks in patterns if not weights.keys() <= lacks]
    compared = [lacks for lacks in patterns if not lacks & used]
    if some or not patterns:
        assert used
        assert compared or not patterns
    common = set(weights).difference(*patterns)
    assert used == common or not common
    assert compared_by(weights, patterns, complete=True) == weights.keys()


def test_of_complete_candidates_the_incumbent_has_to_be_one() -> None:
    gain = factors(0.8)
    (state,) = fold(campaign_log([gain, gain], RULE)).campaigns.values()
    first, second = state.judged()
    first.facts[:] = [
        evolve(f, metrics={"cpu": f.metrics["cpu"]}) if isinstance(f, RunMeasured) else f
        for f in first.facts
    ]
    weights = {"cpu": 1.0, "rss": 1.0}
    assert len(rank(state, weights=weights).ranked) == 2
    reasons = dict(rank(state, weights=weights, complete=True).unranked)
    assert reasons == {
        first.stream: "not measured on rss, by which the others are compared",
        second.stream: "its incumbent was not measured on what has a weight",
    }


def test_an_incumbent_without_the_metric_leaves_its_children_without_a_number() -> None:
    gain = factors(0.8)
    (state,) = fold(campaign_log([gain, gain], RULE)).campaigns.values()
    first, second = state.judged()
    first.facts[:] = [
        evolve(f, metrics={"rss": (1.0,)}) if isinstance(f, RunMeasured) else f for f in first.facts
    ]
    found = rank(state)
    reasons = dict(found.unranked)
    assert found.ranked == ()
    assert reasons[second.stream] == "its incumbent was not measured on what has a weight"
    assert isinstance(fitness_of(state.params, first.facts, {"cpu": 1.0}), Unmeasured)
