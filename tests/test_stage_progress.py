"""One stage for several objectives: they advance together, and the first that passes ends it."""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from aiopt.events import LookTaken, RunMeasured
from aiopt.pairs import Pair
from aiopt.rules import NeedsMore, RuleParams, params_from
from aiopt.sequential import Stage, looks_at, take
from aiopt.stage_progress import StageProgress, advance
from tests.factories import make

RULE = params_from(
    {
        "metrics": {
            "cpu": {"role": "primary"},
            "rss": {"role": "primary"},
        },
        "workloads": {"mixed": {}, "reads": {}, "writes": {"guard": True}},
    }
)
ONE = params_from({"metrics": {"cpu": {"role": "primary"}}, "workloads": {"mixed": {}}})
STAGE = Stage(n=14, alpha=0.02, first=4, delta0=0.005, mei=0.03, sd_pair=0.01)

CPU, RSS = ("cpu", "mixed"), ("rss", "mixed")
CPU_READS, RSS_READS = ("cpu", "reads"), ("rss", "reads")


def pairs(workload: str, **factors: Sequence[float]) -> list[Pair]:
    """B costs so many times A."""
    return [
        Pair(*(run(workload, arm, dict(zip(factors, found, strict=True))) for arm in "AB"))
        for found in zip(*factors.values(), strict=True)
    ]


def run(workload: str, arm: str, factors: Mapping[str, float]) -> RunMeasured:
    metrics: dict[str, tuple[float, ...]] = {
        name: (factor if arm == "B" else 1.0,) for name, factor in factors.items()
    }
    return make(RunMeasured, arm=arm, workload=workload, metrics=metrics)


def wobbling(factor: float, n: int, by: float = 1e-4) -> list[float]:
    return [factor * (1 + by * ((7 * i) % 11 - 5)) for i in range(n)]


WIN, NOTHING, MAYBE = 0.9, 1.0, 0.978


def progress(
    mixed: Mapping[str, Sequence[float]],
    reads: Mapping[str, Sequence[float]] | None = None,
    *,
    stages: Mapping[tuple[str, str], Stage] | None = None,
    rule: RuleParams = RULE,
) -> StageProgress:
    found = {"mixed": pairs("mixed", **mixed)}
    if "reads" in rule.workloads:
        found["reads"] = pairs("reads", **(reads or mixed))
    given = stages if stages is not None else {o.key: STAGE for o in rule.objectives}
    return advance(rule, "screen", found, given)


def test_before_the_first_look_it_needs_what_that_takes_of_every_main_workload() -> None:
    found = progress({"cpu": wobbling(WIN, 3), "rss": wobbling(1.0, 3)})
    assert found.missing == NeedsMore(purpose="screen", wanted={"mixed": 4, "reads": 4}, missing=2)
    assert (found.rounds, found.passed, found.least_p) == (0, frozenset(), None)
    assert list(found.looks()) == []


def test_a_workload_that_is_ahead_waits_for_the_other() -> None:
    ahead = {"cpu": wobbling(WIN, 9), "rss": wobbling(WIN, 9)}
    behind = {"cpu": wobbling(WIN, 5), "rss": wobbling(WIN, 5)}
    found = progress(ahead, behind)
    assert found.rounds == 4
    assert found.missing == NeedsMore(purpose="screen", wanted={"mixed": 6, "reads": 6}, missing=1)


def test_the_first_objective_that_passes_ends_the_stage_for_all() -> None:
    n = 40
    found = progress(
        {"cpu": wobbling(WIN, n), "rss": wobbling(MAYBE, n, 0.004)},
        {"cpu": wobbling(NOTHING, n), "rss": wobbling(MAYBE, n, 0.004)},
    )
    assert found.missing is None
    assert found.passed == {CPU}
    assert found.rounds == take(STAGE, [0.1 + 1e-4 * i for i in range(n)]).ended_at
    assert {workload: len(each) for workload, each in found.pairs.items()} == {
        "mixed": found.rounds,
        "reads": found.rounds,
    }
    for objective in RULE.objectives:
        assert len(found.differences(objective)) == found.rounds
    assert all(look.pairs <= found.rounds for look in found.looks())
    assert found.level == found.results[CPU].looks[-1].level * 4  # that of all of them together


