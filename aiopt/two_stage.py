"""The rule `two-stage`: screen many, confirm few on fresh pairs, within one error budget.

Each pair ran its two arms side by side in the order of a coin that was logged first, so if the
candidate changes nothing, the sign of each log ratio is a fair coin whatever the noise of the
machine, and the signed-rank tests hold their levels exactly.

1. The *calibration* (`aiopt.calibration`) plans the number of pairs from the noise that is there.
2. The *screen* is a sequential test of every objective (`aiopt.sequential`), each at its share of
   `alpha1`. It ends most candidates without effect after four to six pairs.
3. The *confirmation* tests the objectives that passed, on fresh pairs. Reported effects and
   intervals come from these pairs alone, so the luck that chose the candidate is not in them. Its
   size may depend on the screen, whose pairs it does not share: where the screen shows that the
   gain is large, fewer pairs have the same power.
4. *Guards* (`aiopt.guards`) are tested on the confirmation's pairs, guard workloads on pairs of
   their own. What stays unresolved buys more pairs once.

The probability to keep a candidate without effect is at most alpha1 * alpha2, since the two stages
share no pair; `aiopt.budget` adds that up over the campaign.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from aiopt.budget import confirm_level_of
from aiopt.calibration import (
    Calibrated,
    Measured,
    calibrate,
    guard_plan,
    guard_spread,
    missing_calibration,
)
from aiopt.events import Effect, Event, LevelCharged, LookTaken, VerdictReached
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
from aiopt.pairs import Pair, effect_of, pairs_by_purpose, rounded
from aiopt.planning import LARGEST, pairs_to_prove, replan_confirmation
from aiopt.rules import NeedsMore, Objective, RuleParams
from aiopt.sequential import Stage
from aiopt.stage_progress import StageProgress, advance
from aiopt.stats import lower_bound, signed_rank_p, upper_bound

__all__ = ["TwoStage"]


@frozen
class TwoStage:
    """Screen and confirmation, planned from a calibration."""

    id: str = "two-stage"
    version: int = 1
    calibrated: bool = True

    def problems(self, params: RuleParams) -> Iterator[tuple[str, str]]:
        """See `Rule.problems`."""
        if params.pairs is not None:
            yield "pairs", "belongs to fixed numbers (signed-rank); this rule plans its own"
        shared = len(params.objectives)
        for name, level, most in (
            ("alpha1", params.alpha1, params.cap),
            ("alpha2", params.confirm_level, int(1.5 * params.cap)),
        ):
            if 2.0**-most > level / shared:
                text = f"{level:g} shared among {shared} cannot be reached with cap = {params.cap}"
                yield name, text

    def decide(self, params: RuleParams, events: Sequence[Event]) -> VerdictReached | NeedsMore:
        """See `Rule.decide`."""
        return self.decide_on(params, events, pairs_by_purpose(events))

    def decide_on(
        self, params: RuleParams, events: Sequence[Event], measured: Measured
    ) -> VerdictReached | NeedsMore:
        """The same, where the pairs of the events are at hand."""
        gate = failed_gate(events)
        if gate is not None:
            return self._verdict(*gate)
        missing = missing_calibration(params, measured)
        if missing is not None:
            return missing
        candidate = [
            pairs
            for (purpose, _), pairs in measured.items()
            if purpose in ("screen", "confirm", "guard")
        ]
        answers = answers_differ(params, candidate)
        if answers:
            return self._verdict("invalid", answers)
        beyond = over_limit(params, candidate)
        if beyond:
            return self._verdict("discard_regression", beyond)
        course = _Course.of(params, events, measured)
        if not course.plans:
            return self._verdict("inconclusive", "the calibration has no value of any objective")
        return self._decided(course)

    def looks(self, params: RuleParams, events: Sequence[Event]) -> Sequence[LookTaken]:
        """See `Rule.looks`."""
        measured = pairs_by_purpose(events)
        if missing_calibration(params, measured) is not None:
            return ()
        course = _Course.of(params, events, measured)
        stages = [course.screen, course.confirm]
        return [look for stage in stages if stage is not None for look in stage.looks()]

    def _decided(self, course: "_Course") -> VerdictReached | NeedsMore:
        if course.screen.missing is not None:
            return course.screen.missing
        screened = _unproved(course, course.screen)
        if course.confirm is None or _in_state("broken", screened):
            return self._discarded(course, course.screen, screened)
        if course.confirm.missing is not None:
            return course.confirm.missing
        if not course.confirm.passed:
            return self._discarded(course, course.confirm, _unproved(course, course.confirm))
        better = _claims(course, course.confirm)
        found = _guards(course, course.confirm, {(e.metric, e.workload) for e in better})
        if isinstance(found, NeedsMore):
            return found
        effects = [*better, *found]
        broken = _in_state("broken", effects)
        if broken:
            text = name_all("worse beyond its margin", broken)
            return self._verdict("discard_regression", text, effects, course)
        unresolved = _in_state("unresolved", effects)
        if unresolved:
            text = name_all(
                "not shown to keep within its margin, though there is a gain", unresolved
            )
            verdict = self._verdict("inconclusive", text, effects, course)
            return evolve(verdict, pairs_needed=_pairs_to_resolve(course, unresolved))
        return self._verdict("keep", name_all("proved better", better), effects, course)

    def _discarded(
        self, course: "_Course", ended: StageProgress, effects: Sequence[Effect]
    ) -> VerdictReached:
        """What a candidate that was not confirmed is called; no level of a keep depends on it."""
        params, stage = course.params, "screen" if ended.purpose == "screen" else "confirmation"
        broken = _in_state("broken", effects)
        if broken:
            text = name_all("worse beyond its margin", broken)
            return self._verdict("discard_regression", text, effects, course)
        worse: list[Objective] = []
        open_: list[Calibrated] = []
        for each in course.plans.values():
            d = ended.differences(each.objective)
            if signed_rank_p([-x for x in d], each.delta0) <= params.regression_alpha:
                worse.append(each.objective)
            elif (ended.capped(each.objective) or each.plan.mei_eff > params.mei) and upper_bound(
                d, 1 - params.regression_alpha
            ) >= params.mei:
                open_.append(each)
        if worse:
            text = name_all("worse", worse)
            return self._verdict("discard_regression", text, effects, course)
        if open_:
            needed = max(pairs_to_prove(each.plan, params.mei, each.delta0) for each in open_)
            text = (
                f"a gain of {-math.expm1(-params.mei):.1%} is neither proved nor excluded after "
                f"{ended.rounds} pairs of the {stage}; about {needed} would tell"
            )
            reason = name_all(text, [each.objective for each in open_])
            verdict = self._verdict("inconclusive", reason, effects, course)
            return evolve(verdict, pairs_needed=needed)
        text = f"no gain worth keeping after {ended.rounds} pairs of the {stage}"
        return self._verdict("discard_no_effect", text, effects, course)

    def _verdict(
        self,
        kind: Any,
        reason: str,
        effects: Iterable[Effect] = (),
        course: "_Course | None" = None,
    ) -> VerdictReached:
        verdict = VerdictReached(
            kind=kind,
            reason=reason,
            effects=tuple(effects),
            rule=self.id,
            rule_version=self.version,
        )
        if course is None:
            return verdict
        confirm = course.confirm if course.confirm is not None and course.confirm.rounds else None
        return evolve(
            verdict,
            stage="confirm" if confirm else "screen",
            p_screen=rounded(course.screen.least_p),
            p_confirm=rounded(confirm.least_p) if confirm else None,
            mei_eff=rounded(min(each.plan.mei_eff for each in course.plans.values())),
        )


@frozen
class _Course:
    """A candidate's way through the stages, as far as its pairs go."""

    params: RuleParams
    measured: Measured
    plans: dict[tuple[str, str], Calibrated]
    screen: StageProgress
    confirm: StageProgress | None
    """None until the screen was passed."""

    @classmethod
    def of(cls, params: RuleParams, events: Sequence[Event], measured: Measured) -> "_Course":
        plans = dict(calibrate(params, measured))
        ordinal = next((e.ordinal for e in events if isinstance(e, LevelCharged)), 1)
        screens = {name: measured.get(("screen", name), ()) for name in params.main}
        stages = {key: each.screen for key, each in plans.items()}
        screen = advance(params, "screen", screens, stages)
        confirm = None
        if screen.passed:
            confirms = {name: measured.get(("confirm", name), ()) for name in params.main}
            alpha2 = confirm_level_of(params, ordinal)
            stages = {
                key: _confirmation(params, measured, each, alpha2, screen)
                for key, each in plans.items()
                if key in screen.passed
            }
            confirm = advance(params, "confirm", confirms, stages)
        return cls(params, measured, plans, screen, confirm)


