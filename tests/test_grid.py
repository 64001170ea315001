"""Axes, their edges, and the cells that they make."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt.errors import ConfigError
from aiopt.grid import Axis, Grid, Spacing

finite = st.floats(allow_nan=False, allow_infinity=False)
ordinary = st.floats(-1e6, 1e6)


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    """Even ones, logarithmic ones, and any other."""
    bins = draw(st.integers(1, 60))
    low = draw(ordinary)
    kind = draw(st.sampled_from(["linear", "log", "any"]))
    if kind == "linear":
        return Axis.linear("m", low, low + draw(st.floats(1e-3, 1e6)), bins)
    if kind == "log":
        least = draw(st.floats(1e-6, 1e6))
        return Axis.log("m", least, least * draw(st.floats(1.01, 1e6)), bins)
    edges = draw(st.lists(finite, min_size=2, max_size=12, unique=True))
    return Axis("m", tuple(sorted(edges)))


@given(axes(), st.lists(finite, max_size=20))
def test_a_bin_holds_its_lower_edge(axis: Axis, values: list[float]) -> None:
    """Found by arithmetic, by a search, and one by one, to the last bit."""
    around = [math.nextafter(edge, side) for edge in axis.edges for side in (-9e999, 9e999)]
    asked = [value for value in (*values, *axis.edges, *around) if math.isfinite(value)]
    found = [axis.bin_of(value) for value in asked]
    assert axis.bins_of(np.array(asked)).tolist() == found
    for value, index in zip(asked, found, strict=True):
        assert 0 <= index < axis.bins
        assert axis.edges[index] <= value or index == 0
        assert value < axis.edges[index + 1] or index == axis.bins - 1


def test_edges() -> None:
    assert Axis.linear("m", -1, 1, 4).edges == (-1.0, -0.5, 0.0, 0.5, 1.0)
    assert Axis.log("m", 1, 1000, 3).edges == pytest.approx((1, 10, 100, 1000))
    assert Axis("m", (0, 1)).bins == 1


def test_an_axis_so_long_that_its_length_is_no_float_still_has_bins() -> None:
    axis = Axis("m", (-1.5e308, 0.0, 1.5e308))
    assert axis.bins_of(np.array([-1.0, 0.0, 1.7e308])).tolist() == [0, 1, 1]
    tiny = Axis("m", (0.0, 5e-324, 1e-323))
    assert tiny.bins_of(np.array([0.0, 5e-324, 1.0])).tolist() == [0, 1, 1]


@given(st.lists(ordinary, min_size=1, max_size=40), st.integers(1, 12))
def test_fitted_edges_enclose_the_values(values: list[float], bins: int) -> None:
    spacings: list[Spacing] = ["linear", "quantiles"]
    for spacing in spacings:
        axis = Axis.fitted("m", [*values, None, math.nan, math.inf], bins, spacing)
        assert axis.edges[0] <= min(values)
        assert max(values) <= axis.edges[-1] or axis.bins == 1
        assert axis.bins <= bins
    least = min(values)
    above = [value - least + 1 for value in values]
    axis = Axis.fitted("m", above, bins, "log")
    assert axis.edges[0] == pytest.approx(1.0)
    assert axis.edges[-1] == pytest.approx(max(above))


def test_quantiles_spread_the_values() -> None:
    values = np.random.default_rng(5).lognormal(size=1000)
    axis = Axis.fitted("m", values, 8, "quantiles")
    assert np.bincount(axis.bins_of(values)).tolist() == [125] * 8
    assert Axis.fitted("m", [1, 1, 1, 2], 4, "quantiles").edges == (1.0, 1.25, 2.0)


@pytest.mark.parametrize("value", [0.0, -3.0, 1.7976931348623157e308, 5e-324])
def test_a_measure_that_does_not_vary_makes_one_bin(value: float) -> None:
    axis = Axis.fitted("m", [value, value], 10)
    assert axis.bins == 1
    assert value in axis.edges


@pytest.mark.parametrize(
    ("make", "problems"),
    [
        (lambda: Axis("m", ()), {"edges": "0: at least 2"}),
        (lambda: Axis("m", (1.0,)), {"edges": "1: at least 2"}),
        (lambda: Axis("m", (0.0, 2.0, 2.0)), {"edges": "2.0, 2.0: not ascending"}),
        (lambda: Axis("m", (0.0, math.inf)), {"edges": "inf: not finite"}),
        (lambda: Axis.linear("m", 1, 1, 0), {"bins": "0: from 1", "high": "1: above low = 1"}),
        (
            lambda: Axis.linear("m", -math.inf, math.nan, 3),
            {"low": "-inf: not finite", "high": "nan: not finite"},
        ),
        (lambda: Axis.linear("m", -1.7e308, 1.7e308, 3), {"edges": "not finite"}),
        (lambda: Axis.linear("m", 1, math.nextafter(1, 2), 3), {"edges": "not ascending"}),
        (
            lambda: Axis.log("m", 0, -1, 0),
            {"bins": "0: from 1", "low": "0: above 0", "high": "-1: above low"},
        ),
        (lambda: Axis.fitted("m", [None, math.nan], 0), {"bins": "0: ", "values": "none that"}),
        (lambda: Axis.fitted("m", [0.0, 1.0], 2, "log"), {"values": "0: above 0"}),
        (lambda: Grid([]), {"axes": "none: at least one measure"}),
        (lambda: Grid([Axis("m", (0, 1)), Axis("m", (0, 2))]), {"axes.m": "there are several"}),
        (
            lambda: Grid([Axis.linear(name, 0, 1, 1000) for name in "abc"]),
            {"axes": "1,000,000,000 cells: at most 10,000,000"},
        ),
    ],
)
def test_what_makes_no_bins_is_refused(make: object, problems: dict[str, str]) -> None:
    assert callable(make)
    with pytest.raises(ConfigError) as caught:
        make()
    for path, problem in problems.items():
        assert any(where == path and problem in said for where, said in caught.value.problems)
    assert {where for where, _ in caught.value.problems} == set(problems)


def test_cells_are_numbered_with_the_last_axis_fastest() -> None:
    grid = Grid([Axis("a", (0, 1, 2)), Axis("b", (0, 1, 2, 3)), Axis("c", (0.0, 0.5, 2.0))])
    assert (grid.shape, grid.cells, grid.names) == ((2, 3, 2), 12, ("a", "b", "c"))
    measures = np.array([[0.5, 1.5], [2.5, 0.5], [0.5, 0.1]])
    cells = grid.cells_of(list(measures)).tolist()
    assert cells == [0 + 2 * 2 + 1, 6 + 0 + 0]
    assert [grid.bins_at(cell) for cell in cells] == [(0, 2, 1), (1, 0, 0)]
    assert grid.edges_at(cells[0]) == ((0, 1), (2, 3), (0.5, 2))
