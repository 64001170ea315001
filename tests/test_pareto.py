"""The front over several metrics."""

import math

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopt.errors import ConfigError
from aiopt.events import Effect
from aiopt.views import pareto_view

from .factories import make
from .test_fitnesses import campaign, factors

gains = st.sampled_from([0.7, 0.8, 0.9, 1.0, 1.1])


@given(st.lists(st.tuples(gains, gains), min_size=1, max_size=6))
@settings(max_examples=40)
def test_members_are_not_dominated_and_all_others_are(each: list[tuple[float, float]]) -> None:
    """By a row that is at least as good in both metrics, and better in one."""
    state = campaign(*({"cpu": factors(cpu), "rss": factors(rss)} for cpu, rss in each))
    view = pareto_view(state, ["cpu", "rss"])
    assert len(view.rows) == len(each) + 1
    values = {row.experiment or "baseline": [g.value for g in row.gains] for row in view.rows}
    for row in view.rows:
        mine = values[row.experiment or "baseline"]
        better = {
            name
            for name, other in values.items()
            if all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine
        }
        assert bool(better) == bool(row.dominated_by)
        assert not row.dominated_by or row.dominated_by in better
        assert row.dominated_by or not row.proved
    assert [row.dominated_by for row in view.front] == [""] * len(view.front)
    assert list(view.rows[: len(view.front)]) == list(view.front)


def test_behind_by_the_estimate_or_for_sure() -> None:
    noisy = {"cpu": [0.78, 0.88] * 4, "rss": factors(0.8)}
    state = campaign(
        {"cpu": factors(0.8), "rss": factors(0.8)},
        noisy,
        {"cpu": factors(0.9), "rss": factors(0.9)},
    )
    rows = {row.patch: row for row in pareto_view(state, ["cpu", "rss"]).rows}
    assert rows["p1"].dominated_by == ""
    assert (rows["p2"].dominated_by, rows["p2"].proved) == ("exp-0001~1", False)
    assert (rows["p3"].dominated_by, rows["p3"].proved) == ("exp-0001~1", True)
    assert rows["baseline"].proved
    assert rows["p1"].gains[0].value == pytest.approx(-math.log(0.8), abs=0.005)


def test_what_breaks_a_guard_is_left_out_unless_it_is_what_is_looked_at() -> None:
    state = campaign(
        {"cpu": factors(0.8), "rss": factors(0.8)}, {"cpu": factors(0.9), "rss": factors(1.1)}
    )
    second = [*state.judged()][1]
    assert second.verdict is not None
    broken = make(Effect, metric="rss", workload="mixed", role="guard", state="broken")
    second.verdict = evolve(second.verdict, effects=(broken,), reason="rss: worse")
    view = pareto_view(state)
    assert view.metrics == ("cpu",)
    assert view.left_out == ((second.stream, "breaks a guard: rss: worse"),)
    assert pareto_view(state, ["cpu", "rss"]).left_out == ()
    absolute = evolve(second.verdict, kind="discard_regression", effects=())
    second.verdict = absolute
    assert len(pareto_view(state, ["cpu", "rss"]).left_out) == 1
    with pytest.raises(ConfigError, match="colour"):
        pareto_view(state, ["colour"])
