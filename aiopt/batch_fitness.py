"""The fitness of many experiments at once; see `aiopt.fitness.fitness_of`."""

from collections.abc import Mapping

import numpy as np
from attrs import evolve, frozen

from aiopt.batches import by_size, estimates
from aiopt.fitness import Fitness, Unmeasured, compared_by
from aiopt.pair_columns import Differences, PairColumns, PairGroup
from aiopt.stats import Bools, Floats, Ints

__all__ = ["BatchCompared", "BatchFitness", "compare_all", "fitness_of_all"]


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


@frozen(eq=False)
class BatchCompared:
    """Fitnesses on the signals by which all are compared; see `aiopt.scoring.compared_by`."""

    fitness: BatchFitness
    """Of the signals that are used; `missing` is of all."""
    used: frozenset[str]
    measured: Bools
    """Rows that are valid and have a fitness on whatever they were measured on."""
    comparable: Bools
    """Those of them that were measured on all that is used."""
    lacking: Mapping[str, int]
    """Of the other signals, how many valid rows that were measured lack them."""

    def lacks(self, row: int) -> tuple[str, ...]:
        """Which signals that are used a measured row has not."""
        if not self.measured[row]:
            return ()
        return tuple(name for name in self.fitness.missing_of(row) if name in self.used)


def compare_all(pairs: PairColumns, weights: Mapping[str, float], valid: Bools) -> BatchCompared:
    """The fitness of each experiment as rankings take it, of those that are valid."""
    whole = fitness_of_all(pairs, weights)
    measured = valid & (whole.pairs > 0)
    names = list(weights)
    lacks = np.array([whole.missing[name] for name in names])[:, measured]
    kinds, counts = np.unique(lacks, axis=1, return_counts=True)
    patterns = {
        frozenset(name for name, lacking in zip(names, kind, strict=True) if lacking): count
        for kind, count in zip(kinds.T.tolist(), counts.tolist(), strict=True)
    }
    used = compared_by(weights, patterns)
    fitness, comparable = whole, measured
    if lacks.any():
        part = fitness_of_all(pairs, {n: w for n, w in weights.items() if n in used})
        fitness = evolve(part, missing=whole.missing)
        comparable = measured & ~np.any([whole.missing[name] for name in used], axis=0)
    lacking = {
        name: int(row.sum())
        for name, row in zip(names, lacks, strict=True)
        if weights[name] and name not in used
    }
    return BatchCompared(fitness, used, measured, comparable, lacking)


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
