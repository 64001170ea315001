"""The cells that MAP-Elites divides its measures into: axes with bins, and a grid of them.

A bin holds its lower edge, and the last one its upper edge too. A value outside is in the first or
the last bin of its axis.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from aiopt.errors import ConfigError

__all__ = ["Axis", "Floats", "Grid", "Indices", "Spacing"]

Spacing = Literal["linear", "log", "quantiles"]
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_MOST_CELLS = 10_000_000
"""More of them than any log has items: no elite would ever have a rival."""
_EVEN = 0.01
"""Edges that are off by less than this share of a bin are evenly spaced."""


def _as_edges(edges: Iterable[float]) -> tuple[float, ...]:
    return tuple(map(float, edges))


@frozen
class Axis:
    """One measure, cut into bins.

    Raises:
        ConfigError: fewer than two edges, edges that are not finite, or that do not ascend.
    """

    name: str
    edges: tuple[float, ...] = field(converter=_as_edges)
    """Of the bins, ascending: one more than there are bins."""
    _inner: tuple[float, ...] = field(init=False, eq=False, repr=False)
    _even: "_Even | None" = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        problems = []
        if len(self.edges) < 2:
            problems.append(("edges", f"{len(self.edges)}: at least 2, for one bin"))
        if infinite := [edge for edge in self.edges if not math.isfinite(edge)]:
            problems.append(("edges", f"{infinite[0]}: not finite"))
        falling = [(a, b) for a, b in zip(self.edges, self.edges[1:], strict=False) if a >= b]
        if falling:
            problems.append(("edges", "{!r}, {!r}: not ascending".format(*falling[0])))
        _check(self.name, problems)
        object.__setattr__(self, "_inner", self.edges[1:-1])
        object.__setattr__(self, "_even", _Even.of(self.edges))

    @classmethod
    def linear(cls, name: str, low: float, high: float, bins: int) -> "Axis":
        """Bins of equal width from `low` to `high`. Raises ConfigError."""
        _check(name, _range_problems(low, high, bins))
        with np.errstate(all="ignore"):
            return cls(name, np.linspace(low, high, bins + 1).tolist())

    @classmethod
    def log(cls, name: str, low: float, high: float, bins: int) -> "Axis":
        """Bins of equal ratio from `low`, above zero, to `high`. Raises ConfigError."""
        problems = _range_problems(low, high, bins)
        if low <= 0:
            problems.append(("low", f"{low:g}: above 0 where bins are logarithmic"))
        _check(name, problems)
        return cls(name, np.geomspace(low, high, bins + 1).tolist())

    @classmethod
    def fitted(
        cls,
        name: str,
        values: Iterable[float | None],
        bins: int,
        spacing: Spacing = "linear",
    ) -> "Axis":
        """Edges from the values of a fold, so that a re-fold can have bins that fit them.

        From the smallest to the largest value, or at their quantiles. What is not measured (None,
        NaN, infinite) does not count. There may be fewer bins than asked for, where quantiles
        coincide, and one where all values are the same.

        Raises:
            ConfigError: no values, none or too few bins, or logarithms of what is not above 0.
        """
        found = _floats(values)
        found = found[np.isfinite(found)]
        problems = _bins_problems(bins)
        if not found.size:
            problems.append(("values", "none that is finite: nothing to fit the edges to"))
        elif spacing == "log" and (least := float(found.min())) <= 0:
            problems.append(("values", f"{least:g}: above 0 where bins are logarithmic"))
        _check(name, problems)
        low, high = float(found.min()), float(found.max())
        if low == high:
            # Any bin would do, as what is outside is clipped; one float wide is right everywhere.
            return cls(name, sorted((low, math.nextafter(low, 0.0 if low else 1.0))))
        with np.errstate(all="ignore"):
            if spacing == "linear":
                edges = np.linspace(low, high, bins + 1)
            elif spacing == "log":
                edges = np.geomspace(low, high, bins + 1)
            else:
                edges = np.quantile(found, np.linspace(0, 1, bins + 1))
        return cls(name, np.unique(edges).tolist())

    @property
    def bins(self) -> int:
        """How many there are."""
        return len(self.edges) - 1

    def bin_of(self, value: float) -> int:
        """The bin of a finite value, from 0."""
        return bisect_right(self._inner, value)

    def bins_of(self, values: Floats) -> Indices:
        """The bins of finite values, shape (n,)."""
        if self._even is not None:
            return self._even.bins_of(values)
        return np.searchsorted(self._inner, values, side="right")


@frozen
class _Even:
    """Bins of evenly spaced edges by arithmetic: a seventh of what a binary search costs.

    The arithmetic is never wrong by more than one bin, and is put right by the edges themselves.
    """

    low: float
    scale: float
    lower: Floats
    """Of each bin the least value, which is -inf for the first."""
    upper: Floats
    """The least value beyond, which is inf for the last."""

    @classmethod
    def of(cls, edges: Sequence[float]) -> "_Even | None":
        low, high, bins = edges[0], edges[-1], len(edges) - 1
        width = (high - low) / bins
        if not 0 < width < math.inf or not math.isfinite(1 / width):
            return None
        if any(abs(low + i * width - edge) > _EVEN * width for i, edge in enumerate(edges)):
            return None
        inner = edges[1:-1]
        return cls(low, 1 / width, np.array([-math.inf, *inner]), np.array([*inner, math.inf]))

    def bins_of(self, values: Floats) -> Indices:
        with np.errstate(over="ignore"):
            places = (values - self.low) * self.scale
        np.clip(places, 0, len(self.lower) - 1, out=places)
        found = places.astype(np.intp)
        found += values >= self.upper[found]
        found -= values < self.lower[found]
        return found


def _floats(values: Iterable[float | None]) -> Floats:
    """As an array, with NaN for None."""
    listed = values if isinstance(values, np.ndarray) else list(values)
    return np.asarray(listed, dtype=np.float64)


def _bins_problems(bins: int) -> list[tuple[str, str]]:
    if not 1 <= bins <= _MOST_CELLS:
        return [("bins", f"{bins}: from 1 to {_MOST_CELLS:,}")]
    return []


def _range_problems(low: float, high: float, bins: int) -> list[tuple[str, str]]:
    problems = _bins_problems(bins)
    for name, value in (("low", low), ("high", high)):
        if not math.isfinite(value):
            problems.append((name, f"{value}: not finite"))
    if low >= high:
        problems.append(("high", f"{high:g}: above low = {low:g}"))
    return problems


def _check(name: str, problems: Sequence[tuple[str, str]]) -> None:
    if problems:
        raise ConfigError(f"axis {name}", problems)


@frozen
class Grid:
    """The cells of an archive: every combination of the bins of its axes.

    A cell is known by its number, the last axis counting fastest, as `numpy.ravel_multi_index` has
    it; `bins_at` and `edges_at` say where it is.

    Raises:
        ConfigError: no axis, two of one name, or more than ten million cells.
    """

    axes: tuple[Axis, ...] = field(converter=tuple[Axis, ...])

    def __attrs_post_init__(self) -> None:
        problems = []
        if not self.axes:
            problems.append(("axes", "none: at least one measure"))
        names = [axis.name for axis in self.axes]
        problems += [(f"axes.{n}", "there are several") for n, c in Counter(names).items() if c > 1]
        if self.cells > _MOST_CELLS:
            problems.append(("axes", f"{self.cells:,} cells: at most {_MOST_CELLS:,}; fewer bins"))
        if problems:
            raise ConfigError("grid", problems)

    @property
    def shape(self) -> tuple[int, ...]:
        """Bins of each axis."""
        return tuple(axis.bins for axis in self.axes)

    @property
    def cells(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the measures."""
        return tuple(axis.name for axis in self.axes)

    def bins_at(self, cell: int) -> tuple[int, ...]:
        """The bin on each axis."""
        return tuple(int(index) for index in np.unravel_index(cell, self.shape))

    def edges_at(self, cell: int) -> tuple[tuple[float, float], ...]:
        """Lower and upper edge on each axis, in the unit of the measure."""
        bins = zip(self.axes, self.bins_at(cell), strict=True)
        return tuple((axis.edges[i], axis.edges[i + 1]) for axis, i in bins)

    def cells_of(self, measures: Sequence[Floats]) -> Indices:
        """The cells of finite measures: an array (n,) for each axis."""
        found, *more = (axis.bins_of(m) for axis, m in zip(self.axes, measures, strict=True))
        for axis, bins in zip(self.axes[1:], more, strict=True):
            found *= axis.bins
            found += bins
        return found
