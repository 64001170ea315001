"""One stage of a candidate for all objectives that take part in it.

Workloads advance together, pair by pair. The stage ends at the first look at which an objective
passes, or when the last objective has ended.
"""

from collections.abc import Iterator, Mapping, Sequence

from attrs import frozen

from aiopt.events import LookTaken, PairPurpose
from aiopt.pairs import Pair, composite, needs, ten_digits
from aiopt.rules import NeedsMore, Objective, RuleParams
from aiopt.sequential import Stage, StageResult, take

__all__ = ["StageProgress", "advance"]


@frozen(kw_only=True)
class StageProgress:
    """How far a stage has come."""

    params: RuleParams
    purpose: PairPurpose
    pairs: Mapping[str, Sequence[Pair]]
    """By main workload, up to the last look."""
    stages: Mapping[tuple[str, str], Stage]
    results: Mapping[tuple[str, str], StageResult]
    rounds: int
    """Pairs of each workload at the last look."""
    missing: NeedsMore | None
    """What the next look needs; None if the stage is over."""

    @property
    def passed(self) -> frozenset[tuple[str, str]]:
        """The objectives that passed at the look that ended the stage."""
        return frozenset(
            key
            for key, result in self.results.items()
            if result.passed and result.looks[-1].k == self.rounds
        )

    def differences(self, objective: Objective) -> Sequence[float]:
        """The log ratios of one objective up to the last look."""
        return composite(self.pairs[objective.workload], objective.weights, self.params) or []

    def capped(self, objective: Objective) -> bool:
        """Whether the objective ended undecided, with all the pairs that were planned."""
        result = self.results.get(objective.key)
        return result is not None and result.capped

    @property
    def least_p(self) -> float | None:
        """At the last look, of the objective that it is least for."""
        last = [
            [look.p for look in result.looks if look.k <= self.rounds][-1:]
            for result in self.results.values()
        ]
        return min((p for found in last for p in found), default=None)

    @property
    def level(self) -> float:
        """What all objectives together might use at the look that was passed."""
        levels = [self.results[key].looks[-1].level for key in self.passed]
        return max(levels) * len(self.results)

    def looks(self) -> Iterator[LookTaken]:
        """In the order in which they were taken."""
        taken = [
            (look, key)
            for key, result in self.results.items()
            for look in result.looks
            if look.k <= self.rounds
        ]
        for look, (metric, workload) in sorted(taken, key=lambda each: each[0].k):
            yield LookTaken(
                purpose=self.purpose,
                workload=workload,
                metric=metric,
                pairs=look.k,
                p=ten_digits(look.p),
                level=ten_digits(look.level),
                used=ten_digits(look.used),
                effect=ten_digits(look.effect),
                sd=ten_digits(look.sd),
                action=look.action,
            )


def advance(
    params: RuleParams,
    purpose: PairPurpose,
    pairs: Mapping[str, Sequence[Pair]],
    stages: Mapping[tuple[str, str], Stage],
) -> StageProgress:
    """How far these pairs take a stage.

    Args:
        params: of the rule.
        purpose: what the pairs are for.
        pairs: valid pairs of this purpose, by main workload.
        stages: the plan of each objective that takes part, by its key.
    """
    there = min(len(found) for found in pairs.values())
    results: dict[tuple[str, str], StageResult] = {}
    for objective in params.objectives:
        if objective.key in stages:
            d = composite(pairs[objective.workload][:there], objective.weights, params)
            if d is not None:  # else a run had no value: what cannot be tested holds nothing up
                results[objective.key] = take(stages[objective.key], d)
    passed = [result.looks[-1].k for result in results.values() if result.passed]
    coming = [result.next_look for result in results.values() if result.next_look is not None]
    last = max((result.looks[-1].k for result in results.values() if result.looks), default=0)
    over = bool(passed) or not coming
    rounds = min(passed) if passed else last
    return StageProgress(
        params=params,
        purpose=purpose,
        pairs={workload: found[:rounds] for workload, found in pairs.items()},
        stages=stages,
        results=results,
        rounds=rounds,
        missing=None if over else needs(purpose, dict.fromkeys(params.main, min(coming)), pairs),
    )
