"""A campaign under other weights, from columns: the answer of `aiopt.rescoring.rescore`, for logs
on which that takes minutes.

Everything is computed for all experiments at once, and the values that people read are made of it
when they are asked for: the ranking's top is there without the rest. Where the rule's answer is not
certain from columns it is asked, with the events of the experiment.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from attrs import define, evolve, field, frozen

from aiopt.batch_decisions import KINDS, BatchDecisions, decide_all
from aiopt.batch_fitness import BatchCompared, BatchFitness, compare_all
from aiopt.calibration import Measured
from aiopt.columnar import OUTCOMES, PURPOSES, VERDICTS, Columns, Records, Unprojectable
from aiopt.events import CampaignStarted, Event
from aiopt.evidence import is_evidence
from aiopt.fitness import Fitness
from aiopt.ids import candidate_id
from aiopt.pair_columns import pair_columns
from aiopt.pairs import pairs_by_purpose
from aiopt.ranking import DEFAULT_FITNESS, Ranked, equal_weights, not_comparable
from aiopt.rescoring import Decision, Rescored
from aiopt.rules import NeedsMore, RuleParams, params_from, vary
from aiopt.scoring import UNFOUNDED
from aiopt.standing import ONE_SIDED, Objective, Standing
from aiopt.stats import Bools, Floats, Ints
from aiopt.two_stage import TwoStage
from aiopt.verdict import check_rule

__all__ = ["FACTS", "BatchRescored", "Source", "rescore_columns"]


_RULE = "two-stage"
_KEEP, _NEEDS_MORE = KINDS.index("keep"), KINDS.index("needs_more")


FACTS = ("ArtifactBuilt", "GateFailed", "LayoutBuilt", "LevelCharged", "PairVoided", "RunMeasured")
"""Types of events that the rule looks at."""


@frozen
class Source:
    """The columns of a log, and the events that they do not hold."""

    columns: Columns
    events: Callable[[str], Sequence[Event]]
    """Those of a stream, of the types FACTS at least."""
    event: Callable[[int], Event]
    """By its number in the log."""


def rescore_columns(
    source: Source,
    campaign: str,
    *,
    weights: Mapping[str, float] | None = None,
    params: RuleParams | None = None,
) -> "BatchRescored":
    """See `aiopt.rescoring.rescore`: the same answer under the campaign's own rule, `two-stage`.

    Raises:
        Unprojectable: under another rule, or weights of what profilers measured; or the campaign
            has something that only the fold can judge.
        ConfigError: as `rescore`.
    """
    columns = source.columns
    place = columns.campaigns.index(campaign)
    started = source.event(columns.began[place])
    assert isinstance(started, CampaignStarted)
    own = params_from(started.rule_params)
    if started.rule != _RULE or any(map(is_evidence, weights or ())):
        raise Unprojectable("only the rule two-stage, and weights of metrics")
    params = params or own
    if weights:
        params = vary(params, weights=dict(weights))
    check_rule(_RULE, params)
    records = columns.experiments
    mine = records["campaign"] == place
    judged = mine & (records["purpose"] == PURPOSES.index("candidate")) & (records["verdict"] >= 0)
    places = np.flatnonzero(judged)
    if not places.size:
        raise Unprojectable("no decision was made yet")
    pairs = pair_columns(columns, params, places)
    calibrations = _calibrations(records, mine, places)
    decisions = decide_all(
        pairs, records[places], calibrations, lambda at: source.events(columns.texts["stream"][at])
    )
    ranking = dict(weights) if weights else equal_weights(params)
    valid = records["verdict"][places] != VERDICTS.index("invalid")
    compared = compare_all(pairs, ranking, valid)
    return BatchRescored(
        campaign=campaign,
        rule=_RULE,
        weights=ranking,
        post_hoc=params != own,
        source=source,
        params=params,
        baseline=candidate_id(started.base_commit, ()),
        places=places,
        records=records[places],
        calibrations=calibrations,
        decisions=decisions,
        compared=compared,
        fitness=compared.fitness,
    )


def _calibrations(records: Records, mine: Bools, places: Ints) -> Ints:
    """Of each experiment the calibration that it is judged by; negative: none."""
    finished = (records["purpose"] == PURPOSES.index("calibration")) & (
        records["outcome"] == OUTCOMES.index("measured")
    )
    done = np.flatnonzero(mine & finished)
    before = np.searchsorted(done, places) - 1
    latest = np.where(before >= 0, done[before], -1) if done.size else np.full(places.size, -1)
    charged = records["calibration"][places]
    return np.where(charged == -1, latest, charged).astype(np.int64)


def _without_what_is_shown(params: RuleParams) -> RuleParams:
    """The same but for the metrics that no decision can depend on."""
    metrics = {
        name: metric
        for name, metric in params.metrics.items()
        if metric.role != "info"
        or metric.limit is not None
        or metric.kind == "digest"
        or name in params.weights
    }
    return evolve(params, metrics=metrics)


@define(eq=False, kw_only=True)
class BatchRescored:
    """A campaign under other weights; rows are its judged candidates, in order."""

    campaign: str
    rule: str
    weights: Mapping[str, float]
    post_hoc: bool
    source: Source
    params: RuleParams
    baseline: str
    places: Ints
    records: Records
    calibrations: Ints
    decisions: BatchDecisions
    compared: BatchCompared
    fitness: BatchFitness
    order: Ints = field(init=False)
    """Rows that are ranked, the best one first."""
    unmeasured: Ints = field(init=False)
    """Rows that are not."""
    flips: Ints = field(init=False)
    same_premise: Bools = field(init=False)
    _total: Floats = field(init=False)
    _variance: Floats = field(init=False)
    _low: Floats = field(init=False)
    _founded: Bools = field(init=False)
    """Rows whose incumbent's own standing is known."""

    def __attrs_post_init__(self) -> None:
        self._ask(self.decisions.exact)
        self._follow_incumbents()
        self._rank()
        kept = self.decisions.kinds == _KEEP
        self.flips = np.flatnonzero(kept != (self.records["verdict"] == VERDICTS.index("keep")))

    def _ask(self, rows: Bools) -> None:
        """Let the rule itself decide; what is only shown has no part in that."""
        params = _without_what_is_shown(self.params)
        texts, kinds = self.source.columns.texts, self.decisions.kinds
        rule = TwoStage()
        facts: dict[int, tuple[Sequence[Event], Measured]] = {}
        for row in np.flatnonzero(rows).tolist():
            calibration = int(self.calibrations[row])
            if calibration not in facts:
                stream = texts["stream"][calibration]
                events = self.source.events(stream) if calibration >= 0 else ()
                facts[calibration] = events, pairs_by_purpose(events)
            before, calibrated = facts[calibration]
            own = self.source.events(texts["stream"][self.places[row]])
            measured = {**calibrated, **pairs_by_purpose(own)}
            outcome = rule.decide_on(params, [*before, *own], measured)
            if isinstance(outcome, NeedsMore):
                kinds[row], self.decisions.needs[row] = _NEEDS_MORE, outcome.missing
            else:
                kinds[row] = KINDS.index(outcome.kind)

    def _code(self, candidate: str) -> int:
        known = self.source.columns.candidates
        return known.index(candidate) if candidate in known else -1

    def _follow_incumbents(self) -> None:
        """Which experiments were measured with the incumbent that there would have been."""
        incumbents = self.records["incumbent"]
        self.same_premise = np.zeros(self.places.size, dtype=np.bool_)
        incumbent, begin = self._code(self.baseline), 0
        for row in np.flatnonzero(self.decisions.kinds == _KEEP).tolist():
            self.same_premise[begin : row + 1] = incumbents[begin : row + 1] == incumbent
            begin = row + 1
            if self.same_premise[row]:
                incumbent = int(self.records["candidate"][row])
        self.same_premise[begin:] = incumbents[begin:] == incumbent

    def _rank(self) -> None:
        """Every step on top of those of its incumbent: up to the next candidate on whom others
        stand, all at once.
        """
        fitness, records = self.fitness, self.records
        measured = self.compared.comparable
        size = len(self.source.columns.candidates)
        totals, variances = np.zeros(size), np.zeros(size)
        known = np.zeros(size + 1, dtype=np.bool_)  # the last one for a baseline without records
        known[self._code(self.baseline)] = True
        variance = fitness.se * fitness.se
        self._total, own = np.zeros(self.places.size), np.zeros(self.places.size)
        self._founded = np.zeros(self.places.size, dtype=np.bool_)
        origins = np.isin(records["candidate"], np.unique(records["incumbent"])) & measured
        begin = 0
        for row in [*np.flatnonzero(origins).tolist(), self.places.size - 1]:
            part = slice(begin, row + 1)
            incumbent = records["incumbent"][part]
            self._total[part] = totals[incumbent] + fitness.value[part]
            own[part] = variances[incumbent] + variance[part]
            self._founded[part] = known[incumbent]
            begin = row + 1
            if origins[row] and self._founded[row]:
                candidate = records["candidate"][row]
                totals[candidate], variances[candidate] = self._total[row], own[row]
                known[candidate] = True
        self._low, self._variance = self._total - ONE_SIDED * np.sqrt(own), own
        measured = measured & self._founded
        rows = np.flatnonzero(measured)
        keys = (records["number"][rows], -self._total[rows], -self._low[rows])
        self.order = rows[np.lexsort(keys)]
        self.unmeasured = np.flatnonzero(~measured)

    # -- what people read --

    def __len__(self) -> int:
        """How many decisions there are."""
        return int(self.places.size)

    @property
    def parts_at(self) -> int | None:
        """The first event at which the two histories part, or None."""
        return int(self.records["verdict_seq"][self.flips].min()) if self.flips.size else None

    @property
    def open(self) -> Ints:
        """Rows of which it is not known what the decision would be, and that do not flip."""
        unknown = (self.decisions.kinds == _NEEDS_MORE) & (self.decisions.needs > 0)
        unknown[self.flips] = False
        return np.flatnonzero(unknown)

    @property
    def strangers(self) -> Ints:
        """Rows that would have been measured with another incumbent."""
        return np.flatnonzero(~self.same_premise)

    def stream(self, row: int) -> str:
        """The experiment's."""
        return self.source.columns.texts["stream"][int(self.places[row])]

    def _patch(self, row: int) -> str:
        return self.source.columns.texts["patch"][int(self.places[row])]

    def ranked(self, rows: Sequence[int]) -> tuple[Ranked, ...]:
        """Of these rows, which are ranked."""
        return tuple(map(self._ranked, rows))

    def _ranked(self, row: int) -> Ranked:
        step = self.fitness.of(row)
        assert isinstance(step, Fitness)
        total = Objective(
            value=float(self._total[row]), se=math.sqrt(self._variance[row]), step_se=step.se
        )
        incumbent = self.source.columns.candidates[int(self.records["incumbent"][row])]
        return Ranked(
            experiment=self.stream(row),
            number=int(self.records["number"][row]),
            patch=self._patch(row),
            verdict=VERDICTS[self.records["verdict"][row]],
            step=step,
            total=total.value,
            low=float(self._low[row]),
            se=total.se,
            standing=Standing(objectives=(total,), incumbent=incumbent),
        )

    def reasons(self, rows: Sequence[int]) -> tuple[tuple[str, str], ...]:
        """Experiments that are not ranked, each with the reason."""
        return tuple((self.stream(row), self._reason(row)) for row in rows)

    def _reason(self, row: int) -> str:
        if self.records["verdict"][row] == VERDICTS.index("invalid"):
            return f"invalid: {self.source.columns.texts['reason'][self.places[row]]}"
        if lacks := self.compared.lacks(row):
            return not_comparable(lacks)
        unmeasured = self.fitness.of(row)
        if isinstance(unmeasured, Fitness):
            return UNFOUNDED
        return unmeasured.reason

    def decided(self, rows: Sequence[int]) -> tuple[Decision, ...]:
        """The decisions on these rows."""
        chosen = np.zeros(len(self), dtype=np.bool_)
        chosen[list(rows)] = True
        self.decisions.named(chosen)
        return tuple(map(self._decision, rows))

    def _decision(self, row: int) -> Decision:
        kind = KINDS[self.decisions.kinds[row]]
        return Decision(
            experiment=self.stream(row),
            number=int(self.records["number"][row]),
            patch=self._patch(row),
            seq=int(self.records["verdict_seq"][row]),
            logged=VERDICTS[self.records["verdict"][row]],
            replayed=kind,
            needs_more=int(self.decisions.needs[row]) if kind == "needs_more" else 0,
            same_premise=bool(self.same_premise[row]),
        )

    def whole(self) -> Rescored:
        """All of it."""
        return self.part(self.order.tolist(), self.unmeasured.tolist(), range(len(self)))

    def part(
        self, ranked: Sequence[int], unranked: Sequence[int], decided: Sequence[int]
    ) -> Rescored:
        """Of these rows: those in `order`, those in `unmeasured`, and any."""
        return Rescored(
            campaign=self.campaign,
            rule=self.rule,
            fitness=DEFAULT_FITNESS,
            weights=self.weights,
            ranking=self.ranked(ranked),
            unranked=self.reasons(unranked),
            compared_by=tuple(name for name in self.weights if name in self.compared.used),
            lacking=self.compared.lacking,
            decisions=self.decided(decided),
            post_hoc=self.post_hoc,
            parts_at=self.parts_at,
        )
