"""Another strategy's choices over the same log, on real campaigns."""

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen
from numpy.random import Generator

import aiopt
from aiopt import plugins
from aiopt.campaign import open_campaign
from aiopt.errors import ConfigError, UnknownPluginError
from aiopt.events import CandidateProposed
from aiopt.protocols import Patch, Proposal, ProposalRequest, Selection
from aiopt.rechoosing import rechoose
from aiopt.replay import CampaignState
from aiopt.settings import Budget
from aiopt.strategies.genetic import Genetic

from .test_campaign import QUICK, finish, read
from .test_genetic import GENETIC, POOL, search, together
from .toy import cost, replace_line, write_target


def log_of(results: Path) -> Path:
    return results / "toy" / "events.db"


def of_kind(strategy: str, **options: Any) -> Any:
    chosen = {"crossover": 0.3, **options}
    return evolve(GENETIC, strategy=strategy, strategies={strategy: chosen})


@frozen
class Cheaper:
    """A proposer that writes a number, on whatever it is asked for."""

    async def propose(self, request: ProposalRequest) -> Proposal | None:
        number = request.state.next_number
        if number > 12:
            return None
        name = f"{number:02d}-{request.selection.operator}"
        text = replace_line(f"file-{number}.txt", "x", "y").encode()
        return Proposal(patch=Patch(name=name, text=text))


