"""The strategy map-elites: its archive as a fold, and real campaigns with it."""

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from aiopt.errors import ConfigError
from aiopt.replay import fold
from aiopt.stats import proposal_rng
from aiopt.strategies.map_elites import MapElites, Measure

from .test_campaign import QUICK, finish, read, sound
from .test_genetic import GENETIC, search, together
from .toy import cost, replace_line, write_target


def settings(**options: Any) -> Any:
    chosen = {"hunks": 0, "crossover": 0.2, **options}
    return evolve(GENETIC, strategy="map-elites", strategies={"map-elites": chosen})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"parents": "curiosity", "measures": [{"name": "lines", "edges": [0, 1, 9]}]},
        {"incumbent": 0, "crossover": 1, "mutation": 1},
    ],
)
async def test_it_finds_what_pays_only_together(tmp_path: Path, options: dict[str, Any]) -> None:
    target = together(tmp_path / "target")
    state = await search(target, tmp_path / "results", settings(**options))
    assert {patch.name for patch in state.incumbent_genome} >= {"01-key", "02-lock"}
    assert fold(read(tmp_path / "results")).campaigns[state.stream] == state
    sound(tmp_path / "results")


async def test_what_trades_one_metric_for_another_is_an_elite(tmp_path: Path) -> None:
    """Cheaper and larger: nothing to keep, and yet the elite of its cell."""
    trade = cost(60) + replace_line("size.txt", "10", "30")
    target = write_target(tmp_path / "target", {"01-trade": trade, "02-small": cost(90)})
    toml = (target / "target.toml").read_text()
    primary = toml.replace('[metrics.size]\nrole = "guard"', '[metrics.size]\nrole = "primary"')
    (target / "target.toml").write_text(primary)
    measures = (Measure(name="size", low=0.5, high=4, bins=7), Measure(name="patches"))
    options = {"measures": [{"name": "size", "low": 0.5, "high": 4, "bins": 7}]}
    chosen = evolve(settings(**options), rule_options={**QUICK.rule_options, "pairs": 8})
    state = await finish(target, tmp_path / "results", chosen)
    strategy = MapElites(measures=measures, weights={"cost": 1.0})
    archive = strategy.archive(state)
    (large,) = (elite for elite in archive.elites if elite.measures[0] > 2.9)
    assert large.objective == pytest.approx(0.5108, abs=1e-3)
    assert [patch.name for patch in state.genomes[large.item]] == ["01-trade"]
    assert archive == strategy.archive(fold(read(tmp_path / "results")).campaigns[state.stream])
    rng = proposal_rng(1, 1), proposal_rng(1, 1)
    assert strategy.ask(state, rng[0], 3) == strategy.ask(state, rng[1], 3)


async def test_the_shape_of_patches_is_a_measure(tmp_path: Path) -> None:
    """Of the whole genome: the patches of the incumbent and the candidate's own."""
    both = cost(80) + replace_line("size.txt", "10", "10 ")
    target = write_target(tmp_path / "target", {"01-both": both, "02-more": cost(60, 80)})
    state = await finish(target, tmp_path / "results", QUICK)
    names = ("patches", "files", "hunks", "lines")
    measures = tuple(Measure(name=name, edges=(-0.5, 0.5, 1.5, 2.5, 3.5, 9)) for name in names)
    archive = MapElites(measures=measures).archive(state)
    found = {
        " ".join(patch.name for patch in state.genomes[elite.item]): elite.measures
        for elite in archive.elites
    }
    assert found == {
        "": (0, 0, 0, 0),
        "01-both": (1, 2, 2, 4),
        "01-both 02-more": (2, 3, 3, 6),
    }


async def test_a_measure_that_is_not_there(tmp_path: Path) -> None:
    target = together(tmp_path / "target")
    with pytest.raises(ConfigError, match="no such measure; there are cost, size"):
        await search(target, tmp_path / "results", settings(measures=[{"name": "colour"}]))
    evidence = settings(measures=[{"name": "perf:samples"}])
    with pytest.raises(ConfigError, match="nothing to fit"):
        await search(target, tmp_path / "more", evidence)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"measures": ()}, "measures"),
        ({"measures": (Measure(name="lines"), Measure(name="lines"))}, "each name once"),
        ({"incumbent": 2}, "incumbent"),
    ],
)
def test_parameters_that_make_no_sense(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        MapElites(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"low": 1.0},
        {"low": 1.0, "high": 2.0, "edges": (0, 1)},
        {"low": 1.0, "high": 2.0, "spacing": "quantiles"},
        {"low": 2.0, "high": 1.0},
        {"edges": (1, 0)},
    ],
)
def test_a_measure_that_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Measure(name="lines", **options)
