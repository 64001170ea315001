"""Gates, answers, limits and guards: what must hold of a candidate, however fast it is."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt.events import ArtifactBuilt, Effect, Event, GateFailed, GatePassed, RunMeasured
from aiopt.guards import (
    answers_differ,
    failed_gate,
    guard_effects,
    is_worse,
    main_margins,
    name_all,
    over_limit,
    workload_margins,
)
from aiopt.pairs import Pair
from aiopt.rules import Objective, params_from
from aiopt.stats import signed_rank_p
from tests.factories import make

RULE = params_from(
    {
        "metrics": {
            "cpu": {"role": "primary", "margin": 0.02},
            "rps": {"role": "guard", "margin": 0.1, "direction": "higher"},
            "errors": {"role": "guard", "limit": 0.5},
            "hits": {"role": "guard", "limit": 90.0, "direction": "higher"},
            "answers": {"kind": "digest"},
            "words": {"kind": "digest"},
            "note": {},
        },
        "workloads": {"mixed": {}, "writes": {"guard": True, "margin": 0.2}},
    }
)


def run(arm: str, texts: dict[str, str] | None = None, **values: float) -> RunMeasured:
    return make(
        RunMeasured,
        arm=arm,
        workload="mixed",
        metrics={name: (value,) for name, value in values.items()},
        texts=texts or {"answers": "same", "words": "same"},
    )


def pairs(**ratios: Sequence[float]) -> list[Pair]:
    """Pairs in which B is so many times A, for each metric."""
    return [
        Pair(
            run("A", None, **dict.fromkeys(ratios, 7.0)),
            run(
                "B", None, **{name: 7.0 * ratio for name, ratio in zip(ratios, found, strict=True)}
            ),
        )
        for found in zip(*ratios.values(), strict=True)
    ]


def state(
    d: Sequence[float], *, margin: float = 0.1, level: float = 0.035, spread: float | None = None
) -> Effect:
    """Of `cpu` as a guard, whose log ratios are these."""
    measured = pairs(cpu=[math.exp(-x) for x in d])
    (effect,) = [
        e
        for e in guard_effects(
            RULE, "mixed", measured, {"cpu": margin}, level=level, spread=lambda _: spread
        )
        if e.metric == "cpu"
    ]
    return effect


# ---- gates ----


def test_the_first_gate_that_failed_settles_it() -> None:
    events: list[Event] = [
        GatePassed(gate="build"),
        GateFailed(gate="test", detail="exit 1"),
        GateFailed(gate="workload", detail="exit 2"),
    ]
    assert failed_gate(events) == ("invalid", "test: exit 1")
    assert failed_gate(events[:1]) is None
    assert failed_gate([]) is None


@pytest.mark.parametrize(
    ("digest", "incumbent", "settled"),
    [("a", "a", True), ("a", "b", False), ("a", None, False)],
)
def test_equal_artifacts_are_no_change(digest: str, incumbent: str | None, settled: bool) -> None:
    built = ArtifactBuilt(digest=digest, files=1, incumbent_digest=incumbent)
    found = failed_gate([built])
    assert (found is not None and found[0] == "no_change") is settled


# ---- answers ----


def test_every_digest_must_be_equal_in_every_pair() -> None:
    same = {"answers": "x", "words": "y"}
    good = Pair(run("A", same), run("B", same))
    bad = Pair(run("A", same), run("B", {"answers": "x", "words": "z"}))
    silent = Pair(run("A", same), run("B", {"answers": "x"}))
    assert answers_differ(RULE, [[good], [good, good]]) == ""
    told = answers_differ(RULE, [[good], [good, bad]])
    assert told == "words under workload mixed: incumbent y, candidate z; they must be equal"
    assert "candidate None" in answers_differ(RULE, [[silent]])
    without = params_from({"metrics": {"cpu": {"role": "primary"}}, "workloads": {"mixed": {}}})
    assert answers_differ(without, [[bad]]) == ""


# ---- limits ----


@pytest.mark.parametrize(
    ("metric", "value", "beyond"),
    [
        ("errors", 0.5, False),
        ("errors", 0.51, True),
        ("hits", 90.0, False),
        ("hits", 89.9, True),
        ("rps", -1e9, False),  # it has no limit
    ],
)
def test_a_limit_may_be_reached_and_not_passed(metric: str, value: float, beyond: bool) -> None:
    fine = Pair(run("A"), run("B", errors=0.0, hits=100.0))
    odd = Pair(run("A"), run("B", None, **{metric: value}))
    told = over_limit(RULE, [[fine], [fine, odd]])
    assert bool(told) is beyond
    if beyond:
        assert told.startswith(f"{metric} (mixed): {value:g}, beyond its limit")
    (effect,) = [
        e
        for e in guard_effects(RULE, "mixed", [fine, odd], {}, level=0.05)
        if e.metric == ("hits" if metric == "hits" else "errors")
    ]
    assert effect.state == ("broken" if beyond else "held")


def test_only_the_candidate_is_held_to_a_limit_and_every_sample_of_it() -> None:
    worse_before = Pair(run("A", errors=9.0), run("B", errors=0.0))
    assert over_limit(RULE, [[worse_before]]) == ""
    samples = make(RunMeasured, arm="B", workload="mixed", metrics={"errors": (0.0, 0.0, 0.6)})
    assert over_limit(RULE, [[Pair(run("A"), samples)]]).startswith("errors (mixed): 0.6")
    unlimited = params_from({"metrics": {"cpu": {"role": "primary"}}, "workloads": {"mixed": {}}})
    assert over_limit(unlimited, [[worse_before]]) == ""


# ---- margins ----


def test_margins_of_main_and_of_guard_workloads() -> None:
    assert main_margins(RULE) == {"cpu": 0.02, "rps": 0.1}
    assert workload_margins(RULE, "writes") == {"cpu": 0.2}


def test_a_guard_holds_if_the_loss_of_its_margin_is_rejected() -> None:
    assert state([0.001 * i for i in range(5)]).state == "held"
    assert state([0.001 * i for i in range(4)]).state == "unresolved"  # 2**-4 is above 0.035
    assert state([-0.2 - 0.001 * i for i in range(5)]).state == "broken"
    assert state([-0.2, 0.1, -0.05, 0.15, -0.3]).state == "unresolved"


def test_the_smaller_level_of_a_second_look_takes_more() -> None:
    five = [0.001 * i for i in range(5)]
    assert state(five, level=0.035).state == "held"
    assert state(five, level=0.015).state == "unresolved"
    assert state([*five, 0.02, 0.03], level=0.015).state == "held"


differences = st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=30)


@given(differences, st.sampled_from([0.02, 0.1, 0.5]), st.sampled_from([0.015, 0.035, 0.05]))
def test_the_state_is_what_the_two_tests_say(d: list[float], margin: float, level: float) -> None:
    effect = state(d, margin=margin, level=level)
    d = [math.log(7.0) - math.log(7.0 * math.exp(-x)) for x in d]
    bound = math.log(1 + margin)
    held = signed_rank_p(d, -bound) <= level
    broken = signed_rank_p([-x for x in d], bound) <= 0.05
    assert not (held and broken)
    assert effect.state == ("held" if held else "broken" if broken else "unresolved")
    assert effect.p == pytest.approx(signed_rank_p(d, -bound), rel=1e-9)
    assert is_worse(d, margin, 0.05) == broken


ORDER = ("broken", "unresolved", "held")


@given(differences, st.lists(st.floats(0, 0.3), min_size=30, max_size=30))
def test_a_candidate_that_is_better_in_each_pair_has_no_worse_state(
    d: list[float], more: list[float]
) -> None:
    better = [x + gain for x, gain in zip(d, more, strict=False)]
    assert ORDER.index(state(better).state) >= ORDER.index(state(d).state)


@given(differences, st.sampled_from([0.02, 0.1]))
def test_a_wider_margin_has_no_worse_state(d: list[float], margin: float) -> None:
    wider = state(d, margin=2 * margin)
    assert ORDER.index(wider.state) >= ORDER.index(state(d, margin=margin).state)


def test_a_rate_is_guarded_against_becoming_lower() -> None:
    def of(ratio: float) -> str:
        found = guard_effects(
            RULE,
            "mixed",
            pairs(rps=[ratio + 0.001 * i for i in range(6)]),
            main_margins(RULE),
            level=0.05,
        )
        (effect,) = [e for e in found if e.metric == "rps"]
        return effect.state

    assert (of(1.5), of(0.98), of(0.7)) == ("held", "held", "broken")


def test_what_was_not_measured_does_not_hold() -> None:
    (effect,) = [
        e
        for e in guard_effects(RULE, "mixed", pairs(rps=[1.0] * 6), {"cpu": 0.1}, level=0.05)
        if e.metric == "cpu"
    ]
    assert (effect.state, effect.p, effect.effect) == ("unresolved", None, None)


@pytest.mark.parametrize("margin", [0.02, 0.03, 0.1, 0.25])
def test_what_never_varies_may_be_worse_by_exactly_its_margin(margin: float) -> None:
    """Also where the logarithms of a and of a (1 + margin) differ by a rounding more."""
    for a in range(1, 400):
        b = a * (1 + margin)
        found = guard_effects(
            RULE,
            "mixed",
            [Pair(run("A", cpu=a), run("B", cpu=b))],
            {"cpu": margin},
            level=0.05,
            spread=lambda _: 0.0,
        )
        assert [e.state for e in found if e.metric == "cpu"] == ["held"], a


def test_what_never_varies_is_broken_by_one_pair() -> None:
    d = [0.0] * 20
    assert state(d, spread=0.0).state == "held"
    assert state([0.0], spread=0.0).state == "held"  # one pair tells
    assert state([*d, -0.0954], spread=0.0).state == "broken"
    assert state([*d, -0.0953], spread=0.0).state == "held"
    assert state([*d, -0.0954], spread=1e-9).state == "held"
    assert state(d, spread=0.0).p is None


def test_metrics_without_a_margin_are_estimated_and_digests_are_not() -> None:
    measured = pairs(cpu=[0.9] * 6, note=[2.0] * 6)
    effects = guard_effects(RULE, "mixed", measured, {"cpu": 0.02}, level=0.05)
    found = {e.metric: (e.role, e.state) for e in effects}
    assert found == {
        "cpu": ("guard", "held"),
        "errors": ("guard", "held"),
        "hits": ("guard", "held"),
        "note": ("info", "info"),
        "rps": ("info", "info"),
    }
    (note,) = [e for e in effects if e.metric == "note"]
    assert note.effect == pytest.approx(-math.log(2))


def test_names_are_listed_with_their_workloads() -> None:
    objectives = [Objective("cpu", "mixed", {}), Objective("rss", "writes", {})]
    assert name_all("worse", objectives) == "cpu (mixed), rss (writes): worse"
