"""The archive against its laws, and against pyribs."""

import math
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from aiopt import archive as module
from aiopt.archive import (
    Archive,
    CellChange,
    Difference,
    Elite,
    Scoring,
    Status,
    archive_step,
    curiosity,
    difference,
    refold,
)
from aiopt.errors import ConfigError
from aiopt.events import Effect, VerdictReached
from aiopt.grid import Axis, Grid
from tests.factories import make

Row = tuple[float | None, tuple[float | None, ...]]
"""An objective and its measures."""

GRID = Grid([Axis.linear("p99", 0, 4, 4), Axis("rss", (1.0, 2.0, 7.0))])
UNMEASURED = [None, math.nan, math.inf, -math.inf]

tied = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 3.0])
places = st.floats(-1, 9) | st.sampled_from([0.0, 1.0, 2.0, 4.0, 7.0])
measured = st.tuples(tied, st.tuples(places, places))
maybe = st.sampled_from(UNMEASURED)
rows = st.lists(measured | st.tuples(tied | maybe, st.tuples(places | maybe, places | maybe)))


def added(rows: list[Row], grid: Grid = GRID) -> Archive[int]:
    """One by one; an item is the number of its row."""
    archive = Archive[int](grid)
    for item, (objective, measures) in enumerate(rows):
        archive.add(item, objective, measures)
    return archive


def arrays(rows: list[Row], axes: int = 2) -> tuple[Any, Any]:
    objectives = np.array([objective for objective, _ in rows], dtype=float)
    measures = np.array([measures for _, measures in rows], dtype=float).reshape(-1, axes)
    return objectives, measures


def refolded(rows: list[Row], grid: Grid = GRID) -> Archive[int]:
    return Archive.refolded(grid, range(len(rows)), *arrays(rows, len(grid.axes)))


# ---- laws ----


@given(rows, st.sampled_from([1, 2, 3, 1000]))
def test_all_at_once_is_the_same_as_one_by_one(rows: list[Row], block: int) -> None:
    with patch.object(module, "_BLOCK", block):
        found = refold(GRID, *arrays(rows))
    expected = added(rows)
    assert found.archive(range(len(rows)), arrays(rows)[1]) == expected
    assert found.items.tolist() == [elite.item for elite in expected.elites]
    assert found.unplaced == expected.unplaced
    assert found.coverage == expected.coverage
    assert found.qd_score(-2.0) == expected.qd_score(-2.0)


@given(rows, rows)
def test_catching_up_is_the_same_as_from_the_start(before: list[Row], after: list[Row]) -> None:
    expected = refolded([*before, *after])
    for start in (refolded(before), added(before)):
        for number, (objective, measures) in enumerate(after, len(before)):
            start.add(number, objective, measures)
        assert start == expected
        assert start.elites == expected.elites


@given(st.lists(measured, min_size=1))
def test_the_first_of_the_best_stays(rows: list[Row]) -> None:
    archive = added(rows)
    cells = [GRID.cells_of(list(arrays([row])[1].T)).item() for row in rows]
    assert {elite.cell for elite in archive.elites} == set(cells)
    for elite in archive.elites:
        inside = [
            row[0] or 0.0 for row, cell in zip(rows, cells, strict=True) if cell == elite.cell
        ]
        assert elite.objective == max(inside)
        among = [i for i, cell in enumerate(cells) if cell == elite.cell]
        assert elite.item == among[inside.index(max(inside))]
        assert elite.measures == rows[elite.item][1]


@given(st.lists(st.tuples(places, places)), st.randoms(use_true_random=False))
def test_without_ties_the_order_does_not_matter(measures: list[Any], coin: Any) -> None:
    objectives = list(range(len(measures)))
    coin.shuffle(objectives)
    items = list(zip(objectives, measures, strict=True))
    one, other = Archive[int](GRID), Archive[int](GRID)
    for objective, each in items:
        one.add(objective, objective, each)
    coin.shuffle(items)
    for objective, each in items:
        other.add(objective, objective, each)
    assert one == other
    assert one.elites == other.elites


@given(rows)
def test_an_elite_never_gets_worse_and_the_status_says_what_happened(rows: list[Row]) -> None:
    archive = Archive[int](GRID)
    for item, (objective, measures) in enumerate(rows):
        before, unplaced = dict(archive.by_cell), sum(archive.unplaced.values())
        status = archive.add(item, objective, measures)
        new = archive.by_cell.keys() - before.keys()
        better = [c for c, e in before.items() if archive.by_cell[c].objective > e.objective]
        same = [c for c, e in before.items() if archive.by_cell[c] is e]
        assert len(same) + len(better) == len(before)
        counted = sum(archive.unplaced.values()) - unplaced
        expected: dict[Status, tuple[int, int, int]] = {
            "new": (1, 0, 0),
            "improved": (0, 1, 0),
            "not_added": (0, 0, 0),
            "unplaced": (0, 0, 1),
        }
        assert (len(new), len(better), counted) == expected[status]


