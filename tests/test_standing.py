"""Who is ahead, and orders that follow from it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiopt.standing import Objective, Standing, best_first, tied_with
from aiopt.stats import Z95

errors = st.sampled_from([0.0, 0.005, 0.02, math.inf])
values = st.integers(-20, 20).map(lambda n: n / 100)


def objectives(count: int) -> st.SearchStrategy[tuple[Objective, ...]]:
    """Each with its own tolerance, the same for all candidates."""
    return st.tuples(
        *(
            st.builds(
                Objective, value=values, se=errors, step_se=errors, tolerance=st.just(level * 0.02)
            )
            for level in range(count)
        )
    )


def standings(count: int) -> st.SearchStrategy[list[Standing]]:
    one = st.builds(
        Standing, objectives=objectives(count), incumbent=st.sampled_from(["i", "j", "k"])
    )
    return st.lists(one, max_size=8)


def one(value: float, se: float = 0.0, *, tolerance: float = 0.0, incumbent: str = "i") -> Standing:
    number = Objective(value=value, se=2 * se, step_se=se, tolerance=tolerance)
    return Standing(objectives=(number,), incumbent=incumbent)


def of(*values: float, tolerance: float = 0.01) -> Standing:
    """Without errors."""
    return Standing(
        objectives=tuple(
            Objective(value=value, se=0.0, step_se=0.0, tolerance=tolerance) for value in values
        ),
        incumbent="i",
    )


@given(standings(2).filter(lambda found: len(found) > 1), st.sampled_from([0.0, 1.0, Z95]))
def test_of_two_at_most_one_is_ahead(found: list[Standing], z: float) -> None:
    """So ties are symmetric."""
    first, second = found[:2]
    assert not (first.is_ahead(second, z) and second.is_ahead(first, z))
    assert not first.is_ahead(first, z)


@given(st.integers(1, 3).flatmap(standings), st.booleans())
def test_an_order_has_everyone_once_and_does_not_depend_on_the_start(
    found: list[Standing], sure: bool
) -> None:
    order = best_first(found, sure=sure)
    assert sorted(order) == list(range(len(found)))
    backwards = [found[place] for place in order]
    again = best_first(backwards, sure=sure)
    assert [backwards[place] for place in again] == backwards


def test_one_number_is_ordered_by_what_is_sure_or_by_the_estimate() -> None:
    noisy, quiet = one(0.10, 0.05), one(0.08, 0.001)
    assert best_first([noisy, quiet]) == [1, 0]
    assert best_first([noisy, quiet], sure=False) == [0, 1]
    assert best_first([]) == []


def test_the_next_objective_decides_among_those_that_are_close_to_the_best() -> None:
    """Not among neighbours: the third is close to the second, and too far from the first."""
    found = [of(0.100, 0.0), of(0.092, 0.2), of(0.084, 0.9)]
    assert best_first(found) == [1, 0, 2]
    assert best_first([of(0.100, 0.0), of(0.08, 0.2)]) == [0, 1]
    assert best_first([of(0.1, 0.1, 0.1), of(0.1, 0.1, 0.2)]) == [1, 0]


def test_a_difference_within_error_and_tolerance_is_a_tie() -> None:
    assert one(0.03, 0.01).is_ahead(one(0.0, 0.01), Z95)
    assert not one(0.03, 0.01, tolerance=0.01).is_ahead(one(0.0, 0.01), Z95)
    assert not one(0.03, 0.01).is_ahead(one(0.0, 0.01, incumbent="j"), Z95)
    assert not one(0.03, math.inf).is_ahead(one(0.0, 0.0), Z95)


@given(st.integers(1, 2).flatmap(standings))
def test_a_tie_is_with_the_best_who_is_not_ahead(found: list[Standing]) -> None:
    ordered = [found[place] for place in best_first(found)]
    for place, first in enumerate(tied_with(ordered)):
        assert first <= place
        assert not ordered[first].is_ahead(ordered[place], Z95)
        assert all(better.is_ahead(ordered[place], Z95) for better in ordered[:first])


def test_ends_of_intervals() -> None:
    number = Objective(value=1.0, se=0.5, step_se=0.1)
    assert (number.low, number.high) == pytest.approx((1 - 0.98, 1 + 0.98), abs=1e-4)
    assert number.sure == pytest.approx(1 - 0.8224, abs=1e-4)
    exact = Objective(value=1.0, se=0.0, step_se=0.0)
    assert exact.low == exact.high == exact.sure == 1.0
