"""The mathematics of `aiopt.stats` for many samples of one size at once, a sample a row.

Every function gives, bit by bit, what its namesake gives for each row alone. Work is done in blocks
of rows, so that memory does not grow with their number.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from aiopt import stats
from aiopt.stats import Floats

__all__ = [
    "bounds",
    "by_size",
    "estimates",
    "hodges_lehmann",
    "mad_sd",
    "signed_rank_p",
]

_BLOCK = 1 << 19
"""Numbers that are held at a time, about."""
_EXACT = 50
"""Up to this size the p-value of a tied sample is a sum without rounding, in any order."""


def by_size(
    flat: Floats, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
    """Samples that lie one after the other, as matrices of equal sizes: which samples, and their
    values. Empty ones are left out.
    """
    for size in np.unique(counts[counts > 0]).tolist():
        which = np.flatnonzero(counts == size)
        step = max(1, _BLOCK // size)
        for at in range(0, which.size, step):
            part = which[at : at + step]
            yield part, flat[starts[part, None] + np.arange(size)]


def _in_blocks(x: Floats, width: int, work: Callable[[Floats], Any]) -> Any:
    """`work` on some rows at a time, each of which needs `width` numbers."""
    step = max(1, _BLOCK // max(1, width))
    return np.concatenate([work(x[at : at + step]) for at in range(0, max(1, len(x)), step)])


def signed_rank_p(x: Floats, theta: float = 0.0) -> Floats:
    """See `aiopt.stats.signed_rank_p`."""
    found: Floats = _in_blocks(x - theta, 3 * x.shape[1], _signed_rank_p)
    return found


def _signed_rank_p(x: Floats) -> Floats:
    rows, size = x.shape
    if not size:
        return np.ones(rows)
    if size > _EXACT:
        return np.array([stats.signed_rank_p(row) for row in x])
    distance = np.abs(x)
    order = np.argsort(distance, axis=1)
    distance = np.take_along_axis(distance, order, axis=1)
    positive = np.take_along_axis(x, order, axis=1) > 0
    p: Floats = stats.signed_rank_survival(size)[positive @ np.arange(1, size + 1)]
    equal = distance[:, 1:] == distance[:, :-1]
    tied = np.flatnonzero(equal.any(axis=1) | (distance[:, 0] == 0))
    if tied.size:
        p[tied] = _tied_p(distance[tied], positive[tied])
    return p


def _tied_p(distance: Floats, positive: npt.NDArray[np.bool_]) -> Floats:
    """Of rows in the order of their distance from zero: doubled mid-ranks, and one table of the
    null distribution for each pattern of them.
    """
    size = distance.shape[1]
    first = np.empty(distance.shape, dtype=np.int64)
    last = np.empty_like(first)
    first[:, 0], last[:, -1] = 0, size - 1
    for at in range(1, size):
        same = distance[:, at] == distance[:, at - 1]
        first[:, at] = np.where(same, first[:, at - 1], at)
    for at in range(size - 2, -1, -1):
        same = distance[:, at] == distance[:, at + 1]
        last[:, at] = np.where(same, last[:, at + 1], at)
    doubled = first + last + 2
    won = (doubled * positive).sum(axis=1)
    pattern = np.where(distance == 0, 0, doubled)
    kinds, kind_of = np.unique(pattern, axis=0, return_inverse=True)
    p = np.empty(len(distance))
    for kind, ranks in enumerate(kinds):
        of_kind = kind_of.reshape(-1) == kind
        ranks = ranks[ranks > 0]
        p[of_kind] = stats.rank_sum_survival(ranks)[won[of_kind]] if ranks.size else 1.0
    return p


def _walsh(x: Floats) -> Floats:
    first, second = np.triu_indices(x.shape[1])
    averages: Floats = (x[:, first] + x[:, second]) / 2
    return averages


def _triangle(size: int) -> int:
    return size * (size + 1) // 2


def _median(x: Floats) -> Floats:
    """Of each row, like `numpy.median`."""
    size = x.shape[1]
    middle = size // 2
    if size % 2:
        return np.partition(x, middle, axis=1)[:, middle]
    parted = np.partition(x, (middle - 1, middle), axis=1)
    found: Floats = (parted[:, middle - 1] + parted[:, middle]) / 2
    return found


def hodges_lehmann(x: Floats) -> Floats:
    """See `aiopt.stats.hodges_lehmann`."""
    found: Floats = _in_blocks(x, 2 * _triangle(x.shape[1]), lambda part: _median(_walsh(part)))
    return found


def mad_sd(x: Floats) -> Floats:
    """See `aiopt.stats.mad_sd`."""
    found: Floats = 1.4826 * _median(np.abs(x - _median(x)[:, None]))
    return found


def bounds(x: Floats, tail: float) -> tuple[Floats, Floats]:
    """Both ends of the interval with this probability beyond each: `aiopt.stats.lower_bound` and
    `upper_bound` at the level `1 - tail`.
    """
    size = x.shape[1]
    c = stats.critical_rank_sum(size, tail)
    if c is None:
        return np.full(len(x), -np.inf), np.full(len(x), np.inf)

    def ends(part: Floats) -> Floats:
        averages = np.sort(_walsh(part), axis=1)
        return averages[:, [-c, c - 1]]

    found = _in_blocks(x, 2 * _triangle(size), ends)
    return found[:, 0], found[:, 1]


def estimates(x: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """See `aiopt.stats.estimate`."""
    size, value = x.shape[1], hodges_lehmann(x)
    low, high = bounds(x, (1 - 0.95) / 2)
    if np.isfinite(high[:1] - low[:1]).all():
        return value, low, high, (high - low) / (2 * stats.Z95)
    if size < 2:
        return value, low, high, np.full(len(x), np.inf)
    se = stats.few_pairs_factor(size) * np.std(x, ddof=1, axis=1)
    return value, value - stats.Z95 * se, value + stats.Z95 * se, se
