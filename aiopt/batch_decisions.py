"""The rule `two-stage` on all experiments of a campaign at once, as far as that is certain.

A candidate whose screen ended without passing is no keep, and one whose screen lacks pairs needs
more: both follow from the looks alone, which are taken here for all at once. Whatever passed the
screen is left to the rule itself (`exact`), unless a guard is broken already. What a discarded
candidate is called is worked out when it is asked for (`named`).
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from attrs import define, frozen

from aiopt.batch_looks import Action, BatchResult, take
from aiopt.batches import bounds, by_size, signed_rank_p
from aiopt.calibration import Calibrated, Measured, calibrate, guard_spread, missing_calibration
from aiopt.columnar import GATES, VERDICTS, Records, Unprojectable
from aiopt.events import Event, LevelCharged, PairVoided, RunMeasured
from aiopt.guards import ROUNDING, failed_gate, main_margins
from aiopt.pair_columns import PairColumns, PairGroup
from aiopt.pairs import pairs_by_purpose
from aiopt.rules import COMPOSITE, RuleParams
from aiopt.stats import Bools, Floats, Ints

__all__ = ["KINDS", "BatchDecisions", "decide_all"]


KINDS: tuple[str, ...] = (*VERDICTS, "needs_more")


@define(eq=False)
class BatchDecisions:
    """Per experiment what the rule says."""

    kinds: Ints
    """Place in KINDS; -1: it was discarded, and `named` says why, or it has to be decided by the
    rule itself."""
    needs: Ints
    """Pairs that are missing, where more are needed."""
    exact: Bools
    """The rule itself has to be asked."""
    _parts: "list[_Screened]"

    def named(self, chosen: Bools) -> None:
        """Find out what the discarded ones among these are called."""
        for part in self._parts:
            mine = chosen & part.discarded & (self.kinds < 0)
            if mine.any():
                self.kinds[mine] = part.kinds_of(mine)[mine]


def decide_all(
    pairs: PairColumns,
    experiments: Records,
    calibrations: Ints,
    facts_of: Callable[[int], Sequence[Event]],
) -> BatchDecisions:
    """What the rule says of each experiment, with the parameters of `pairs`.

    Args:
        pairs: of these experiments.
        experiments: their records.
        calibrations: per experiment the place of its calibration; negative where it has none.
        facts_of: the events of a calibration.

    Raises:
        Unprojectable: a calibration holds what belongs to a candidate, or a metric has the name of
            the composite.
    """
    if COMPOSITE in pairs.params.metrics:
        raise Unprojectable(f"a metric is called {COMPOSITE}")
    size = len(experiments)
    decided = BatchDecisions(
        np.full(size, -1, dtype=np.int64),
        np.zeros(size, dtype=np.int64),
        np.zeros(size, dtype=np.bool_),
        [],
    )
    calibrations = np.maximum(calibrations, -1)
    differ, beyond = _answers_differ(pairs), _over_limit(pairs)
    for calibration in np.unique(calibrations).tolist():
        facts = facts_of(calibration) if calibration >= 0 else ()
        rows = calibrations == calibration
        _decide_by(decided, pairs, experiments["gate"], rows, facts, differ, beyond)
    return decided


def _decide_by(
    decided: BatchDecisions,
    pairs: PairColumns,
    gates: Ints,
    rows: Bools,
    facts: Sequence[Event],
    differ: Bools,
    beyond: "tuple[Bools, Bools]",
) -> None:
    """All that are judged by one calibration, in the order in which the rule asks."""
    params, kinds = pairs.params, decided.kinds
    measured = pairs_by_purpose(facts)
    purposes = {e.purpose for e in facts if isinstance(e, RunMeasured | PairVoided)}
    charged = any(isinstance(event, LevelCharged) for event in facts)
    if charged or not purposes <= {"calibration", "layout", "warmup", "check"}:
        raise Unprojectable("a calibration holds what belongs to a candidate")
    gate = failed_gate(facts)
    if gate is not None:
        kinds[rows] = KINDS.index(gate[0])
        return
    for code, name in enumerate(GATES):
        if name:
            kinds[rows & (gates == code)] = KINDS.index(name)
    rows = rows & (gates == 0)
    missing = missing_calibration(params, measured)
    if missing is not None:
        kinds[rows] = KINDS.index("needs_more")
        decided.needs[rows] = missing.missing
        return
    unsure, surely = beyond
    decided.exact |= rows & (differ | unsure)
    rows = rows & ~(differ | unsure)
    kinds[rows & surely] = KINDS.index("discard_regression")
    rows = rows & ~surely
    if not rows.any():
        return
    plans = calibrate(params, measured)
    if not plans:
        kinds[rows] = KINDS.index("inconclusive")
        return
    part = _Screened.of(pairs, rows, plans, measured)
    decided._parts.append(part)
    kinds[part.open] = KINDS.index("needs_more")
    decided.needs[part.open] = part.missing()[part.open]
    broken = part.passed & part.broken(part.passed)
    kinds[broken] = KINDS.index("discard_regression")
    decided.exact |= part.passed & ~broken


# ---- before any test ----


def _answers_differ(pairs: PairColumns) -> Bools:
    """Experiments with a pair whose arms printed different texts, where any has to be equal."""
    found = np.zeros(pairs.chosen, dtype=np.bool_)
    if any(metric.kind == "digest" for metric in pairs.params.metrics.values()):
        group = pairs.of_candidates()
        answers = pairs.columns.run("answers")
        found[group.owner[answers[pairs.a[group.pairs]] != answers[pairs.b[group.pairs]]]] = True
    return found


def _over_limit(pairs: PairColumns) -> tuple[Bools, Bools]:
    """Experiments with several samples of a run, of which a limit holds each, not the median; and
    those with a value that is beyond a limit.
    """
    several = np.zeros(pairs.chosen, dtype=np.bool_)
    beyond = np.zeros(pairs.chosen, dtype=np.bool_)
    limits = {n: (m, m.limit) for n, m in pairs.params.metrics.items() if m.limit is not None}
    if limits:
        group = pairs.of_candidates()
        runs = pairs.b[group.pairs]
        several[group.owner[pairs.columns.run("several")[runs] > 0]] = True
        for name, (metric, limit) in limits.items():
            if name in pairs.columns.metrics:
                values = pairs.columns[name][runs]
                out = values > limit if metric.direction == "lower" else values < limit
                beyond[group.owner[out]] = True
    return several, beyond


# ---- the screen ----


@frozen(eq=False)
class _Screened:
    """Experiments that share a calibration, after their screens."""

    pairs: PairColumns
    rows: Bools
    groups: Mapping[str, PairGroup]
    """By main workload."""
    plans: Mapping[tuple[str, str], Calibrated]
    measured: Measured
    """The calibration's pairs."""
    results: Mapping[tuple[str, str], BatchResult]

    @classmethod
    def of(
        cls,
        pairs: PairColumns,
        rows: Bools,
        plans: Mapping[tuple[str, str], Calibrated],
        measured: Measured,
    ) -> "_Screened":
        groups = {name: pairs.group("screen", name).of(rows) for name in pairs.params.main}
        there = np.minimum.reduce([group.counts for group in groups.values()])
        results = {}
        for key, each in plans.items():
            group = groups[each.objective.workload].first(there)
            d = pairs.composite(group, each.objective.weights)
            taking_part = rows & group.every(d.present)
            results[key] = take(each.screen, d.values, group.starts, group.counts, taking_part)
        return cls(pairs, rows, groups, plans, measured, results)

    @property
    def _params(self) -> RuleParams:
        return self.pairs.params

    @property
    def passed(self) -> Bools:
        """An objective passed."""
        each = [result.action == Action.PASS for result in self.results.values()]
        found: Bools = np.logical_or.reduce(each)
        return found

    @property
    def _coming(self) -> Ints:
        """Pairs at the next look; the largest number there is where none comes."""
        none = np.iinfo(np.int64).max
        looks = [np.where(r.next_look > 0, r.next_look, none) for r in self.results.values()]
        found: Ints = np.minimum.reduce(looks)
        return found

    @property
    def open(self) -> Bools:
        """The screen needs more pairs."""
        found: Bools = self.rows & ~self.passed & (self._coming < np.iinfo(np.int64).max)
        return found

    @property
    def discarded(self) -> Bools:
        """The screen is over, and nothing passed."""
        return self.rows & ~self.passed & ~self.open

    def missing(self) -> Ints:
        """How many pairs the next look needs, of all workloads together."""
        lacking = [np.maximum(0, self._coming - group.counts) for group in self.groups.values()]
        found: Ints = np.add.reduce(lacking)
        return found

    @property
    def _rounds(self) -> Ints:
        """Pairs of each workload at the last look."""
        none = np.iinfo(np.int64).max
        passing = [np.where(r.action == Action.PASS, r.k, none) for r in self.results.values()]
        last = np.maximum.reduce([result.k for result in self.results.values()])
        return np.asarray(np.where(self.passed, np.minimum.reduce(passing), last), dtype=np.int64)

    # -- what a discarded candidate is called --

    def _seen(self, workload: str, chosen: Bools) -> PairGroup:
        return self.groups[workload].of(chosen).first(self._rounds)

    def _each(
        self, group: PairGroup, weights: Mapping[str, float], says: Callable[[Floats], Bools]
    ) -> tuple[Bools, Bools]:
        """What is said of the differences of each experiment, and of which there are any."""
        d = self.pairs.composite(group, weights)
        counts = np.where(group.every(d.present), group.counts, 0)
        found = np.zeros(counts.size, dtype=np.bool_)
        for part, x in by_size(d.values, group.starts, counts):
            found[part] = says(x)
        return found, counts > 0

    def broken(self, chosen: Bools) -> Bools:
        """Whether a metric with a margin is proved to be worse beyond it."""
        found = np.zeros(self.rows.size, dtype=np.bool_)
        for name, margin in main_margins(self._params).items():
            for workload in self.groups:
                says = self._breaks(name, workload, margin)
                found |= self._each(self._seen(workload, chosen), {name: 1.0}, says)[0]
        return found

    def _breaks(self, name: str, workload: str, margin: float) -> Callable[[Floats], Bools]:
        params, bound = self._params, math.log1p(margin)

        def is_worse(x: Floats) -> Bools:
            found: Bools = signed_rank_p(-x, bound) <= params.guard_alpha
            return found

        def is_lost(x: Floats) -> Bools:
            return np.asarray((x < -bound - ROUNDING).any(axis=1), dtype=np.bool_)

        if (name, workload) in self.plans:
            return is_worse
        if guard_spread(params, self.measured, name, workload) == 0:
            return is_lost
        return lambda x: is_worse(x) & (signed_rank_p(x, -bound) > params.guard_first)

    def kinds_of(self, chosen: Bools) -> Ints:
        """Places in KINDS of those that were discarded."""
        params, tail = self._params, 1 - (1 - self._params.regression_alpha)
        worse = self.broken(chosen)
        undecided = np.zeros(self.rows.size, dtype=np.bool_)
        for key, each in self.plans.items():
            group, delta0 = self._seen(each.objective.workload, chosen), each.delta0
            weights = each.objective.weights
            is_worse, any_there = self._each(
                group,
                weights,
                lambda x: signed_rank_p(-x, delta0) <= params.regression_alpha,  # noqa: B023
            )
            possible, _ = self._each(group, weights, lambda x: bounds(x, tail)[1] >= params.mei)
            capped = (self.results[key].action == Action.CAP) | (each.plan.mei_eff > params.mei)
            worse |= is_worse
            undecided |= ~is_worse & capped & (possible | ~any_there)
        kinds = np.where(undecided, KINDS.index("inconclusive"), KINDS.index("discard_no_effect"))
        return np.where(worse, KINDS.index("discard_regression"), kinds)