def _confirmation(
    params: RuleParams,
    measured: Measured,
    calibrated: Calibrated,
    alpha2: float,
    screen: StageProgress,
) -> Stage:
    """The confirmation of one objective, whose level all that passed the screen share.

    It is planned for the effect that exceeds `mei_eff` with 95 % confidence, and no smaller than
    the guards need.
    """
    plan, objective = calibrated.plan, calibrated.objective
    proved = lower_bound(screen.differences(objective), 0.95)
    n2 = plan.n2
    if alpha2 < params.confirm_level or proved > plan.mei_eff:
        planned = replan_confirmation(
            calibrated.d,
            shift=max(plan.mei_eff, proved) - calibrated.delta0,
            alpha2=alpha2 / len(params.objectives),
            power=params.power,
            cap=params.cap,
            boot=params.boot,
        )
        least = _pairs_for_guards(params, measured, objective.workload, screen, plan.n2)
        n2 = max(planned, least) if alpha2 < params.confirm_level else max(min(n2, planned), least)
    return Stage(
        n=n2,
        alpha=alpha2 / len(screen.passed),
        first=n2,
        delta0=calibrated.delta0,
        mei=plan.mei_eff,
        sd_pair=calibrated.sd_pair,
    )


def _pairs_for_guards(
    params: RuleParams, measured: Measured, workload: str, screen: StageProgress, most: int
) -> int:
    """Pairs with which the guards of a main workload hold if nothing changes; `most` at the most,
    since those that stay unresolved buy more. What passed the screen is no guard.
    """
    sizes = [
        guard_plan(params, measured, name, workload, margin, most)[0]
        for name, margin in main_margins(params).items()
        if (name, workload) not in screen.passed
    ]
    return min(most, max(sizes, default=0))


