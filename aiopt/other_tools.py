"""The decision rules of other tools (`aiopt.comparisons`) as rules over events.

They see the pairs of a campaign as runs of either arm, whatever stage those were for, so they can
be asked what they would have kept of a log. That flatters them: the runs were interleaved and the
incumbent was run anew each time, where those tools measure in blocks or against a stored score.
Guards, which they do not know, are not looked at; gates and answers are.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from attrs import evolve, frozen

from aiopt.comparisons import ComparisonRule
from aiopt.events import Effect, Event, LookTaken, VerdictReached
from aiopt.guards import answers_differ, failed_gate, name_all
from aiopt.pairs import Pair, log_costs, pairs_by_purpose, rounded
from aiopt.rules import NeedsMore, RuleParams

__all__ = ["OtherTool"]


@frozen
class OtherTool:
    """One rule of another tool."""

    comparison: ComparisonRule
    version: int = 1
    calibrated: bool = False

    @property
    def id(self) -> str:
        return self.comparison.id

    def problems(self, params: RuleParams) -> Iterator[tuple[str, str]]:
        """See `Rule.problems`."""
        if params.pairs is not None and params.pairs < self.comparison.least:
            yield "pairs", f"{params.pairs}: {self.id} needs at least {self.comparison.least}"

    def decide(self, params: RuleParams, events: Sequence[Event]) -> VerdictReached | NeedsMore:
        """See `Rule.decide`."""
        gate = failed_gate(events)
        if gate is not None:
            return VerdictReached(
                kind=gate[0], reason=gate[1], effects=(), rule=self.id, rule_version=self.version
            )
        measured = pairs_by_purpose(events)
        screened = {name: measured.get(("screen", name), ()) for name in params.main}
        pairs = {
            name: [*screened[name], *measured.get(("confirm", name), ())] for name in params.main
        }
        answers = answers_differ(params, pairs.values())
        if answers:
            return VerdictReached(
                kind="invalid",
                reason=answers,
                effects=(),
                rule=self.id,
                rule_version=self.version,
            )
        runs = params.pairs or self.comparison.runs
        missing = {name: max(0, runs - len(found)) for name, found in pairs.items()}
        if any(missing.values()):
            wanted = {name: len(screened[name]) + n for name, n in missing.items()}
            return NeedsMore(purpose="screen", wanted=wanted, missing=sum(missing.values()))
        first = {name: found[:runs] for name, found in pairs.items()}
        effects = tuple(self._effects(params, first, runs))
        better = [effect for effect in effects if effect.state == "improved"]
        text = f"of {runs} runs each" if runs > 1 else "of one run each"
        return VerdictReached(
            kind="keep" if better else "discard_no_effect",
            reason=name_all("looks better", better) if better else f"not better by the rule {text}",
            effects=effects,
            rule=self.id,
            rule_version=self.version,
        )

    def looks(self, params: RuleParams, events: Sequence[Event]) -> Sequence[LookTaken]:
        """None: these rules decide once."""
        return ()

    def _effects(
        self, params: RuleParams, pairs: Mapping[str, Sequence[Pair]], runs: int
    ) -> Iterator[Effect]:
        rule = evolve(self.comparison, runs=runs)
        for objective in params.objectives:
            costs = log_costs(pairs[objective.workload], objective.weights, params)
            if costs is None:
                continue
            found = rule.judge(*([math.exp(x) for x in arm] for arm in costs))
            yield Effect(
                metric=objective.metric,
                workload=objective.workload,
                role="primary",
                direction=params.direction_of(objective.metric),
                pairs=runs,
                effect=rounded(found.effect),
                low=None,
                high=None,
                p=rounded(found.p),
                state="improved" if found.keep else "unproved",
            )
