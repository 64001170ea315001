"""Many samples at once are each sample by itself, bit by bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiopt import batches, stats
from aiopt.batch_looks import Action, take
from aiopt.sequential import Stage
from aiopt.sequential import take as take_one
from aiopt.stats import Floats

values = st.one_of(
    st.floats(-1, 1),
    st.sampled_from([0.0, 0.005, -0.005, 0.01, -0.01, 0.02]),
)


@st.composite
def samples(draw: st.DrawFn) -> Floats:
    """Rows with ties, zeros and neither."""
    size = draw(st.integers(1, 12))
    rows = draw(st.lists(st.lists(values, min_size=size, max_size=size), min_size=1, max_size=6))
    return np.array(rows)


def long(size: int) -> Floats:
    return np.random.default_rng(size).normal(0.01, 0.02, (3, size)).round(3)


@given(samples(), st.sampled_from([0.0, 0.005, -0.02]))
@settings(max_examples=80)
def test_the_test(x: Floats, theta: float) -> None:
    expected = [stats.signed_rank_p(row, theta) for row in x]
    assert batches.signed_rank_p(x, theta).tolist() == expected


@pytest.mark.parametrize("size", [49, 50, 51, 199, 201])
def test_the_test_of_large_samples(size: int) -> None:
    expected = [stats.signed_rank_p(row, 0.005) for row in long(size)]
    assert batches.signed_rank_p(long(size), 0.005).tolist() == expected


def test_the_test_of_nothing() -> None:
    assert batches.signed_rank_p(np.empty((2, 0))).tolist() == [stats.signed_rank_p([])] * 2


@given(samples())
@settings(max_examples=60)
def test_estimates(x: Floats) -> None:
    assert batches.mad_sd(x).tolist() == [stats.mad_sd(row) for row in x]
    expected = [stats.estimate(row) for row in x]
    assert list(zip(*(e.tolist() for e in batches.estimates(x)), strict=True)) == expected


@pytest.mark.parametrize("size", [40, 150, 210])
@pytest.mark.parametrize("block", [1, 50_000])
def test_estimates_of_large_samples_in_blocks(
    size: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_BLOCK", block)
    x = long(size)
    expected = [stats.estimate(row) for row in x]
    assert list(zip(*(e.tolist() for e in batches.estimates(x)), strict=True)) == expected


@given(samples(), st.sampled_from([0.05, 0.1, 0.4]))
def test_bounds(x: Floats, tail: float) -> None:
    level = 1 - tail
    low, high = batches.bounds(x, 1 - level)
    assert low.tolist() == [stats.lower_bound(row, level) for row in x]
    assert high.tolist() == [stats.upper_bound(row, level) for row in x]


@given(st.lists(st.lists(values, max_size=5), max_size=12), st.sampled_from([1, 4, 1000]))
def test_by_size(rows: list[list[float]], block: int) -> None:
    flat = np.array([value for row in rows for value in row])
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    found: dict[int, list[float]] = {}
    before, batches._BLOCK = batches._BLOCK, block
    try:
        for part, x in batches.by_size(flat, np.cumsum(counts) - counts, counts):
            found |= dict(zip(part.tolist(), x.tolist(), strict=True))
    finally:
        batches._BLOCK = before
    assert found == {place: row for place, row in enumerate(rows) if row}


STAGES = [
    Stage(n=7, alpha=0.02, first=4, delta0=0.005, mei=0.03, sd_pair=0.01),
    Stage(n=7, alpha=0.3, first=4, delta0=0.0, mei=0.03, sd_pair=0.0001),
    Stage(n=20, alpha=0.5, first=2, delta0=0.005, mei=0.2, sd_pair=0.05),
    Stage(n=5, alpha=0.001, first=5, delta0=0.0, mei=0.03, sd_pair=0.5),
]
NAMES = {"pass": Action.PASS, "futile": Action.FUTILE, "cap": Action.CAP, "continue": Action.OPEN}


@given(
    st.lists(
        st.tuples(st.floats(-0.05, 0.1), st.integers(0, 40), st.booleans()), min_size=1, max_size=8
    ),
    st.sampled_from(STAGES),
    st.integers(0, 1000),
)
@settings(max_examples=80)
def test_looks(drawn: list[tuple[float, int, bool]], stage: Stage, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [rng.normal(gain, 0.01, size).round(3) for gain, size, _ in drawn]
    counts = np.array([row.size for row in rows], dtype=np.int64)
    part = np.array([takes for _, _, takes in drawn])
    found = take(stage, np.concatenate(rows), np.cumsum(counts) - counts, counts, part)
    for place, row in enumerate(rows):
        expected = take_one(stage, row.tolist())
        last = expected.looks[-1] if expected.looks and part[place] else None
        assert found.k[place] == (last.k if last else 0)
        assert found.action[place] == (NAMES[last.action] if last else Action.OPEN)
        assert found.next_look[place] == ((expected.next_look or 0) if part[place] else 0)
