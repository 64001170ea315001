"""Rows 6a and 6b: a MAP-Elites archive, beside pyribs and OpenEvolve."""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import count, islice
from typing import Any

import numpy as np
from attrs import evolve

from aiopt.archive import Archive, Scoring, Status, archive_step, refold
from aiopt.events import Effect, VerdictReached
from aiopt.grid import Axis, Floats, Grid

from .measuring import Cost, Line, Rounds, cost_of, equal, ratio, turns
from .places import Places

__all__ = ["against_openevolve", "against_ribs"]

# ---- 6a: all items at once ----

_BINS = 50
_GOAL = 3.0
_NOTES = {
    "a refold, ours": f"{_BINS} x {_BINS} even bins, arrays in memory to the index of each cell's"
    " elite; objectives of 3 decimals, so there are ties, measures normal, so some lie outside",
    "a refold, ribs": "a new GridArchive and one `add` of the whole batch, which is its fastest"
    " way; the solution is the item's index. With numba installed it is faster than without",
}


def against_ribs(places: Places, quick: bool) -> Iterator[Line]:
    """The elites of as many items, and how the cost of one item grows with their number."""
    sizes = (100, 1_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    rounds = 2 if quick else 11
    installed = find_spec("ribs") is not None
    measured = Rounds()
    sides: dict[str, tuple[int, Callable[[], object]]] = {}
    for size in sizes:
        objectives, measures = _items(size)
        if installed:
            equal(f"elites of {size:,}", _elites(objectives, measures), _ribs(objectives, measures))
            sides[f"ribs {size}"] = size, partial(_ribs_add, objectives, measures)
        sides[f"ours {size}"] = size, partial(refold, _grid(), objectives, measures)
        sides[f"add {size}"] = size, partial(_add_all, objectives.tolist(), measures.tolist())
    for side in turns(list(sides), rounds, measured):
        size, work = sides[side]
        measured.add(side, _repeated(work, max(1, sizes[-1] // 10 // size)).per(size))
    for size in sizes:
        goal = None if size == 1_000 else _GOAL
        yield Line(
            row=f"6a {size:.0e}".replace("e+0", "e"),
            what=f"MAP-Elites refold of {size:,}, CPU an item",
            ours=measured.median(f"ours {size}", "cpu"),
            other=measured.median(f"ribs {size}", "cpu") if installed else None,
            unit="s",
            beside="ribs GridArchive",
            ratio=ratio(measured, f"ribs {size}", f"ours {size}", "cpu") if installed else None,
            turned=True,
            goal=goal,
            status="no goal" if installed else "not installed",
            notes=_NOTES,
        )
    for what, side in (("refolded", "ours"), ("added one by one", "add")):
        for size in sizes[1:]:
            yield Line(
                row="6a growth",
                what=f"an item of {size:,} {what}, CPU",
                ours=measured.median(f"{side} {size}", "cpu"),
                other=measured.median(f"{side} {sizes[0]}", "cpu"),
                unit="s",
                beside=f"of {sizes[0]:,}",
                ratio=ratio(measured, f"{side} {size}", f"{side} {sizes[0]}", "cpu"),
            )


def _grid() -> Grid:
    return Grid([Axis.linear(name, -2.0, 2.0, _BINS) for name in ("p99_us", "rss_mb")])


def _items(count: int) -> tuple[Floats, Floats]:
    random = np.random.default_rng(count)
    return random.normal(size=count).round(3), random.normal(size=(count, 2))


def _repeated(work: Callable[[], object], times: int) -> Cost:
    """Of one time; what is over at once is measured over many."""

    def all_of_it() -> None:
        for _ in range(times):
            work()

    return cost_of(all_of_it).per(times)


def _add_all(objectives: list[float], measures: list[list[float]]) -> Archive[int]:
    archive = Archive[int](_grid())
    for item, (objective, each) in enumerate(zip(objectives, measures, strict=True)):
        archive.add(item, objective, each)
    return archive


def _elites(objectives: Floats, measures: Floats) -> dict[int, int]:
    found = refold(_grid(), objectives, measures)
    elites = dict(zip(found.cells.tolist(), found.items.tolist(), strict=True))
    one_by_one = _add_all(objectives.tolist(), measures.tolist())
    equal("elites one by one", elites, {e.cell: e.item for e in one_by_one.elites})
    return elites


def _ribs_add(objectives: Floats, measures: Floats) -> Any:
    archives: Any = import_module("ribs.archives")
    archive = archives.GridArchive(
        solution_dim=1, dims=[_BINS, _BINS], ranges=[(-2.0, 2.0), (-2.0, 2.0)]
    )
    items = np.arange(len(objectives), dtype=np.float64)[:, np.newaxis]
    archive.add(items, objectives, measures)
    return archive


def _ribs(objectives: Floats, measures: Floats) -> dict[int, int]:
    elites = _ribs_add(objectives, measures).data(["index", "solution"])
    items = elites["solution"][:, 0].astype(int).tolist()
    return dict(sorted(zip(elites["index"].tolist(), items, strict=True)))


# ---- 6b: one item, live ----

_METRICS = ("p99_us", "rss_mb", "cpu_seconds", "throughput_ops")
_Candidate = tuple[VerdictReached, Any]
_SCORING = Scoring(workload="mixed", weights={"p99_us": 0.6, "throughput_ops": 0.4})
_LINES = ("    total += table.lookup(key, {0})", "    if key % {0} == 7: table.prefetch(key)")


def against_openevolve(places: Places, quick: bool) -> Iterator[Line]:
    """One program more, where the peer holds a thousand."""
    held, each, rounds = (50, 10, 2) if quick else (1_000, 100, 20)
    what = f"a MAP-Elites step at {held:,} programs, decoded event to state, CPU"
    line = Line(row="6b", what=what, beside="OpenEvolve add", turned=True, goal=500.0)
    if find_spec("openevolve") is None:
        yield evolve(line, status="not installed")
        return
    archive, database = Archive[str](_step_grid()), _database()
    come = _candidates()
    statuses: list[Status] = []
    while len(database.programs) < held:
        some = list(islice(come, 1))
        _ours(archive, some, statuses)
        _theirs(database, some)
    before = len(statuses)
    batches = [list(islice(come, each)) for _ in range(rounds + 1)]
    waiting = {"ours": iter(batches), "openevolve": iter(batches)}
    measured = Rounds()
    for side in turns(list(waiting), rounds, measured):
        some = next(waiting[side])
        if side == "ours":
            work = partial(_ours, archive, some, statuses)
        else:
            work = partial(_theirs, database, some)
        measured.add(side, cost_of(work).per(each))
    equal("steps that placed nothing", statuses.count("unplaced"), 0)
    best = max(archive.elites, key=lambda elite: elite.objective)
    equal("best program", best.item, database.get_best_program().id)
    if not quick:
        equal("programs that it holds", len(database.programs), held)
    added = sum(status in ("new", "improved") for status in statuses[before:])
    yield evolve(
        line,
        ours=measured.median("ours", "cpu"),
        other=measured.median("openevolve", "cpu"),
        unit="s",
        ratio=ratio(measured, "openevolve", "ours", "cpu"),
        notes={
            "a step, ours": "archive_step of a decoded VerdictReached with the effects of"
            f" {len(_METRICS)} metrics: the weighted mean of two is the objective, two are"
            f" measures; 10 x 10 cells, {before:,} items before, and of these steps"
            f" {added / len(statuses[before:]):.1%} were new or improved",
            "a step, OpenEvolve": "ProgramDatabase.add, default configuration: population 1000 (one"
            " is removed for each that comes), 5 islands of 10 x 10 cells by length and diversity"
            " of code, which it computes of programs of 1 to 3 KB, and an archive of the best 100."
            " It does more and other things; the best program is the same. 0.4.1 takes a quarter"
            " of the time of 0.4.0, for which the goal was set",
        },
    )


def _step_grid() -> Grid:
    return Grid([Axis.linear(name, -0.1, 0.1, 10) for name in ("rss_mb", "cpu_seconds")])


def _ours(archive: Archive[str], some: Sequence[_Candidate], statuses: list[Status]) -> None:
    for verdict, program in some:
        statuses.append(archive_step(archive, program.id, verdict, _SCORING))


def _theirs(database: Any, some: Sequence[_Candidate]) -> None:
    for _, program in some:
        database.add(program)


def _verdict(coin: random.Random) -> VerdictReached:
    effects = []
    for metric in _METRICS:
        effect = coin.gauss(0.0, 0.05)
        effects.append(
            Effect(
                metric=metric,
                workload="mixed",
                role="primary",
                direction="lower",
                pairs=8,
                effect=effect,
                low=effect - 0.02,
                high=effect + 0.02,
            )
        )
    return VerdictReached(
        kind="discard_no_effect",
        reason="no primary improved by more than 0.5 %",
        effects=tuple(effects),
        rule="signed-rank",
        rule_version=1,
    )


def _database() -> Any:
    config: Any = import_module("openevolve.config")
    return import_module("openevolve.database").ProgramDatabase(config.DatabaseConfig())


def _candidates() -> Iterator[_Candidate]:
    """The same for both: a verdict, and a program with its objective."""
    program = import_module("openevolve.database").Program
    coin = random.Random(7)
    for number in count():
        verdict, name = _verdict(coin), f"exp-{number:06}"
        lines = [coin.choice(_LINES).format(coin.randrange(10**6)) for _ in range(50)]
        code = "\n".join(lines[: coin.randint(30, 50)])
        effects = {effect.metric: effect.effect for effect in verdict.effects}
        objective = sum(w * (effects[metric] or 0.0) for metric, w in _SCORING.weights.items())
        yield verdict, program(id=name, code=code, metrics={"combined_score": objective})