@pytest.fixture
def cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the proposer `cheaper`."""
    load = plugins.load

    def with_it(group: str, name: str, options: Any = None) -> Any:
        if (group, name) != ("proposers", "cheaper"):
            return load(group, name, options)
        used = load("proposers", "pool").used
        return plugins.Loaded(plugin=Cheaper(), used=used)

    monkeypatch.setattr(plugins, "load", with_it)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("greedy", None),
        ("genetic", {}),
        ("genetic", {"hunks": 0.8, "islands": 2}),
        ("map-elites", {"parents": "curiosity", "hunks": 0.5}),
    ],
)
async def test_the_strategy_itself_would_choose_the_same(
    tmp_path: Path, strategy: str, options: dict[str, Any] | None
) -> None:
    """Each proposal of a real campaign, made by whatever operator, is what the fold says."""
    both = replace_line("cost.txt", "100", "60") + replace_line("size.txt", "10", "90")
    target = together(tmp_path / "target")
    (target / "patches" / "05-both.patch").write_text(both)
    settings = QUICK if options is None else of_kind(strategy, **options)
    state = await search(target, tmp_path / "results", settings)
    same = aiopt.rechoose(log_of(tmp_path / "results"))
    assert (same.strategy, same.seed) == (strategy, state.started.seed)
    assert [choice.number for choice in same.choices] == [*range(1, len(state.proposals) + 1)]
    assert same.changed == ()
    assert same.parts_at is None
    assert (same.elites is None) == (strategy != "map-elites")
    if same.elites is not None:
        assert same.elites.compared
        assert (same.elites.cells, same.elites.entered, same.elites.left) == ((), (), ())
    operators = {p.proposed.operator for p in state.proposals.values()}
    assert len(operators) > 2 or options is None
    if options and "hunks" in options:
        assert any(p.proposed.parts for p in state.proposals.values())
        assert any(", hunks " in choice.logged for choice in same.choices)


async def test_rewriting_too(tmp_path: Path, cheaper: None) -> None:
    target = write_target(tmp_path / "target")
    for number in range(1, 13):
        (target / "src" / f"file-{number}.txt").write_text("x\n")
    settings = evolve(of_kind("genetic", rewrite=0.7, hunks=0), proposer="cheaper")
    state = await search(target, tmp_path / "results", settings)
    assert any(p.proposed.operator == "rewrite" for p in state.proposals.values())
    same = aiopt.rechoose(log_of(tmp_path / "results"))
    assert same.changed == ()
    assert any(choice.logged.startswith("rewrite of exp-") for choice in same.choices)


async def test_where_other_choices_begin(tmp_path: Path) -> None:
    """With another seed, and of another strategy."""
    results = tmp_path / "results"
    state = await search(together(tmp_path / "target"), results, of_kind("genetic"))
    for other in (
        aiopt.rechoose(log_of(results), seed=5),
        aiopt.rechoose(log_of(results), strategy="greedy"),
        aiopt.rechoose(log_of(results), options={"mutation": 1}),
    ):
        assert other.changed
        first = other.changed[0]
        assert other.parts_at == first.seq
        proposed = next(r for r in read(results) if r.seq == first.seq).event
        assert isinstance(proposed, CandidateProposed)
        assert proposed.number == first.number
        assert all(choice.same for choice in other.choices[: first.number - 1])
    greedy = aiopt.rechoose(log_of(results), strategy="greedy")
    # What greedy asks for is the incumbent, whatever was made of known patches instead.
    made = {n for n, p in state.proposals.items() if p.proposed.operator != "propose"}
    assert made <= {choice.number for choice in greedy.changed}
    assert all(choice.replayed.startswith("propose on ") for choice in greedy.choices)


async def test_other_edges_and_weights_have_other_elites(tmp_path: Path) -> None:
    """The archive is folded anew; no cell keeps what another candidate is better in."""
    trade = cost(60) + replace_line("size.txt", "10", "11")
    target = write_target(tmp_path / "target", {"01-trade": trade, "02-small": cost(90)})
    settings = of_kind("map-elites", measures=[{"name": "size", "edges": [0.5, 1.05, 2]}])
    await search(target, tmp_path / "results", evolve(settings, budget=Budget(candidates=2)))
    log = log_of(tmp_path / "results")
    one = aiopt.rechoose(log, edges={"size": [0, 10]}).elites
    assert one is not None
    assert one.compared
    assert len(one.elites) == 1
    assert one.elites[0].endswith(" 01-trade")
    heavy = aiopt.rechoose(log, weights={"size": 1.0}).elites
    assert heavy is not None
    better = [row for row in heavy.cells if row.was is not None and row.is_now is not None]
    assert better or heavy.cells
    for row in heavy.cells:
        assert (row.was, row.objective_was) != (row.is_now, row.objective_is)
        assert row.edges in (((0.5, 1.05),), ((1.05, 2.0),))
    other = aiopt.rechoose(log, edges={"patches": [0, 1, 2]}).elites
    assert other is not None
    assert not other.compared
    assert (other.cells, other.measures) == ((), ("patches",))
    from_greedy = aiopt.rechoose(log, strategy="genetic", weights={"size": 1.0})
    assert from_greedy.elites is None


async def test_a_strategy_that_wants_nothing(tmp_path: Path) -> None:
    @frozen
    class Tired:
        def ask(self, state: CampaignState, rng: Generator, count: int) -> tuple[Selection, ...]:
            return ()

    state = await finish(write_target(tmp_path / "target", POOL), tmp_path / "results")
    found = rechoose(
        read(tmp_path / "results"), state.stream, Tired(), name="tired", logged=Genetic()
    )
    assert {choice.replayed for choice in found.choices} == {""}
    assert {choice.replayed_parents for choice in found.choices} == {()}
    assert len(found.changed) == len(POOL)


async def test_what_cannot_be_asked(tmp_path: Path) -> None:
    await finish(write_target(tmp_path / "target", POOL), tmp_path / "results")
    log = log_of(tmp_path / "results")
    with pytest.raises(UnknownPluginError, match="greedy"):
        aiopt.rechoose(log, strategy="clever")
    with pytest.raises(ConfigError, match="cmp-0007"):
        aiopt.rechoose(log, campaign="cmp-0007")
    with pytest.raises(ConfigError, match="colour"):
        aiopt.rechoose(log, options={"colour": 1})
    with pytest.raises(ConfigError, match="measures"):
        aiopt.rechoose(log, edges={"size": [0, 1]})
    tried = tmp_path / "tried"
    target = write_target(tmp_path / "other")
    async with open_campaign(target, tried, evolve(QUICK, proposer="try")) as campaign:
        await campaign.judge(Patch(name="mine", text=cost(60).encode()))
    with pytest.raises(ConfigError, match="handed in one at a time"):
        aiopt.rechoose(log_of(tried))
