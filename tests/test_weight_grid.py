"""What holds over a grid of weights; each point is an ordinary question."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aiopt
from aiopt.errors import ConfigError
from aiopt.replay import fold
from aiopt.rescoring import rescore
from aiopt.stats import Z95
from aiopt.weight_grid import MOST, grid_points, what_if

from .test_campaign import QUICK, finish
from .test_fitnesses import RULE, campaign, factors
from .test_replay import campaign_log
from .toy import POOL, write_target

axis = st.lists(st.sampled_from([-0.5, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=4)


@given(st.dictionaries(st.sampled_from("abc"), axis, min_size=1))
def test_every_direction_is_a_point_and_each_once(axes: dict[str, list[float]]) -> None:
    wanted = set()
    for each in itertools.product(*axes.values()):
        if total := sum(map(abs, each)):
            wanted.add(tuple(round(weight / total, 9) for weight in each))
    if not wanted:
        with pytest.raises(ConfigError, match="no point has a weight"):
            grid_points(axes)
        return
    points = [tuple(point.values()) for point in grid_points(axes)]
    assert set(points) == wanted
    assert len(points) == len(wanted)
    assert all(sum(map(abs, point)) == pytest.approx(1) for point in points)


def test_names_alone_are_all_tenths() -> None:
    assert len(grid_points(dict.fromkeys("ab"))) == 11
    assert len(grid_points(dict.fromkeys("abc"))) == 66
    assert grid_points({"a": None}) == ({"a": 1.0},)
    with pytest.raises(ConfigError, match="every metric with its weights, or none"):
        grid_points({"a": None, "b": [1.0]})
    with pytest.raises(ConfigError, match=f"more than {MOST} points"):
        grid_points({name: [n / 100 for n in range(30)] for name in "ab"})


def test_it_says_what_asking_at_every_point_says() -> None:
    """Who is first, which decisions swing, and what order is proved."""
    state = campaign(
        {"cpu": factors(0.8), "rss": factors(1.2)},
        {"cpu": factors(1.2), "rss": factors(0.7)},
        {"cpu": factors(0.95, 0.03), "rss": factors(0.95, 0.03)},
    )
    points = grid_points({"cpu": None, "rss": None})
    seen: list[int] = []
    found = what_if(lambda weights: rescore(state, weights=weights), points, progress=seen.append)
    assert seen == [*range(1, len(points) + 1)]
    asked = [
        rescore(state, weights={name: weight for name, weight in point.items() if weight})
        for point in points
    ]
    firsts = [result.ranking[0].experiment for result in asked]
    assert {row.experiment: row.points for row in found.first} == {
        name: firsts.count(name) for name in firsts
    }
    assert found.first[0].points == max(map(firsts.count, firsts))
    for row in found.first:
        where = [
            point for point, first in zip(points, firsts, strict=True) if first == row.experiment
        ]
        assert row.where["cpu"] == (min(p["cpu"] for p in where), max(p["cpu"] for p in where))
    assert (found.decisions, found.swings, found.robust) == (3, (), False)
    assert len(found.order) == 3
    for two in found.order:
        before = proved = 0
        for result in asked:
            names = [ranked.experiment for ranked in result.ranking]
            if names.index(two.better) < names.index(two.worse):
                before += 1
                one, other = (result.ranking[names.index(n)] for n in (two.better, two.worse))
                proved += one.standing.is_ahead(other.standing, Z95)
        assert (two.points, two.told_apart) == (before, proved)


def test_decisions_that_depend_on_the_weights() -> None:
    """A fifth less of one, and a quarter more of the other."""
    (state,) = fold(campaign_log([factors(0.8), factors(1.0)], RULE)).campaigns.values()
    first, second = state.judged()
    points = grid_points({"cpu": None, "rss": None})
    found = what_if(lambda weights: rescore(state, weights=weights), points)
    asked = [rescore(state, weights={n: w for n, w in p.items() if w}) for p in points]
    kept = [[d.replayed == "keep" for d in result.decisions] for result in asked]
    (swing,) = found.swings
    assert (swing.experiment, swing.logged) == (first.stream, "keep")
    assert swing.kept == sum(one for one, _ in kept)
    assert 0 < swing.kept < len(points)
    assert not any(other for _, other in kept)
    assert swing.where["rss"] == pytest.approx((0.5, 1.0))
    assert second.stream not in {swing.experiment for swing in found.swings}


def test_what_holds_everywhere_is_robust() -> None:
    state = campaign(
        {"cpu": factors(1.2), "rss": factors(1.2)}, {"cpu": factors(1.1), "rss": factors(1.1)}
    )
    found = what_if(
        lambda weights: rescore(state, weights=weights), grid_points({"cpu": None, "rss": None})
    )
    assert found.robust
    (first,) = found.first
    assert first.points == len(found.points)


def test_where_nothing_can_be_ranked_nobody_is_first() -> None:
    (state,) = fold(campaign_log([[]], RULE)).campaigns.values()
    found = what_if(lambda weights: rescore(state, weights=weights), grid_points({"cpu": [1.0]}))
    assert (found.first, found.order, found.decisions, found.robust) == ((), (), 1, True)


async def test_on_a_log(tmp_path: Path) -> None:
    """As a library, by the short name of a campaign."""
    await finish(write_target(tmp_path / "target", POOL), tmp_path / "results", QUICK)
    log = tmp_path / "results" / "toy" / "events.db"
    found = aiopt.what_if(log, ["cost", "size"], campaign="cmp-0001")
    assert len(found.points) == 11
    assert found.first[0].patch == "13-second-win"
    changed = aiopt.what_if(log, {"cost": [1.0]}, rule="signed-rank", changes={"mei": 0.5})
    assert len(changed.points) == 1
    with pytest.raises(ConfigError, match="no parameter colour; there are"):
        aiopt.what_if(log, ["cost"], changes={"colour": 1})
    with pytest.raises(ConfigError, match="there are cmp-0001"):
        aiopt.what_if(log, ["cost"], campaign="cmp-0009")