# ---- effects ----


def _in_state(state: str, effects: Iterable[Effect]) -> list[Effect]:
    return [effect for effect in effects if effect.state == state]


def _objective_effect(
    course: _Course, progress: StageProgress, calibrated: Calibrated, state: str
) -> Effect:
    objective = calibrated.objective
    d = progress.differences(objective)
    p = signed_rank_p(d, calibrated.delta0)
    direction = course.params.direction_of(objective.metric)
    return effect_of(*objective.key, "primary", direction, d, len(d), p, state)


def _unproved(course: _Course, progress: StageProgress) -> list[Effect]:
    """Every metric on the pairs of a stage that proved no gain, or not yet."""
    params, effects = course.params, []
    margins = main_margins(params)
    for each in course.plans.values():
        margin = margins.get(each.objective.metric)
        d = progress.differences(each.objective)
        broken = margin is not None and is_worse(d, margin, params.guard_alpha)
        effects.append(
            _objective_effect(course, progress, each, "broken" if broken else "unproved")
        )
    for workload, pairs in progress.pairs.items():
        for effect in guard_effects(
            params,
            workload,
            pairs,
            margins,
            level=params.guard_first,
            spread=lambda name: guard_spread(params, course.measured, name, workload),  # noqa: B023
        ):
            if (effect.metric, workload) not in course.plans:
                effects.append(effect)
    return effects


