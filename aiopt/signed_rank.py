"""The rule `signed-rank`: an exact test at a fixed number of pairs.

Each pair ran its two arms side by side in the order of a coin that was logged first, so if the
candidate changes nothing, the sign of each log ratio is a fair coin whatever the noise of the
machine, and the exact one-sided signed-rank test holds its level. A primary is improved if the test
rejects "better by at most `delta0`" at `alpha` shared among the primaries (Bonferroni). Guards, and
the primaries that did not improve, are non-inferiority tests on the same pairs.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from aiopt.events import ArtifactBuilt, Effect, Event, GateFailed, VerdictReached
from aiopt.pairs import Pair, composite, differences, effect_of, next_turn, pairs_of
from aiopt.rules import MetricRule, NeedsMore, RuleParams
from aiopt.stats import Direction, best_case_p, signed_rank_p, upper_bound

__all__ = ["SignedRank"]


@frozen
class SignedRank:
    """The exact one-sided signed-rank test at a fixed number of
    pairs, curtailed when it can no longer reject.
    """

    id: str = "signed-rank"
    version: int = 1

    def decide(self, params: RuleParams, events: Sequence[Event]) -> VerdictReached | NeedsMore:
        """See `Rule.decide`."""
        gate = _gate(events)
        if gate is not None:
            return self._verdict(*gate, ())
        screens = {name: pairs_of(events, "screen", name) for name in params.main}
        answers = _answers_differ(params, [*screens.values()])
        if answers:
            return self._verdict("invalid", answers, ())
        objectives = list(self._objectives(params, screens))
        least = min(len(pairs) for pairs in screens.values())
        over_limit = _over_limit(params, screens)
        improved = any(effect.state == "improved" for effect in objectives)
        undecided = not improved and not over_limit and least < params.pairs
        if undecided and not (self._hopeless(params, screens) or self._broken(params, screens)):
            return next_turn(params.main, screens, "screen", params.pairs)
        shown = [effect for effect in objectives if effect.state == "improved" or not improved]
        effects = [*shown, *self._others(params, screens, objectives, improved)]
        if over_limit:
            return self._verdict("discard_regression", over_limit, effects)
        broken = [effect for effect in effects if effect.state == "broken"]
        if not improved and not broken:
            return self._verdict(*self._not_kept(params, screens, objectives, least), effects)
        if not broken and params.guard_workloads:
            guards = {name: pairs_of(events, "guard", name) for name in params.guard_workloads}
            answers = _answers_differ(params, [*guards.values()])
            if answers:
                return self._verdict("invalid", answers, effects)
            if min(len(pairs) for pairs in guards.values()) < params.guard_pairs:
                return next_turn(params.guard_workloads, guards, "guard", params.guard_pairs)
            effects += self._guard_effects(params, guards)
            broken = [effect for effect in effects if effect.state == "broken"]
        if broken:
            return self._verdict(
                "discard_regression", _name("worse beyond its margin", broken), effects
            )
        unresolved = [effect for effect in effects if effect.state == "unresolved"]
        if unresolved:
            text = _name("may be worse beyond its margin; more pairs would tell", unresolved)
            return self._verdict("inconclusive", text, effects)
        better = [effect for effect in effects if effect.state == "improved"]
        return self._verdict("keep", _name("proved better", better), effects)

    def _objectives(
        self, params: RuleParams, screens: Mapping[str, Sequence[Pair]]
    ) -> Iterator[Effect]:
        level = self._level(params)
        for workload, pairs in screens.items():
            for name, weights in params.objectives.items():
                d = composite(pairs, weights, params)
                complete = d is not None and len(d) >= params.pairs
                p = signed_rank_p(d, params.delta0) if d and complete else None
                state = "improved" if p is not None and p <= level else "unproved"
                yield effect_of(
                    name, workload, "primary", _direction(params, name), d, len(pairs), p, state
                )

    def _level(self, params: RuleParams) -> float:
        return params.alpha / (len(params.objectives) * len(params.main))

    def _hopeless(self, params: RuleParams, screens: Mapping[str, Sequence[Pair]]) -> bool:
        """Whether no objective could still reject, whatever the remaining pairs bring.

        Stopping then changes no decision, so it costs nothing of the level. Not before four pairs:
        fewer give no estimate.
        """
        for pairs in screens.values():
            if len(pairs) < 4:
                return False
            for weights in params.objectives.values():
                d = composite(pairs, weights, params)
                if d is not None and best_case_p(d, params.pairs, params.delta0) <= self._level(
                    params
                ):
                    return False
        return True

    def _broken(self, params: RuleParams, screens: Mapping[str, Sequence[Pair]]) -> bool:
        """Whether something is proved to be worse beyond its margin already.

        Looking after every pair can only add discards, so the level of a keep is untouched.
        """
        for pairs in screens.values():
            for name, metric in params.metrics.items():
                guards = metric.role in ("primary", "guard") and metric.limit is None
                if metric.kind == "digest" or not guards:
                    continue
                d = differences(pairs, name, metric.direction)
                if d and _is_worse(d, metric.margin, params.guard_alpha):
                    return True
        return False

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
        better = {(e.metric, e.workload) for e in objectives if e.state == "improved"}
        for workload, pairs in screens.items():
            for name, metric in params.metrics.items():
                if metric.kind != "number" or (name, workload) in better:
                    continue
                d = differences(pairs, name, metric.direction)
                if metric.role == "primary" and not improved and not params.weights:
                    continue  # already listed as an objective that was not proved
                if metric.limit is not None:
                    state = "held" if _beyond(metric, name, pairs) is None else "broken"
                    yield effect_of(
                        name, workload, "guard", metric.direction, d, len(pairs), None, state
                    )
                elif metric.role == "info":
                    yield effect_of(name, workload, "info", metric.direction, d, len(pairs))
                else:
                    yield self._guarded(params, name, workload, d, len(pairs), metric.margin)

    def _guard_effects(
        self, params: RuleParams, guards: Mapping[str, Sequence[Pair]]
    ) -> Iterator[Effect]:
        for workload, pairs in guards.items():
            margin = params.workloads[workload].margin
            for name, metric in params.metrics.items():
                if metric.kind != "number":
                    continue
                d = differences(pairs, name, metric.direction)
                if metric.limit is not None:
                    state = "held" if _beyond(metric, name, pairs) is None else "broken"
                    yield effect_of(
                        name, workload, "guard", metric.direction, d, len(pairs), None, state
                    )
                elif metric.role == "primary":
                    yield self._guarded(params, name, workload, d, len(pairs), margin)
                else:
                    yield effect_of(name, workload, "info", metric.direction, d, len(pairs))

    def _guarded(
        self,
        params: RuleParams,
        name: str,
        workload: str,
        d: Sequence[float] | None,
        pairs: int,
        margin: float,
    ) -> Effect:
        """Non-inferiority: H0 "worse by at least the margin", tested on the log scale."""
        direction = params.metrics[name].direction
        if not d:
            return effect_of(name, workload, "guard", direction, d, pairs, None, "unresolved")
        bound = math.log1p(margin)
        p = signed_rank_p(d, -bound)
        if p <= params.guard_alpha:
            state = "held"
        elif _is_worse(d, margin, params.guard_alpha):
            state = "broken"
        else:
            state = "unresolved"
        return effect_of(name, workload, "guard", direction, d, pairs, p, state)

    def _not_kept(
        self,
        params: RuleParams,
        screens: Mapping[str, Sequence[Pair]],
        objectives: Sequence[Effect],
        least: int,
    ) -> tuple[str, str]:
        worse, open_ = [], []
        for effect in objectives:
            d = composite(screens[effect.workload], params.objectives[effect.metric], params)
            if d is None:
                continue
            if signed_rank_p([-x for x in d], params.delta0) <= params.regression_alpha:
                worse.append(effect)
            elif least >= params.pairs and upper_bound(d, 0.90) >= params.mei:
                open_.append(effect)
        if worse:
            return "discard_regression", _name("worse", worse)
        if open_:
            text = f"an effect of {params.mei:.0%} is neither proved nor excluded in {least} pairs"
            return "inconclusive", _name(text, open_)
        if least < params.pairs:
            return (
                "discard_no_effect",
                f"stopped after {least} of {params.pairs} pairs: "
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


def _direction(params: RuleParams, objective: str) -> Direction:
    """Of a primary; a composite is a cost."""
    metric = params.metrics.get(objective)
    return metric.direction if metric is not None else "lower"


def _is_worse(d: Sequence[float], margin: float, alpha: float) -> bool:
    """Whether these log ratios prove a loss of more than the margin."""
    return signed_rank_p([-x for x in d], math.log1p(margin)) <= alpha


def _gate(events: Iterable[Event]) -> tuple[str, str] | None:
    for event in events:
        match event:
            case GateFailed():
                return "invalid", f"{event.gate}: {event.detail}"
            case ArtifactBuilt() if event.digest == event.incumbent_digest:
                return "no_change", "the build produced the incumbent's files"
            case _:
                continue
    return None


def _answers_differ(params: RuleParams, measured: Sequence[Sequence[Pair]]) -> str:
    for name, metric in params.metrics.items():
        if metric.kind != "digest":
            continue
        for pair in (pair for pairs in measured for pair in pairs):
            a, b = pair.a.texts.get(name), pair.b.texts.get(name)
            if a != b:
                return (
                    f"{name} under workload {pair.a.workload}: incumbent {a}, candidate {b}; "
                    "they must be equal"
                )
    return ""


def _beyond(metric: MetricRule, name: str, pairs: Sequence[Pair]) -> float | None:
    """The first value of the candidate beyond the metric's limit, or None."""
    if metric.limit is None:
        return None
    for pair in pairs:
        for value in pair.b.metrics.get(name, ()):
            beyond = value > metric.limit if metric.direction == "lower" else value < metric.limit
            if beyond:
                return value
    return None


def _over_limit(params: RuleParams, measured: Mapping[str, Sequence[Pair]]) -> str:
    for workload, pairs in measured.items():
        for name, metric in params.metrics.items():
            value = _beyond(metric, name, pairs)
            if value is not None:
                return f"{name} ({workload}): {value:g}, beyond its limit of {metric.limit}"
    return ""


def _name(text: str, effects: Sequence[Effect]) -> str:
    return f"{', '.join(f'{effect.metric} ({effect.workload})' for effect in effects)}: {text}"
