"""MAP-Elites: a grid of cells over measures, and in each cell its elite, the best item seen there.

The words are those of pyribs. An archive is a fold of a log like any other: `Archive.add` takes one
item after the other, `refold` all of them at once, and both end with the same elites.

What holds everywhere:

- More is better. Where two items of a cell have the same objective, the earlier one in log order
  stays.
- A value on an edge belongs to the upper of two bins, and one outside to the first or last bin of
  its axis (see `aiopt.grid`).
- What was not measured is never placed: an objective or a measure that is None, NaN or infinite.
  So a failed candidate can neither outrank a measured one nor fill a cell that nothing else has
  reached. It is counted, with the reason.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from attrs import Factory, define, field, frozen
from numpy.typing import ArrayLike

from aiopt.errors import ConfigError
from aiopt.events import VerdictReached
from aiopt.grid import Floats, Grid, Indices

__all__ = [
    "Archive",
    "CellChange",
    "Difference",
    "Elite",
    "Refolded",
    "Scoring",
    "Status",
    "archive_step",
    "curiosity",
    "difference",
    "refold",
]

Status = Literal["new", "improved", "not_added", "unplaced"]
"""What became of an item: first of its cell, better than its
elite, not better, or not measured."""

Item = TypeVar("Item", bound=Hashable)

_BLOCK = 16_384
"""Items that are refolded at a time: what is computed of them stays in the processor's cache."""


# ---- the archive, item by item ----


@frozen
class Elite(Generic[Item]):
    """The best item of a cell, and what it was placed by."""

    item: Item
    objective: float
    measures: tuple[float, ...]
    cell: int


@define
class Archive(Generic[Item]):
    """The elites of a grid. It is updated in place by the fold that owns it."""

    grid: Grid
    by_cell: dict[int, Elite[Item]] = Factory(dict)
    """In the order in which cells were reached, or of their numbers after a re-fold: what depends
    on an order takes `elites`.
    """
    unplaced: dict[str, int] = Factory(dict)
    """How many items could not be placed, by reason."""
    _names: tuple[str, ...] = field(init=False, eq=False, repr=False)
    _bins: tuple[tuple[int, tuple[float, ...]], ...] = field(init=False, eq=False, repr=False)
    """Of each axis how many there are, and their inner edges: what `add` needs, at hand."""

    def __attrs_post_init__(self) -> None:
        self._names = self.grid.names
        self._bins = tuple((axis.bins, axis.edges[1:-1]) for axis in self.grid.axes)

    @classmethod
    def refolded(
        cls, grid: Grid, items: Sequence[Item], objectives: ArrayLike, measures: ArrayLike
    ) -> "Archive[Item]":
        """What adding all of them in order would give; see `refold`. It can be added to."""
        return refold(grid, objectives, measures).archive(items, measures)

    def add(self, item: Item, objective: float | None, measures: Sequence[float | None]) -> Status:
        """Place the next item in log order if its cell has no elite, or one that is worse.

        Raises:
            ValueError: not one measure for each axis.
        """
        if len(measures) != len(self._bins):
            raise ValueError(_expected(self.grid, len(measures)))
        if objective is None or not isfinite(objective):
            return self.leave_out(_reason("objective", objective))
        cell = 0
        for axis, value in enumerate(measures):  # half of what zip with strict costs
            if value is None or not isfinite(value):
                return self.leave_out(_reason(f"measure {self._names[axis]}", value))
            bins, inner = self._bins[axis]
            cell = cell * bins + bisect_right(inner, value)
        elite = self.by_cell.get(cell)
        if elite is not None and objective <= elite.objective:
            return "not_added"
        self.by_cell[cell] = Elite(item, objective, tuple(measures), cell)  # type: ignore[arg-type]
        return "new" if elite is None else "improved"

    def leave_out(self, reason: str) -> Status:
        """Count an item that cannot be placed, for a reason of the caller's."""
        self.unplaced[reason] = self.unplaced.get(reason, 0) + 1
        return "unplaced"

    def __len__(self) -> int:
        return len(self.by_cell)

    @property
    def elites(self) -> tuple[Elite[Item], ...]:
        """By number of cell, so in an order that does not depend on how the archive was made."""
        return tuple(elite for _, elite in sorted(self.by_cell.items()))

    @property
    def coverage(self) -> float:
        """Share of the cells that have an elite."""
        return len(self.by_cell) / self.grid.cells

    def qd_score(self, offset: float = 0.0) -> float:
        """Sum of the elites' objectives, each above `offset`, which is to be the least possible
        objective: with a higher one, reaching a cell can lower the score.
        """
        total = math.fsum(elite.objective for elite in self.by_cell.values())
        return total - offset * len(self.by_cell)