@given(st.lists(measured, min_size=1), st.integers(1, 9))
def test_a_re_fold_can_have_other_bins(rows: list[Row], bins: int) -> None:
    """Cells of one measure that are halves of others: whole elites are the best of the halves."""
    columns = arrays(rows)[1].T
    fitted = Grid(
        [Axis.fitted("p99", columns[0], bins, "quantiles"), Axis.fitted("rss", columns[1], bins)]
    )
    assert refolded(rows, fitted) == added(rows, fitted)
    whole = Grid([Axis("p99", (0, 2, 4)), Axis("rss", (1, 7))])
    best: dict[int, Elite[int]] = {}
    for elite in sorted(refolded(rows).elites, key=lambda elite: elite.item):
        cell = elite.cell // 4
        if cell not in best or elite.objective > best[cell].objective:
            best[cell] = elite
    found = refolded(rows, whole).by_cell
    assert {c: e.item for c, e in found.items()} == {c: e.item for c, e in best.items()}


# ---- what is not measured ----


def test_what_is_not_measured_is_counted_and_not_placed() -> None:
    rows: list[Row] = [
        (1.0, (0.5, 1.5)),
        (math.inf, (0.5, 1.5)),
        (-math.inf, (3.5, 5.0)),
        (None, (3.5, 5.0)),
        (math.nan, (None, math.inf)),
        (9.0, (None, math.inf)),
        (9.0, (0.5, math.nan)),
        (9.0, (0.5, -math.inf)),
    ]
    for archive in (added(rows), refolded(rows)):
        assert [elite.item for elite in archive.elites] == [0]
        assert archive.unplaced == {
            "infinite objective": 2,
            "no objective": 2,
            "no measure p99": 1,
            "no measure rss": 1,
            "infinite measure rss": 1,
        }


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 2 measures \(p99, rss\), found 1"):
        Archive[str](GRID).add("a", 1.0, [0.5])
    for objectives, measures in (([1.0], [[1.0]]), ([1.0, 2.0], [[1.0, 2.0]]), (1.0, [[1.0, 2.0]])):
        with pytest.raises(ValueError, match=r"\(n,\) and \(n, 2\) go together"):
            refold(GRID, objectives, measures)


def test_coverage_and_qd_score() -> None:
    archive = added([(3.0, (0.5, 1.5)), (1.0, (0.5, 5.0)), (2.0, (0.5, 5.5))])
    assert len(archive) == 2
    assert archive.coverage == 2 / 8
    assert archive.qd_score() == 5.0
    assert archive.qd_score(offset=-1.0) == 7.0
    assert Archive[int](GRID).qd_score(-1.0) == 0.0


# ---- pyribs as the oracle ----


@pytest.fixture(scope="module")
def grid_archive() -> Any:
    """Its class, with an epsilon that only what is on an edge is helped by.

    pyribs adds 1e-6 of a bin before it rounds down, so of a million values some that are just below
    an edge are put above it; here it is 1e-9, still far above the error of its arithmetic.
    """
    reason = "needs pyribs (pip install 'ribs>=0.7')"
    archives: Any = pytest.importorskip("ribs.archives", reason=reason)
    return lambda grid, offset=0.0: archives.GridArchive(
        solution_dim=1,
        dims=grid.shape,
        ranges=[(axis.edges[0], axis.edges[-1]) for axis in grid.axes],
        epsilon=1e-9,
        qd_score_offset=offset,
    )


SHAPES = [(7,), (12, 5), (6, 9, 4)]


def stream(shape: tuple[int, ...], count: int, seed: int) -> tuple[Grid, Any, Any]:
    """Objectives with many ties, and measures of which a third are on edges and some outside."""
    random = np.random.default_rng(seed)
    axes = []
    for number, bins in enumerate(shape):
        low = float(random.normal())
        axes.append(Axis.linear(f"m{number}", low, low + float(random.uniform(0.1, 9)), bins))
    columns = []
    for axis in axes:
        low, high = axis.edges[0], axis.edges[-1]
        anywhere = random.uniform(low - 0.1 * (high - low), high + 0.1 * (high - low), count)
        on_edges = random.choice(axis.edges, count)
        columns.append(np.where(random.random(count) < 1 / 3, on_edges, anywhere))
    # Sixty-fourths add up without an error, so that scores can be compared to the last bit.
    objectives = random.integers(-200, 200, count) / 64
    return Grid(axes), objectives, np.column_stack(columns)


