"""The genetic strategy: what it asks for, and real campaigns with it."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from aiopt.campaign import open_campaign
from aiopt.errors import ConfigError
from aiopt.events import GateFailed, PatchRef
from aiopt.replay import CampaignState, fold
from aiopt.settings import Budget
from aiopt.standing import Objective, Standing
from aiopt.stats import proposal_rng
from aiopt.strategies._population import Individual, Known, best, gains, individuals
from aiopt.strategies._variation import _mutated
from aiopt.strategies.genetic import Genetic

from .test_campaign import QUICK, read, sound
from .toy import cost, replace_line, write_target

# 100 unless both files say so; what 03 does to a.txt is in the way of 01.
MAIN = """\
echo "cost=$(cat cost.txt | sed "s/$(cat a.txt)$(cat b.txt)/60/")"
echo "size=$(cat size.txt)"
echo answer=42
"""
POOL = {
    "01-key": replace_line("a.txt", "x", "10"),
    "02-lock": replace_line("b.txt", "y", "0"),
    "03-other": replace_line("a.txt", "x", "z"),
    "04-wrong": replace_line("main.sh", "echo answer=42", "echo answer=41", 3),
}
GENETIC = evolve(
    QUICK,
    strategy="genetic",
    strategies={"genetic": {"hunks": 0, "crossover": 0}},
    budget=Budget(candidates=60),
)


def together(folder: Path) -> Path:
    """A target whose two patches are worth nothing alone."""
    target = write_target(folder, POOL)
    (target / "src" / "main.sh").write_text(MAIN)
    (target / "src" / "a.txt").write_text("x\n")
    (target / "src" / "b.txt").write_text("y\n")
    return target


async def search(target: Path, results: Path, settings: Any) -> CampaignState:
    async with open_campaign(target, results, settings) as campaign:
        await campaign.run()
        return campaign.state


async def test_greedy_does_not_find_what_pays_only_together(tmp_path: Path) -> None:
    state = await search(together(tmp_path / "target"), tmp_path / "results", QUICK)
    assert state.incumbent_genome == ()


@pytest.mark.parametrize(
    ("options", "operators"),
    [
        ({"mutation": 1}, {"propose", "add"}),
        ({"mutation": 0, "union": 1}, {"propose"}),
        ({"mutation": 0, "union": 0, "selection": "rank"}, {"propose", "recombine"}),
        ({"islands": 2, "migration": 0.5}, {"propose"}),
    ],
)
async def test_it_finds_what_pays_only_together(
    tmp_path: Path, options: dict[str, Any], operators: set[str]
) -> None:
    """Whatever the operators; what clashes is rejected once, with both names."""
    target = together(tmp_path / "target")
    chosen = {"genetic": {"hunks": 0, "crossover": 0, "rewrite": 0.5, **options}}
    state = await search(target, tmp_path / "results", evolve(GENETIC, strategies=chosen))
    assert {patch.name for patch in state.incumbent_genome} >= {"01-key", "02-lock"}
    assert state.finished == "the strategy asks for nothing more"
    assert "propose" in state.declined
    proposals = [p.proposed for p in state.proposals.values()]
    assert operators <= {p.operator for p in proposals}
    genomes = [frozenset(patch.name for patch in p.genome) for p in proposals]
    assert len(set(genomes)) == len(genomes)
    assert not any("04-wrong" in names for names in genomes[len(POOL) :])
    clashes = [p.rejected for p in state.proposals.values() if p.rejected is not None]
    clash = next(c for c in clashes if c.reason == "does_not_apply")
    assert "03-other does not go together with 01-key: " in clash.detail
    assert sum("together" in c.detail for c in clashes) == 1
    assert fold(read(tmp_path / "results")).campaigns[state.stream] == state
    sound(tmp_path / "results")


async def test_some_hunks_of_a_patch(tmp_path: Path) -> None:
    """A patch of which one hunk is worth much and another breaks a guard."""
    both = replace_line("cost.txt", "100", "60") + replace_line("size.txt", "10", "90")
    target = write_target(tmp_path / "target", {"01-both": both, "02-other": POOL["04-wrong"]})
    settings = evolve(GENETIC, strategies={"genetic": {"hunks": 1.0}})
    state = await search(target, tmp_path / "results", settings)
    assert {patch.name for patch in state.incumbent_genome} == {"01-both#0"}
    sound(tmp_path / "results")


async def test_a_budget_of_runs(tmp_path: Path) -> None:
    target = together(tmp_path / "target")
    state = await search(target, tmp_path / "results", evolve(QUICK, budget=Budget(runs=10)))
    assert state.finished == "the budget of 10 runs is spent"
    assert len(state.proposals) < len(POOL)


# ---- who breeds ----


def one(number: int, value: float, se: float = 0.01, incumbent: str = "i") -> Individual:
    return Individual(
        candidate=f"{number:012x}",
        genome=(),
        standing=Standing(
            objectives=(Objective(value=value, se=2 * se, step_se=se),), incumbent=incumbent
        ),
        number=number,
    )


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.integers(0, 99))
def test_a_tournament_is_never_won_by_who_is_clearly_behind_all(
    values: list[float], seed: int
) -> None:
    contestants = [one(number, value) for number, value in enumerate(values, 1)]
    winner = best(contestants, 1.0, np.random.default_rng(seed))
    others = [c for c in contestants if c is not winner]
    assert winner in contestants
    assert not (others and all(o.standing.is_ahead(winner.standing, 1.0) for o in others))


def test_mutation_adds_what_brought_most_and_drops_what_brought_least() -> None:
    """Among three that are drawn of all."""
    patches = [PatchRef(name=f"p{n}", digest=f"{n:064d}") for n in range(6)]
    worth = {patch.digest: 0.1 * (n - 2) for n, patch in enumerate(patches) if n != 3}
    parent = evolve(one(1, 0.1), genome=tuple(patches[:4]))
    known = Known(pool=tuple(patches), worth=worth, clashes=(), tried=frozenset())
    rng = np.random.default_rng(1)
    added, dropped = Counter[str](), Counter[str]()
    for _ in range(600):
        found = _mutated(parent, known, rng)
        assert found is not None
        operator, parents, genome = found
        assert parents == (parent.candidate,)
        if operator == "add":
            added.update(patch.name for patch in genome[4:])
        else:
            dropped.update({p.name for p in parent.genome} - {p.name for p in genome})
    assert set(added) == {"p5"}  # of two, both are drawn
    assert dropped["p0"] > dropped["p1"] > 0
    assert not set(dropped) & {"p2", "p3"}
    assert _mutated(evolve(parent, genome=()), evolve(known, pool=()), rng) is None


async def test_what_a_patch_brought_is_its_candidate_beside_the_parent(tmp_path: Path) -> None:
    pool = {"01-win": cost(60), "02-small": replace_line("size.txt", "10", "9")}
    state = await search(write_target(tmp_path / "target", pool), tmp_path / "results", QUICK)
    everyone = individuals(state, {"cost": 1.0})
    worth = {
        state.patches[digest].ref.name: gain for digest, gain in gains(state, everyone).items()
    }
    assert worth["01-win"] == pytest.approx(-math.log(0.6))
    assert worth["02-small"] == pytest.approx(0.0)


async def test_what_was_never_judged_on_what_it_is_may_be_tried_again(tmp_path: Path) -> None:
    """Superseded, or lost with its session; a failure of its own is never tried again."""
    state = await search(together(tmp_path / "target"), tmp_path / "results", QUICK)
    everyone = individuals(state, {})
    ids = {n: proposal.proposed.candidate for n, proposal in state.proposals.items()}
    before = Known.of(state, everyone).tried
    assert before == {state.baseline, state.incumbent, *ids.values()}
    state.proposals[1].status = "superseded"
    lost = state.experiment_of(state.proposals[2])
    assert lost is not None
    lost.facts.append(GateFailed(gate="session", detail="the connection broke"))
    assert Known.of(state, everyone).tried == before - {ids[1], ids[2]}


def test_a_tie_is_decided_by_the_coin() -> None:
    """Two that the measurements do not tell apart win about equally often."""
    pair = [one(1, 0.010), one(2, 0.012)]
    rng = np.random.default_rng(3)
    wins = sum(best(pair, 1.0, rng).number == 1 for _ in range(400))
    assert 140 < wins < 260


def test_measured_beside_the_same_incumbent() -> None:
    """Then the incumbent's own error does not matter."""
    ahead, behind = one(1, 0.016).standing, one(2, 0.0).standing
    assert ahead.is_ahead(behind, 1.0)
    assert not ahead.is_ahead(one(2, 0.0, incumbent="j").standing, 1.0)


@pytest.mark.parametrize(
    "options",
    [{"population": 1}, {"crossover": 1.5}, {"islands": 0}, {"z": -1.0}, {"tournament": 0}],
)
def test_parameters_that_make_no_sense(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        Genetic(**options)


def test_asking_depends_on_its_arguments_alone() -> None:
    assert proposal_rng(3, 4).random() == proposal_rng(3, 4).random()
    assert proposal_rng(3, 4).random() != proposal_rng(3, 5).random()