def _reason(what: str, value: float | None) -> str:
    return f"no {what}" if value is None or math.isnan(value) else f"infinite {what}"


def _expected(grid: Grid, found: object) -> str:
    return f"expected {len(grid.axes)} measures ({', '.join(grid.names)}), found {found}"


# ---- all items at once ----


@frozen(eq=False, kw_only=True)
class Refolded:
    """The elites among many items, by their indices."""

    grid: Grid
    cells: Indices
    """Those that have an elite, ascending."""
    items: Indices
    """The index of each cell's elite."""
    objectives: Floats
    """The objective of each cell's elite."""
    unplaced: Mapping[str, int]
    """As of `Archive`."""

    @property
    def coverage(self) -> float:
        """As of `Archive`."""
        return len(self.cells) / self.grid.cells

    def qd_score(self, offset: float = 0.0) -> float:
        """As of `Archive`."""
        return math.fsum(self.objectives) - offset * len(self.cells)

    def archive(self, items: Sequence[Item], measures: ArrayLike) -> Archive[Item]:
        """The same with the items themselves; `measures` are those that were refolded."""
        rows = np.asarray(measures, dtype=np.float64)[self.items].tolist()
        found = Archive[Item](self.grid, unplaced=dict(self.unplaced))
        columns = (self.cells.tolist(), self.items.tolist(), self.objectives.tolist(), rows)
        for cell, index, objective, row in zip(*columns, strict=True):
            found.by_cell[cell] = Elite(items[index], objective, tuple(row), cell)
        return found


def refold(grid: Grid, objectives: ArrayLike, measures: ArrayLike) -> Refolded:
    """The elites that adding all items in order would leave.

    `objectives` has the shape (n,), `measures` (n, axes), NaN where something is missing. Besides
    them the memory is that of the grid's cells, whatever n is.

    Raises:
        ValueError: other shapes.
    """
    values = np.asarray(objectives, dtype=np.float64)
    rows = np.asarray(measures, dtype=np.float64)
    if values.ndim != 1 or rows.shape != (len(values), len(grid.axes)):
        shapes = f"objectives of the shape {values.shape} with measures of {rows.shape}"
        raise ValueError(f"{_expected(grid, shapes)}: (n,) and (n, {len(grid.axes)}) go together")
    best = np.full(grid.cells, -np.inf)
    first = np.full(grid.cells, len(values), dtype=np.intp)
    unplaced: Counter[str] = Counter()
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        columns = np.ascontiguousarray(rows[start : start + _BLOCK].T)
        finite = np.isfinite(block) & np.isfinite(columns).all(axis=0)
        places: Any = slice(None)
        if not finite.all():
            unplaced += _reasons(grid, block, columns)
            places = np.flatnonzero(finite)
            block, columns = block[places], columns[:, places]
        cells = grid.cells_of(list(columns))
        # After the first blocks few are better than what is there, so what follows is cheap.
        better = np.flatnonzero(block > best[cells])
        cells, block = cells[better], block[better]
        np.maximum.at(best, cells, block)
        elites = block == best[cells]
        cells, better = cells[elites], better[elites]
        first[cells] = len(values)
        places = better if isinstance(places, slice) else places[better]
        np.minimum.at(first, cells, places + start)
    found = np.flatnonzero(first < len(values))
    return Refolded(
        grid=grid,
        cells=found,
        items=first[found],
        objectives=best[found],
        unplaced=dict(unplaced),
    )


def _reasons(grid: Grid, objectives: Floats, measures: Floats) -> Counter[str]:
    """Why items cannot be placed: the first of their problems, as `Archive.add` finds it."""
    found: Counter[str] = Counter()
    left = np.ones(len(objectives), dtype=np.bool_)
    names = ("objective", *(f"measure {name}" for name in grid.names))
    for name, values in zip(names, (objectives, *measures), strict=True):
        missing, infinite = np.isnan(values) & left, np.isinf(values) & left
        for value, which in ((math.nan, missing), (math.inf, infinite)):
            if count := int(which.sum()):
                found[_reason(name, value)] += count
        left &= ~(missing | infinite)
    return found