def _claims(course: _Course, confirm: StageProgress) -> list[Effect]:
    """The objectives that may be claimed: those whose confirmation passed, and of the others those
    that Holm's procedure rejects at the level of the same look.
    """
    effects = [
        _objective_effect(course, confirm, each, "improved") for each in course.plans.values()
    ]
    effects.sort(key=lambda effect: effect.p if effect.p is not None else 1.0)
    claimed, rejecting = [], True
    for rank, effect in enumerate(effects):
        p = effect.p if effect.p is not None else 1.0
        rejecting = rejecting and p <= confirm.level / (len(effects) - rank)
        if rejecting or (effect.metric, effect.workload) in confirm.passed:
            claimed.append(effect)
    return claimed


# ---- guards ----


def _guards(
    course: _Course, confirm: StageProgress, claimed: set[tuple[str, str]]
) -> list[Effect] | NeedsMore:
    """Guards on the confirmation's pairs; if they hold, the guard workloads on pairs of their own.

    What stays unresolved buys as many pairs more as the confirmation was planned with.
    """
    params, measured = course.params, course.measured
    extra = max(course.plans[key].plan.n2 for key in confirm.stages)
    effects: list[Effect] = []
    for workload, pairs in confirm.pairs.items():
        more = measured.get(("guard", workload), ())[:extra]
        margins = {
            name: margin
            for name, margin in main_margins(params).items()
            if (name, workload) not in claimed
        }
        found = _two_looks(course, workload, pairs, more, extra, margins)
        if found is None:
            return _needs_guard(workload, extra, more)
        effects += [e for e in found if (e.metric, workload) not in claimed]
    for workload in params.guard_workloads:
        if _in_state("broken", effects) or _in_state("unresolved", effects):
            break
        margins = dict(workload_margins(params, workload))
        first = max(
            guard_plan(params, measured, name, workload, margin, 2 * extra)[0]
            for name, margin in margins.items()
        )
        pairs = measured.get(("guard", workload), ())
        if len(pairs) < first:
            return _needs_guard(workload, first, pairs)
        more = pairs[first : first + extra]
        found = _two_looks(course, workload, pairs[:first], more, extra, margins)
        if found is None:
            return _needs_guard(workload, first + extra, pairs)
        effects += found
    return effects


def _needs_guard(workload: str, wanted: int, pairs: Sequence[Pair]) -> NeedsMore:
    missing = wanted - len(pairs)
    return NeedsMore(purpose="guard", wanted={workload: wanted}, missing=missing)


def _pairs_to_resolve(course: _Course, unresolved: Sequence[Effect]) -> int | None:
    """Pairs that would show that the guards hold, if the candidate does not touch them; None if
    no number that is planned for would.
    """
    params, sizes = course.params, []
    for effect in unresolved:
        guards = params.workloads[effect.workload].guard
        margins = workload_margins(params, effect.workload) if guards else main_margins(params)
        name, workload, margin = effect.metric, effect.workload, margins[effect.metric]
        sizes.append(guard_plan(params, course.measured, name, workload, margin, LARGEST))
    return max(n for n, _ in sizes) if all(reached for _, reached in sizes) else None


def _two_looks(
    course: _Course,
    workload: str,
    pairs: Sequence[Pair],
    more: Sequence[Pair],
    extra: int,
    margins: Mapping[str, float],
) -> list[Effect] | None:
    """What the guards are after one look or two; None if the second one needs more pairs."""
    params = course.params

    def look(seen: Sequence[Pair], level: float) -> list[Effect]:
        return guard_effects(
            params,
            workload,
            seen,
            margins,
            level=level,
            spread=lambda name: guard_spread(params, course.measured, name, workload),
        )

    first = look(pairs, params.guard_first)
    if _in_state("broken", first) or not _in_state("unresolved", first):
        return first
    if len(more) < extra:
        return None
    second = look([*pairs, *more], params.guard_alpha - params.guard_first)
    return [
        later if earlier.state == "unresolved" else earlier
        for earlier, later in zip(first, second, strict=True)
    ]
