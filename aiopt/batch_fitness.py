"""The fitness of many experiments at once; see `aiopt.fitness.fitness_of`."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from attrs import frozen

from aiopt.batches import by_size, estimates
from aiopt.fitness import Fitness, Unmeasured
from aiopt.pair_columns import Differences, PairColumns, PairGroup
from aiopt.stats import Floats

__all__ = ["BatchFitness", "fitness_of_all"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@frozen(eq=False)
class BatchFitness:
    """One row an experiment; rows without a pair mean nothing."""

    value: Floats
    low: Floats
    high: Floats
    se: Floats
    pairs: Ints
    """0: there is no fitness."""
    confirmed: Bools
    """Made of the pairs of the confirmation."""
    missing: Mapping[str, Bools]
    """Per metric with a weight which experiments lack it under a workload."""

    def missing_of(self, row: int) -> tuple[str, ...]:
        """Metrics with a weight that the experiment was not measured on."""
        return tuple(sorted(name for name, lacking in self.missing.items() if lacking[row]))

    def of(self, row: int) -> Fitness | Unmeasured:
        """As a value."""
        missing = self.missing_of(row)
        if not self.pairs[row]:
            return Unmeasured(reason="no metric with a weight" if missing else "no complete pair")
        return Fitness(
            value=float(self.value[row]),
            low=float(self.low[row]),
            high=float(self.high[row]),
            se=float(self.se[row]),
            pairs=int(self.pairs[row]),
            stage="confirm" if self.confirmed[row] else "screen",
            missing=missing,
        )


def fitness_of_all(pairs: PairColumns, weights: Mapping[str, float]) -> BatchFitness:
    """The fitness of each experiment on the pairs of its main workloads, under these weights of
    metrics.
    """
    size = pairs.chosen
    missing = {name: np.zeros(size, dtype=np.bool_) for name in weights}
    owners, parts = [], []
    for workload in pairs.params.main:
        group = pairs.last_stage(workload)
        owner, values = _composites(pairs, group, weights, missing)
        owners.append(owner)
        parts.append(values)
    owner, values = np.concatenate(owners), np.concatenate(parts)
    order = np.argsort(owner, kind="stable")
    values = values[order]
    counts = np.bincount(owner, minlength=size)
    found = [np.full(size, np.nan) for _ in range(4)]
    for part, x in by_size(values, np.cumsum(counts) - counts, counts):
        for column, estimate in zip(found, estimates(x), strict=True):
            column[part] = estimate
    value, low, high, se = found
    return BatchFitness(value, low, high, se, counts, pairs.attempted["confirm"], missing)


def _composites(
    pairs: PairColumns, group: PairGroup, weights: Mapping[str, float], missing: dict[str, Bools]
) -> tuple[Ints, Floats]:
    """The weighted means of what each experiment was measured on, pair by pair."""
    differences: dict[str, Differences] = {}
    lacking = np.zeros((len(weights), group.counts.size), dtype=np.bool_)
    for row, name in enumerate(weights):
        differences[name] = pairs.differences(group, name)
        lacking[row] = ~group.every(differences[name].present)
        missing[name] |= lacking[row]
    kinds, kind_of = np.unique(lacking, axis=1, return_inverse=True)
    total = np.zeros(group.owner.size)
    known = np.zeros(kinds.shape[1], dtype=np.bool_)
    shares = np.zeros(kinds.shape)
    for kind in range(kinds.shape[1]):
        # the sum as `fitness_of` takes it, which need not be that of numpy
        present = [
            w for w, lacks in zip(weights.values(), kinds[:, kind], strict=True) if not lacks
        ]
        whole = sum(abs(weight) for weight in present)
        known[kind] = whole != 0
        if whole:
            each = [weight / whole for weight in weights.values()]
            shares[:, kind] = np.where(kinds[:, kind], 0.0, each)
    kind_of_pair = kind_of.reshape(-1)[group.owner]
    for row, name in enumerate(weights):
        total = total + shares[row, kind_of_pair] * differences[name].values
    mine = known[kind_of_pair]
    return group.owner[mine], total[mine]
