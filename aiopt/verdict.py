"""The decision: from the raw events of one experiment to a verdict, or to the next pair.

`decide` is pure: no clock, no I/O, no global randomness, so a verdict can be reproduced, and
questioned under other parameters, from the log alone. `Judge` is the same function as a stepper:
ask for the next pair, tell the events of its runs, read the verdict; real campaigns and
simulations both drive it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from aiopt.events import AuditMeasured, Event, PairScheduled, VerdictReached
from aiopt.pairs import effects_of, next_turn, pairs_of
from aiopt.rules import NeedsMore, Rule, RuleParams
from aiopt.signed_rank import SignedRank
from aiopt.stats import PairStage, coin

__all__ = [
    "RULES",
    "Decider",
    "Judge",
    "Outcome",
    "audit_of",
    "decide",
    "next_pair",
    "verdict_by",
]

RULES: Mapping[str, Rule] = {rule.id: rule for rule in (SignedRank(),)}
"""Every rule, by id."""


def decide(rule: str, params: RuleParams, events: Sequence[Event]) -> VerdictReached | NeedsMore:
    """The verdict of a rule on the events of one experiment, or what is missing for it.

    Raises:
        KeyError: no such rule.
    """
    return RULES[rule].decide(params, events)


def next_pair(
    params: RuleParams, needs: NeedsMore, *, seed: int, number: int, attempt: int = 0
) -> PairScheduled:
    """The pair that is needed, with its coin: a function of seed,
    proposal, purpose, workload and index alone.

    A pair that is repeated (`attempt` above 0) keeps its order.
    """
    stage = PairStage.AUDIT if needs.purpose == "audit" else PairStage.SCREEN
    place = list(params.workloads).index(needs.workload)
    order = coin(seed, number, stage, place * 100_000 + needs.index)
    return PairScheduled(
        purpose=needs.purpose,
        workload=needs.workload,
        index=needs.index,
        attempt=attempt,
        order=order,
    )


Outcome = VerdictReached | AuditMeasured
Decider = Callable[[RuleParams, Sequence[Event]], Outcome | NeedsMore]


def verdict_by(rule: str) -> Decider:
    """`decide` by one rule, for a `Judge`."""
    return lambda params, events: decide(rule, params, events)


def audit_of(baseline: str, final: str) -> Decider:
    """Estimates of the final source against the baseline under every
    workload, from `audit_pairs` pairs of each.
    """

    def measured(params: RuleParams, events: Sequence[Event]) -> AuditMeasured | NeedsMore:
        pairs = {name: pairs_of(events, "audit", name) for name in params.workloads}
        if min(len(found) for found in pairs.values()) < params.audit_pairs:
            return next_turn(list(params.workloads), pairs, "audit", params.audit_pairs)
        return AuditMeasured(
            baseline=baseline, final=final, effects=effects_of(params, events, "audit")
        )

    return measured


class Judge:
    """One experiment, step by step: `next_pair`, then `tell` what
    was measured, until there is an `outcome`.
    """

    def __init__(
        self,
        decider: Decider,
        params: RuleParams,
        *,
        seed: int,
        number: int,
        events: Iterable[Event] = (),
    ) -> None:
        self._decider, self._params, self._seed, self._number = decider, params, seed, number
        self._events: list[Event] = []
        self._attempts: dict[tuple[str, str, int], int] = {}
        self._decided: Outcome | NeedsMore | None = None
        self.tell(*events)

    def tell(self, *events: Event) -> None:
        """What happened: PairScheduled, RunMeasured, PairVoided, gates."""
        for event in events:
            self._events.append(event)
            if isinstance(event, PairScheduled):
                key = (event.purpose, event.workload, event.index)
                self._attempts[key] = max(self._attempts.get(key, 0), event.attempt + 1)
        self._decided = None

    @property
    def events(self) -> Sequence[Event]:
        """All that it was told."""
        return tuple(self._events)

    def _now(self) -> Outcome | NeedsMore:
        if self._decided is None:
            self._decided = self._decider(self._params, self._events)
        return self._decided

    @property
    def outcome(self) -> Outcome | None:
        """None while pairs are missing."""
        decided = self._now()
        return None if isinstance(decided, NeedsMore) else decided

    @property
    def missing(self) -> int:
        """Pairs that are missing at the most."""
        decided = self._now()
        return decided.missing if isinstance(decided, NeedsMore) else 0

    def next_pair(self) -> PairScheduled | None:
        """The pair to run next; None when the outcome is there."""
        decided = self._now()
        if not isinstance(decided, NeedsMore):
            return None
        attempt = self._attempts.get((decided.purpose, decided.workload, decided.index), 0)
        return next_pair(
            self._params, decided, seed=self._seed, number=self._number, attempt=attempt
        )
