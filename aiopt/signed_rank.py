"""The rule `signed-rank`: an exact test at a fixed number of pairs.

Each pair ran its two arms side by side in the order of a coin that was logged first, so if the
candidate changes nothing, the sign of each log ratio is a fair coin whatever the noise of the
machine, and the exact one-sided signed-rank test holds its level. A primary is improved if the test
rejects "better by at most `delta0`" at `alpha` shared among the primaries (Bonferroni). Guards, and
the primaries that did not improve, are non-inferiority tests on the same pairs.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from aiopt.events import Effect, Event, LookTaken, VerdictReached
from aiopt.guards import (
    answers_differ,
    failed_gate,
    guard_effects,
    is_worse,
    main_margins,
    name_all,
    over_limit,
    workload_margins,
)
from aiopt.pairs import Pair, composite, differences, effect_of, needs, pairs_by_purpose
from aiopt.rules import NeedsMore, RuleParams
from aiopt.stats import best_case_p, signed_rank_p, smallest_n, upper_bound

__all__ = ["SignedRank"]


_PAIRS = 8


@frozen
class SignedRank:
    """The exact one-sided signed-rank test at a fixed number of
    pairs, curtailed when it can no longer reject.
    """

    id: str = "signed-rank"
    version: int = 1
    calibrated: bool = False

    def problems(self, params: RuleParams) -> Iterator[tuple[str, str]]:
        """See `Rule.problems`."""
        shared = len(params.objectives)
        if params.pairs is not None and 2.0**-params.pairs > params.alpha / shared:
            yield (
                "pairs",
                f"{params.pairs} can never prove anything at alpha = {params.alpha:g} shared "
                f"among {shared}; at least {smallest_n(params.alpha / shared)}",
            )
        if 2.0**-params.guard_pairs > params.guard_alpha:
            yield (
                "guard_pairs",
                f"{params.guard_pairs} can never prove that a guard holds at "
                f"{params.guard_alpha:g}; at least {smallest_n(params.guard_alpha)}",
            )

    def decide(self, params: RuleParams, events: Sequence[Event]) -> VerdictReached | NeedsMore:
        """See `Rule.decide`."""
        gate = failed_gate(events)
        if gate is not None:
            return self._verdict(*gate, ())
        measured = pairs_by_purpose(events)
        screens = {
            name: [*measured.get(("screen", name), ()), *measured.get(("confirm", name), ())]
            for name in params.main
        }
        answers = answers_differ(params, screens.values())
        if answers:
            return self._verdict("invalid", answers, ())
        planned = _planned(params)
        screens = {name: pairs[:planned] for name, pairs in screens.items()}
        objectives = list(self._objectives(params, screens, planned))
        least = min(len(pairs) for pairs in screens.values())
        beyond = over_limit(params, screens.values())
        improved = any(effect.state == "improved" for effect in objectives)
        undecided = not improved and not beyond and least < planned
        if undecided and not (_hopeless(params, screens, planned) or _broken(params, screens)):
            missing = needs("screen", dict.fromkeys(params.main, planned), screens)
            assert missing is not None
            return evolve(missing, maybe_fewer=True)
        shown = [effect for effect in objectives if effect.state == "improved" or not improved]
        effects = [*shown, *self._others(params, screens, objectives, improved)]
        if beyond:
            return self._verdict("discard_regression", beyond, effects)
        broken = [effect for effect in effects if effect.state == "broken"]
        if not improved and not broken:
            return self._verdict(*self._not_kept(params, screens, planned), effects)
        if not broken and params.guard_workloads:
            guards = {name: measured.get(("guard", name), ()) for name in params.guard_workloads}
            answers = answers_differ(params, guards.values())
            if answers:
                return self._verdict("invalid", answers, effects)
            wanted = dict.fromkeys(params.guard_workloads, params.guard_pairs)
            missing = needs("guard", wanted, guards)
            if missing is not None:
                return missing
            effects += self._guard_effects(params, guards)
            broken = [effect for effect in effects if effect.state == "broken"]
        if broken:
            text = name_all("worse beyond its margin", broken)
            return self._verdict("discard_regression", text, effects)
        unresolved = [effect for effect in effects if effect.state == "unresolved"]
        if unresolved:
            text = name_all("may be worse beyond its margin; more pairs would tell", unresolved)
            return self._verdict("inconclusive", text, effects)
        better = [effect for effect in effects if effect.state == "improved"]
        return self._verdict("keep", name_all("proved better", better), effects)

    def looks(self, params: RuleParams, events: Sequence[Event]) -> Sequence[LookTaken]:
        """None: every pair is looked at, for what can still be proved."""
        return ()

    def _objectives(
        self, params: RuleParams, screens: Mapping[str, Sequence[Pair]], planned: int
    ) -> Iterator[Effect]:
        level = _level(params)
        for objective in params.objectives:
            pairs = screens[objective.workload]
            d = composite(pairs, objective.weights, params)
            p = signed_rank_p(d, params.delta0) if d and len(d) >= planned else None
            state = "improved" if p is not None and p <= level else "unproved"
            direction = params.direction_of(objective.metric)
            yield effect_of(*objective.key, "primary", direction, d, len(pairs), p, state)

    def _others(
        self,
        params: RuleParams,
        screens: Mapping[str, Sequence[Pair]],
        objectives: Sequence[Effect],
        improved: bool,
    ) -> Iterator[Effect]:
        """Guards and info metrics on the screen's pairs, and the
        primaries that did not improve, as guards.
        """
        listed = {
            (e.metric, e.workload) for e in objectives if not improved or e.state == "improved"
        }
        for workload, pairs in screens.items():
            for effect in guard_effects(
                params, workload, pairs, main_margins(params), level=params.guard_alpha
            ):
                if (effect.metric, workload) not in listed:
                    yield effect

    def _guard_effects(
        self, params: RuleParams, guards: Mapping[str, Sequence[Pair]]
    ) -> Iterator[Effect]:
        for workload, pairs in guards.items():
            margins = workload_margins(params, workload)
            yield from guard_effects(params, workload, pairs, margins, level=params.guard_alpha)

    def _not_kept(
        self, params: RuleParams, screens: Mapping[str, Sequence[Pair]], planned: int
    ) -> tuple[str, str]:
        worse, open_ = [], []
        least = min(len(pairs) for pairs in screens.values())
        for objective in params.objectives:
            d = composite(screens[objective.workload], objective.weights, params)
            if d is None:
                continue
            if signed_rank_p([-x for x in d], params.delta0) <= params.regression_alpha:
                worse.append(objective)
            elif least >= planned and upper_bound(d, 0.90) >= params.mei:
                open_.append(objective)
        if worse:
            return "discard_regression", name_all("worse", worse)
        if open_:
            text = f"an effect of {params.mei:.0%} is neither proved nor excluded in {least} pairs"
            return "inconclusive", name_all(text, open_)
        if least < planned:
            return (
                "discard_no_effect",
                f"stopped after {least} of {planned} pairs: "
                "no outcome of the others could prove a gain",
            )
        return "discard_no_effect", f"no gain proved in {least} pairs"

    def _verdict(self, kind: Any, reason: str, effects: Iterable[Effect]) -> VerdictReached:
        return VerdictReached(
            kind=kind,
            reason=reason,
            effects=tuple(effects),
            rule=self.id,
            rule_version=self.version,
        )


def _level(params: RuleParams) -> float:
    return params.alpha / len(params.objectives)


def _planned(params: RuleParams) -> int:
    """As given, or 8, or what the shared level needs."""
    if params.pairs is not None:
        return params.pairs
    return max(_PAIRS, smallest_n(_level(params)))


def _hopeless(params: RuleParams, screens: Mapping[str, Sequence[Pair]], planned: int) -> bool:
    """Whether no objective could still reject, whatever the remaining pairs bring.

    Stopping then changes no decision, so it costs nothing of the level. Not before four pairs:
    fewer give no estimate.
    """
    if min(len(pairs) for pairs in screens.values()) < 4:
        return False
    for objective in params.objectives:
        d = composite(screens[objective.workload], objective.weights, params)
        if d is not None and best_case_p(d, planned, params.delta0) <= _level(params):
            return False
    return True


def _broken(params: RuleParams, screens: Mapping[str, Sequence[Pair]]) -> bool:
    """Whether something is proved to be worse beyond its margin already.

    Looking after every pair can only add discards, so the level of a keep is untouched.
    """
    for pairs in screens.values():
        for name, margin in main_margins(params).items():
            d = differences(pairs, name, params.metrics[name].direction)
            if d and is_worse(d, margin, params.guard_alpha):
                return True
    return False