# ---- from events ----


@frozen(kw_only=True)
class Scoring:
    """What of a verdict's effects is the objective: their weighted mean under one workload."""

    workload: str
    weights: Mapping[str, float]
    """Metric to weight, as of a fitness; normalised here."""
    _parts: tuple[tuple[str, float], ...] = field(init=False, eq=False, repr=False)
    """Metrics that have a weight, the weights adding up to 1."""

    def __attrs_post_init__(self) -> None:
        total = sum(abs(weight) for weight in self.weights.values())
        if not 0 < total < math.inf:
            problem = f"{dict(self.weights)}: finite numbers, at least one of them other than 0"
            raise ConfigError("scoring", [("weights", problem)])
        parts = tuple((name, weight / total) for name, weight in self.weights.items() if weight)
        object.__setattr__(self, "_parts", parts)


def archive_step(
    archive: Archive[Item], item: Item, verdict: VerdictReached, scoring: Scoring
) -> Status:
    """Place an item by its verdict; an axis is named as the metric whose effect is the measure.

    Effects are log cost ratios against the incumbent of the experiment, so they compare items that
    had the same one; where it has changed, add up the steps and use `Archive.add`. An invalid
    candidate is not placed, whatever was measured of it, nor is one without one of the metrics:
    elsewhere weights are renormalised, but a cell must not compare unlike objectives.
    """
    if verdict.kind == "invalid":
        return archive.leave_out("invalid")
    workload = scoring.workload
    effects = {e.metric: e.effect for e in verdict.effects if e.workload == workload}
    objective = 0.0
    for metric, weight in scoring._parts:
        effect = effects.get(metric)
        if effect is None:
            return archive.leave_out(_reason("objective", None))
        objective += weight * effect
    return archive.add(item, objective, [*map(effects.get, archive._names)])


# ---- what a search makes of it ----


def curiosity(offspring: Iterable[tuple[Item, bool]]) -> dict[Item, float]:
    """How promising items are as parents, from (parent, whether its child was added) in log order.

    A child that was added raises its parent's score by 1, any other lowers it by 0.5, never below
    0 (Cully and Demiris 2018, "Quality and diversity optimization: a unifying modular framework").
    An item that has no child yet is not in it: its score is 0.
    """
    scores: dict[Item, float] = {}
    for parent, added in offspring:
        scores[parent] = max(0.0, scores.get(parent, 0.0) + (1.0 if added else -0.5))
    return scores


@frozen
class CellChange(Generic[Item]):
    """A cell whose elite is another one, or that had none, or has none any more."""

    cell: int
    """Where it is, in the grid of the archive after."""
    before: Elite[Item] | None
    after: Elite[Item] | None


@frozen
class Difference(Generic[Item]):
    """What another fold of the same items, by other weights or over other edges, changes."""

    cells: tuple[CellChange[Item], ...]
    entered: tuple[Item, ...]
    """Items that are elites only now, by number of cell."""
    left: tuple[Item, ...]
    """Items that were elites and are none any more."""


def difference(before: Archive[Item], after: Archive[Item]) -> Difference[Item]:
    """The cells of `after` that have another elite than before.

    Where the edges are others, the elites from before are first placed in the grid of `after`, by
    their own measures and objectives; one that loses its cell there to another of them is in
    `left`, if that is so in `after` too.

    Raises:
        ValueError: the archives are not over the same measures.
    """
    if before.grid.names != after.grid.names:
        names = " and ".join(", ".join(each.grid.names) for each in (before, after))
        raise ValueError(f"expected archives over the same measures, found {names}")
    old = before.by_cell
    if before.grid != after.grid:
        placed = Archive[Item](after.grid)
        for elite in before.elites:
            placed.add(elite.item, elite.objective, elite.measures)
        old = placed.by_cell
    changes = []
    for cell in sorted(old.keys() | after.by_cell.keys()):
        was, is_now = old.get(cell), after.by_cell.get(cell)
        if was is None or is_now is None or was.item != is_now.item:
            changes.append(CellChange(cell, was, is_now))
    items = {elite.item for elite in before.elites}, {elite.item for elite in after.elites}
    return Difference(
        cells=tuple(changes),
        entered=tuple(elite.item for elite in after.elites if elite.item not in items[0]),
        left=tuple(elite.item for elite in before.elites if elite.item not in items[1]),
    )
