"""The pairs of many experiments at once, from columns of runs.

What `aiopt.pairs` makes of the events of one experiment, this makes of the columns of all
experiments of a campaign, and bit by bit the same.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from attrs import define, field, frozen

from aiopt.columnar import PAIR_PURPOSES, VOID, Columns, Unprojectable
from aiopt.rules import RuleParams
from aiopt.stats import Bools, Floats, Ints

__all__ = ["Differences", "PairColumns", "PairGroup", "pair_columns"]


@frozen
class Differences:
    """Log ratios of the pairs of a group, and which of them can be formed."""

    values: Floats
    """One a pair, positive where the candidate is better; 0 where a value is missing."""
    present: Bools


@frozen(eq=False)
class PairGroup:
    """Pairs of one purpose under one workload, experiment by experiment, in order."""

    pairs: Ints
    """Their places in `PairColumns`."""
    owner: Ints
    """Of each pair the place of its experiment among the chosen ones."""
    counts: Ints
    """Per chosen experiment the number of its pairs."""

    @cached_property
    def starts(self) -> Ints:
        """Per chosen experiment where its pairs begin."""
        starts: Ints = np.cumsum(self.counts) - self.counts
        return starts

    def of(self, chosen: Bools) -> "PairGroup":
        """The pairs of some experiments only."""
        mine = chosen[self.owner]
        return PairGroup(self.pairs[mine], self.owner[mine], np.where(chosen, self.counts, 0))

    def first(self, limits: Ints) -> "PairGroup":
        """Of each experiment no more than the first few pairs."""
        place = np.arange(self.owner.size) - self.starts[self.owner]
        mine = place < limits[self.owner]
        return PairGroup(self.pairs[mine], self.owner[mine], np.minimum(self.counts, limits))

    def every(self, of_pairs: Bools) -> Bools:
        """Per experiment whether it holds of all of its pairs; true where there are none."""
        lacking = np.bincount(self.owner[~of_pairs], minlength=self.counts.size)
        found: Bools = lacking == 0
        return found


@define(eq=False)
class PairColumns:
    """The valid pairs of chosen experiments."""

    columns: Columns
    params: RuleParams
    owner: Ints
    """Of each pair the place of its experiment among the chosen ones; pairs are in the order of
    experiment, purpose, workload and index.
    """
    purpose: Ints
    workload: Ints
    a: Ints
    """Of each pair the run of the incumbent."""
    b: Ints
    chosen: int
    """How many experiments were chosen."""
    attempted: Mapping[str, Bools]
    """Per purpose, of each experiment whether it has any run of it, also in no valid pair."""
    _known: dict[str, Differences] = field(init=False, factory=dict)

    def group(self, purpose: str, workload: str) -> PairGroup:
        """The pairs of one purpose under one workload."""
        code = _place(self.columns.workloads, workload)
        return self._group((self.purpose == PAIR_PURPOSES.index(purpose)) & (self.workload == code))

    def _group(self, mine: Bools) -> PairGroup:
        owner = self.owner[mine]
        return PairGroup(np.flatnonzero(mine), owner, np.bincount(owner, minlength=self.chosen))

    def last_stage(self, workload: str) -> PairGroup:
        """The pairs of the confirmation, of experiments without any run of it those of the screen,
        under one workload.
        """
        stage = np.where(
            self.attempted["confirm"],
            PAIR_PURPOSES.index("confirm"),
            PAIR_PURPOSES.index("screen"),
        )
        code = _place(self.columns.workloads, workload)
        return self._group((self.purpose == stage[self.owner]) & (self.workload == code))

    def of_candidates(self) -> PairGroup:
        """All pairs that a candidate is judged by."""
        return self._group(np.isin(self.purpose, _JUDGED))

    def differences(self, group: PairGroup, metric: str) -> Differences:
        """See `aiopt.pairs.differences`; where that has none, pairs are not `present`."""
        found = self._known.get(metric)
        if found is None and _FEW * group.pairs.size < self.a.size:
            return self._differences(metric, group.pairs)
        if found is None:
            found = self._known[metric] = self._differences(metric, slice(None))
        return Differences(found.values[group.pairs], found.present[group.pairs])

    def _differences(self, metric: str, which: Ints | slice) -> Differences:
        first, second = self.a[which], self.b[which]
        if metric not in self.columns.metrics:
            return Differences(np.zeros(first.size), np.zeros(first.size, dtype=np.bool_))
        logs = self.columns.logs(metric)
        log_a, log_b = logs[first], logs[second]
        d = log_a - log_b if self.params.metrics[metric].direction == "lower" else log_b - log_a
        present = ~np.isnan(d)
        return Differences(np.where(present, d, 0.0), present)

    def composite(self, group: PairGroup, weights: Mapping[str, float]) -> Differences:
        """See `aiopt.pairs.composite`."""
        total = np.zeros(group.pairs.size)
        present = np.ones(group.pairs.size, dtype=np.bool_)
        for metric, weight in weights.items():
            found = self.differences(group, metric)
            total = total + weight * found.values
            present &= found.present
        return Differences(total, present)


_FEW = 8
"""What is asked of less than one pair in so many is not worked out for all of them."""

_JUDGED = [PAIR_PURPOSES.index(name) for name in ("screen", "confirm", "guard")]


def _place(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else -1


def pair_columns(columns: Columns, params: RuleParams, experiments: Ints) -> PairColumns:
    """The pairs of these experiments, given by their places, in order.

    Raises:
        Unprojectable: pairs that are numbered beyond what is reasonable, or are a calibration's.
    """
    name = f"pairs of {hashlib.sha256(experiments.tobytes()).hexdigest()}"
    found = columns.memo(name, lambda: _packed(*_paired(columns, experiments)))
    pairs, attempted = _unpacked(found, experiments.size)
    owner, purpose, workload, a, b = pairs.astype(np.int64)
    return PairColumns(
        columns=columns,
        params=params,
        owner=owner,
        purpose=purpose,
        workload=workload,
        a=a,
        b=b,
        chosen=experiments.size,
        attempted=dict(zip(PAIR_PURPOSES, attempted, strict=True)),
    )


def _packed(pairs: Sequence[Ints], attempted: Sequence[Bools]) -> npt.NDArray[np.int32]:
    """Both as one array."""
    return np.concatenate([*pairs, *attempted]).astype(np.int32)


def _unpacked(
    packed: npt.NDArray[np.int32], chosen: int
) -> tuple[npt.NDArray[np.int32], Sequence[Bools]]:
    end = packed.size - chosen * len(PAIR_PURPOSES)
    attempted = packed[end:].reshape(len(PAIR_PURPOSES), chosen) != 0
    return packed[:end].reshape(5, -1), list(attempted)


def _paired(columns: Columns, experiments: Ints) -> tuple[list[Ints], list[Bools]]:
    """Owner, purpose, workload and both runs of each pair; and per purpose whether an experiment
    has any run of it.
    """
    owner_of = np.full(len(columns.experiments), -1, dtype=np.int64)
    owner_of[experiments] = np.arange(experiments.size)
    owner = owner_of[columns.run("experiment")]
    rows = np.flatnonzero(owner >= 0)
    fields = [owner[rows], *(columns.run(name)[rows].astype(np.int64) for name in VOID[1:])]
    voids = columns.voids[owner_of[columns.voids[:, 0]] >= 0]
    voided = [owner_of[voids[:, 0]], *voids[:, 1:].T]
    calibrating = [PAIR_PURPOSES.index(name) for name in ("calibration", "layout")]
    if np.isin(np.concatenate([fields[1], voided[1]]), calibrating).any():
        raise Unprojectable("an experiment has pairs of a calibration, and is none")
    runs_key, void_key = _keys(fields, voided)
    attempted = [
        np.bincount(fields[0][fields[1] == code], minlength=experiments.size) > 0
        for code in range(len(PAIR_PURPOSES))
    ]
    arm = columns.run("arm")[rows]
    order = np.argsort(2 * runs_key + arm, kind="stable")
    rows, runs_key, arm = rows[order], runs_key[order], arm[order]
    both = (runs_key[1:] == runs_key[:-1]) & (arm[1:] > arm[:-1])
    # of runs that were logged twice the last one counts
    last_b = np.searchsorted(runs_key, runs_key[:-1][both], side="right") - 1
    at = np.flatnonzero(both)
    valid = ~np.isin(runs_key[at], void_key)
    a, b = at[valid], last_b[valid]
    return [*(field[order][a] for field in fields[:3]), rows[a], rows[b]], attempted


def _keys(runs: Sequence[Ints], voids: Sequence[Ints]) -> tuple[Ints, Ints]:
    """One number for what tells pairs apart, in the same order."""
    keys = [np.zeros(len(runs[0]), dtype=np.int64), np.zeros(len(voids[0]), dtype=np.int64)]
    room = 2
    for fields in zip(runs, voids, strict=True):
        found = np.concatenate(fields)
        most = int(found.max(initial=0)) + 1
        room *= most
        if found.min(initial=0) < 0 or room >= 1 << 63:
            raise Unprojectable("pairs have numbers that are negative or too large")
        keys = [key * most + field for key, field in zip(keys, fields, strict=True)]
    return keys[0], keys[1]