def elites_of(theirs: Any) -> dict[int, tuple[int, float]]:
    data = theirs.data(["index", "solution", "objective"])
    rows = zip(data["index"], data["solution"][:, 0], data["objective"], strict=True)
    return {int(cell): (int(item), float(objective)) for cell, item, objective in rows}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_one_by_one_as_pyribs(grid_archive: Any, shape: tuple[int, ...], seed: int) -> None:
    """The tie rule of `add_single`: strictly better replaces, so the earlier one stays, as here.
    Each status is the same too.
    """
    grid, objectives, measures = stream(shape, 600, seed)
    ours, theirs = Archive[int](grid), grid_archive(grid, -4.0)
    names: list[Status] = ["not_added", "improved", "new"]
    seen = set()
    for item, (objective, row) in enumerate(zip(objectives, measures, strict=True)):
        status = ours.add(item, objective, row)
        assert status == names[int(theirs.add_single([item], objective, row)["status"])]
        seen.add(status)
    assert seen == set(names)
    assert {e.cell: (e.item, e.objective) for e in ours.elites} == elites_of(theirs)
    assert ours.qd_score(-4.0) == theirs.stats.qd_score
    assert ours.coverage == theirs.stats.coverage


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("count", "batch"),
    [(30_000, 1_000), pytest.param(1_000_000, 1_000_000, marks=pytest.mark.slow)],
)
def test_all_at_once_as_pyribs(
    grid_archive: Any, shape: tuple[int, ...], count: int, batch: int
) -> None:
    """The tie rule of `add`: the first in a batch, and the elite that is there before the batch. So
    however a stream is cut into batches, what comes first in it stays, as here.
    """
    grid, objectives, measures = stream(shape, count, count)
    found, theirs = refold(grid, objectives, measures), grid_archive(grid, -4.0)
    items = np.arange(count, dtype=float)[:, np.newaxis]
    for start in range(0, count, batch):
        some = slice(start, start + batch)
        theirs.add(items[some], objectives[some], measures[some])
    ours = zip(found.items.tolist(), found.objectives.tolist(), strict=True)
    assert dict(zip(found.cells.tolist(), ours, strict=True)) == elites_of(theirs)
    assert found.qd_score(-4.0) == theirs.stats.qd_score
    assert found.coverage == theirs.stats.coverage
    best = dict(zip(found.cells.tolist(), found.objectives.tolist(), strict=True))
    cells = grid.cells_of(list(measures.T)).tolist()
    tied = sum(best[cell] == value for cell, value in zip(cells, objectives.tolist(), strict=True))
    assert tied > len(best)


def test_pyribs_refuses_what_is_not_placed_here(grid_archive: Any) -> None:
    grid = Grid([Axis.linear("m", 0, 1, 3)])
    for value in (math.nan, math.inf, -math.inf):
        for objective, measure in ((value, 0.5), (0.5, value)):
            with pytest.raises(ValueError, match="finite"):
                grid_archive(grid).add_single([0], objective, [measure])
            assert Archive[int](grid).add(0, objective, [measure]) == "unplaced"


# ---- from events ----


def effect(metric: str, value: float | None, workload: str = "mixed") -> Effect:
    return make(Effect, metric=metric, workload=workload, effect=value)


VERDICT = make(
    VerdictReached,
    kind="keep",
    effects=(
        effect("p99", 0.25),
        effect("rss", 9.0, "guard"),
        effect("rss", -0.5),
        effect("p99", 0.0, "guard"),
        effect("cpu", 1.0),
        effect("io", None),
    ),
)
EFFECTS = Grid([Axis.linear("rss", -1, 1, 8), Axis.linear("cpu", 0, 2, 2)])


def test_a_verdict_is_placed_by_its_effects() -> None:
    archive = Archive[str](EFFECTS)
    scoring = Scoring(workload="mixed", weights={"p99": 3.0, "rss": -1.0, "io": 0.0})
    assert archive_step(archive, "exp-0001", VERDICT, scoring) == "new"
    cell = 2 * 2 + 1
    objective = (3 * 0.25 + 1 * 0.5) / 4
    assert archive.elites == (Elite("exp-0001", objective, (-0.5, 1.0), cell),)
    assert archive_step(archive, "exp-0002", VERDICT, scoring) == "not_added"