def test_what_was_given_up_does_not_hold_up_the_others() -> None:
    n = 6
    found = progress(
        {"cpu": wobbling(MAYBE, n, 0.001), "rss": wobbling(1.1, n)},
        {"cpu": wobbling(1.1, n), "rss": wobbling(1.1, n)},
    )
    ended = {key: result.ended_at for key, result in found.results.items()}
    assert ended == {CPU: None, RSS: 4, CPU_READS: 4, RSS_READS: 4}
    assert found.missing is not None
    assert found.missing.wanted == {"mixed": 9, "reads": 9}
    assert found.rounds == 6


def test_it_is_over_when_the_last_objective_was_given_up() -> None:
    found = progress({"cpu": wobbling(1.1, 9), "rss": wobbling(1.1, 9)})
    assert found.missing is None
    assert (found.rounds, found.passed) == (4, frozenset())
    assert found.least_p == 1.0
    assert not any(found.capped(objective) for objective in RULE.objectives)


def test_only_the_objectives_that_entered_are_tested() -> None:
    found = progress({"cpu": wobbling(WIN, 40), "rss": wobbling(WIN, 40)}, stages={RSS: STAGE})
    assert found.passed == {RSS}
    assert {(look.metric, look.workload) for look in found.looks()} == {RSS}
    assert found.level == found.results[RSS].looks[-1].level
    (cpu, *_) = RULE.objectives
    assert not found.capped(cpu)
    assert len(found.differences(cpu)) == found.rounds  # though it is still estimated


def test_an_objective_without_values_holds_nothing_up() -> None:
    found = progress({"cpu": wobbling(WIN, 40)})
    assert found.passed == {CPU, CPU_READS}
    assert set(found.results) == {CPU, CPU_READS}
    maybe = progress({"cpu": wobbling(MAYBE, 6, 0.001)})
    assert maybe.missing is not None
    assert maybe.missing.wanted == {"mixed": 9, "reads": 9}
    nothing = progress({"other": wobbling(WIN, 40)})
    assert (nothing.missing, nothing.rounds, nothing.passed) == (None, 0, frozenset())


def test_the_cap_is_known() -> None:
    stage = evolve(STAGE, sd_pair=0.05)
    n = looks_at(14, 4)[-1]
    found = progress(
        {"cpu": [0.985 - 0.03 * (-1) ** i * (1 + i / 1000) for i in range(n)]},
        stages={CPU: stage},
        rule=ONE,
    )
    (objective,) = ONE.objectives
    assert found.capped(objective)
    assert found.missing is None


factors = st.lists(st.floats(0.7, 1.2), min_size=0, max_size=40)


@given(factors)
def test_with_one_objective_it_is_that_stage(drawn: list[float]) -> None:
    found = progress({"cpu": drawn}, rule=ONE)
    (objective,) = ONE.objectives
    d: Any = found.differences(objective)
    result = found.results[objective.key]
    assert result.looks == take(STAGE, d).looks
    assert found.passed == ({objective.key} if result.passed else frozenset())
    assert (found.missing is None) == (result.next_look is None)
    if found.missing is not None:
        assert found.missing.wanted == {"mixed": result.next_look}
        assert found.missing.missing == (result.next_look or 0) - len(drawn)
    assert found.rounds == (result.looks[-1].k if result.looks else 0)


@given(
    st.integers(0, 30).flatmap(
        lambda n: st.tuples(
            *[st.lists(st.floats(0.7, 1.2), min_size=n, max_size=n) for _ in range(4)]
        )
    )
)
def test_looks_are_in_order_and_never_beyond_the_end(
    drawn: tuple[list[float], list[float], list[float], list[float]],
) -> None:
    cpu, rss, cpu_reads, rss_reads = drawn
    found = progress({"cpu": cpu, "rss": rss}, {"cpu": cpu_reads, "rss": rss_reads})
    looks = list(found.looks())
    assert [look.pairs for look in looks] == sorted(look.pairs for look in looks)
    assert all(isinstance(look, LookTaken) and look.pairs <= found.rounds for look in looks)
    last = {(look.metric, look.workload): look.action for look in looks}
    assert found.passed == {key for key, action in last.items() if action == "pass"}
    if found.missing is None:
        assert found.passed or set(last.values()) <= {"futile", "cap"} or not cpu
    else:
        assert "continue" in last.values() or not looks
        assert found.missing.missing > 0
