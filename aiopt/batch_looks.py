"""The looks of one stage at many experiments at once; see `aiopt.sequential`."""

from enum import IntEnum

import numpy as np
from attrs import frozen

from aiopt.batches import by_size, hodges_lehmann, mad_sd, signed_rank_p
from aiopt.sequential import Stage, is_futile, looks_at, spending
from aiopt.stats import Bools, Floats, Ints

__all__ = ["Action", "BatchResult", "take"]


class Action(IntEnum):
    """What the last look said."""

    OPEN = 0
    """Go on, or there was no look yet."""
    PASS = 1
    FUTILE = 2
    CAP = 3


@frozen(eq=False)
class BatchResult:
    """How far a stage has come, per experiment."""

    k: Ints
    """Pairs at the last look; 0: there was none."""
    action: Ints
    next_look: Ints
    """Pairs at the look that comes next; 0 if the stage is over."""


def take(stage: Stage, d: Floats, starts: Ints, counts: Ints, taking_part: Bools) -> BatchResult:
    """Every look that the differences of each experiment allow, up to the one that ends its stage.

    Args:
        stage: as it was planned, the same for all.
        d: the differences of all experiments, one after the other.
        starts: per experiment where its differences begin.
        counts: per experiment how many there are.
        taking_part: per experiment; the others have no look, and none that comes next.
    """
    found = BatchResult(*(np.zeros(counts.size, dtype=np.int64) for _ in range(3)))
    active, used = taking_part, 0.0
    for k in looks_at(stage.n, stage.first):
        found.next_look[active] = k
        active = active & (counts >= k)
        level = spending(stage, k, used)
        possible = 2.0**-k <= level
        limits = np.where(active, k, 0)
        for part, x in by_size(d, starts, limits):
            found.action[part] = _actions(stage, x, level if possible else -1.0)
        found.k[active] = k
        found.next_look[active & (found.action != Action.OPEN)] = 0
        active = active & (found.action == Action.OPEN)
        used += level if possible else 0.0
    return found


def _actions(stage: Stage, x: Floats, level: float) -> Ints:
    k = x.shape[1]
    p = signed_rank_p(x, stage.delta0)
    effect, sd = hodges_lehmann(x), mad_sd(x)
    futile = is_futile(stage, k, effect, sd, p)
    actions = np.where(futile, Action.FUTILE, Action.CAP if k > stage.n else Action.OPEN)
    return np.where(p <= level, Action.PASS, actions)