@pytest.mark.parametrize(
    ("change", "weights", "reason"),
    [
        ({"kind": "invalid"}, {"p99": 1.0}, "invalid"),
        ({"effects": ()}, {"p99": 1.0}, "no objective"),
        ({}, {"p99": 1.0, "io": 1.0}, "no objective"),
        ({}, {"p99": 1.0, "latency": 1.0}, "no objective"),
        ({"effects": VERDICT.effects[:3]}, {"p99": 1.0}, "no measure cpu"),
    ],
)
def test_a_verdict_without_what_is_needed_is_not_placed(
    change: dict[str, Any], weights: dict[str, float], reason: str
) -> None:
    archive = Archive[str](EFFECTS)
    verdict = evolve(VERDICT, **change)
    scoring = Scoring(workload="mixed", weights=weights)
    assert archive_step(archive, "exp-0001", verdict, scoring) == "unplaced"
    assert archive.unplaced == {reason: 1}
    assert not archive.elites


@pytest.mark.parametrize("weights", [{}, {"p99": 0.0}, {"p99": math.nan}, {"p99": math.inf}])
def test_weights_that_weigh_nothing_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"weights: .*at least one of them other than 0"):
        Scoring(workload="mixed", weights=weights)


# ---- curiosity and differences ----


def test_curiosity_rises_by_one_and_falls_by_half() -> None:
    children = [("a", True), ("b", False), ("a", False), ("b", True), ("b", True), ("c", False)]
    assert curiosity(children) == {"a": 0.5, "b": 2.0, "c": 0.0}
    assert curiosity([("a", False), ("a", False), ("a", True)]) == {"a": 1.0}
    assert curiosity([]) == {}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_curiosity_is_bounded_and_of_each_parent_alone(children: list[tuple[str, bool]]) -> None:
    scores = curiosity(children)
    for parent, score in scores.items():
        own = [child for child in children if child[0] == parent]
        assert 0 <= score <= sum(added for _, added in own)
        assert curiosity(own) == {parent: score}


def test_other_objectives_change_elites() -> None:
    """The same cells: by item, the elite before and after."""
    measures = [(0.5, 1.5), (0.6, 1.5), (1.5, 1.5), (2.5, 5.0)]
    before = added(list(zip([1.0, 2.0, 3.0, None], measures, strict=True)))
    after = added(list(zip([5.0, 2.0, 3.0, 1.0], measures, strict=True)))
    found = difference(before, after)
    first, second = found.cells
    assert (first.cell, first.before, first.after) == (0, before.by_cell[0], after.by_cell[0])
    assert first.before is not None
    assert (first.before.item, second.before, second.cell) == (1, None, 5)
    assert (found.entered, found.left) == ((0, 3), (1,))
    back = difference(after, before)
    assert back.cells[1] == CellChange(5, after.by_cell[5], None)
    assert (back.entered, back.left) == ((1,), (0, 3))


@given(rows, rows)
def test_nothing_differs_from_itself(rows: list[Row], others: list[Row]) -> None:
    assert difference(added(rows), refolded(rows)) == Difference((), (), ())
    one, other = added(rows), added(others)
    found = difference(one, other)
    assert {c.after for c in found.cells if c.after is not None} <= {*other.elites}
    assert [c.before for c in difference(other, one).cells] == [c.after for c in found.cells]


def test_other_edges_change_cells() -> None:
    rows: list[Row] = [(1.0, (0.5, 1.5)), (2.0, (1.5, 1.5)), (3.0, (2.5, 1.5)), (0.5, (2.7, 1.5))]
    before = added(rows)
    coarse = added(rows, Grid([Axis("p99", (0, 2, 4)), Axis("rss", (1, 7))]))
    found = difference(before, coarse)
    assert found == Difference((), (), (0,))
    fine = added(rows, Grid([Axis("p99", (0, 2, 2.6, 4)), Axis("rss", (1, 7))]))
    found = difference(before, fine)
    (change,) = found.cells
    assert (change.cell, change.before) == (2, None)
    assert change.after is not None
    assert (change.after.item, found.entered, found.left) == (3, (3,), (0,))


def test_archives_over_other_measures_are_not_compared() -> None:
    other = Archive[int](Grid([Axis("p99", (0, 4)), Axis("cpu", (1, 7))]))
    with pytest.raises(ValueError, match="same measures, found p99, rss and p99, cpu"):
        difference(Archive[int](GRID), other)
