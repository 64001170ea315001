"""Effects as they are shown.

They keep the logged numbers (natural logs of cost ratios, positive is better) and add the
percentage that is saved.
"""

from collections.abc import Iterable

from attrs import frozen

from aiopt.events import Effect, PairPurpose
from aiopt.pairs import effects_of, pairs_by_purpose
from aiopt.replay import CampaignState, ExperimentState
from aiopt.stats import Direction, percent
from aiopt.verdict import RULES

__all__ = [
    "EffectView",
    "effect_view",
    "effects_of_verdict",
    "estimates",
    "percent_of",
    "primary_effects",
]


@frozen(kw_only=True)
class EffectView:
    """One effect, also as the percentage by which it is better; None: there is no bound.

    Of a cost that is what is saved, of a rate what is gained.
    """

    metric: str
    workload: str
    role: str
    state: str
    pairs: int
    effect: float | None
    low: float | None
    high: float | None
    p: float | None
    better_percent: float | None
    better_percent_low: float | None
    better_percent_high: float | None
    biased: bool = False
    """From pairs that also decided when to stop: the truth is likely to be nearer to 0."""


def percent_of(effect: float | None, direction: Direction = "lower") -> float | None:
    """An effect (natural log) as a percentage that is better, as it is shown."""
    return None if effect is None else round(100 * percent(effect, direction), 4)


def effect_view(effect: Effect, *, biased: bool = False) -> EffectView:
    """An effect as it is shown."""
    return EffectView(
        metric=effect.metric,
        workload=effect.workload,
        role=effect.role,
        state=effect.state,
        pairs=effect.pairs,
        effect=effect.effect,
        low=effect.low,
        high=effect.high,
        p=effect.p,
        better_percent=percent_of(effect.effect, effect.direction),
        better_percent_low=percent_of(effect.low, effect.direction),
        better_percent_high=percent_of(effect.high, effect.direction),
        biased=biased,
    )


def effects_of_verdict(experiment: ExperimentState) -> tuple[EffectView, ...]:
    """Those of the verdict, of the audit or of the ablation; none if there is no such outcome."""
    verdict = experiment.verdict
    if verdict is not None:
        biased = verdict.stage == "screen"
        return tuple(effect_view(effect, biased=biased) for effect in verdict.effects)
    measured = experiment.audit or experiment.ablation
    return tuple(effect_view(effect) for effect in measured.effects) if measured else ()


def primary_effects(effects: Iterable[EffectView]) -> tuple[EffectView, ...]:
    """Those that decide: the primaries, or the composite that stands for them."""
    return tuple(effect for effect in effects if effect.role == "primary")


def estimates(campaign: CampaignState, experiment: ExperimentState) -> tuple[EffectView, ...]:
    """What the pairs say so far about the primaries, before there is an outcome."""
    purpose = _purpose(experiment)
    if purpose is None:
        return ()
    found = effects_of(campaign.params, experiment.facts, purpose)
    main = campaign.params.main
    biased = purpose == "screen" and RULES[campaign.started.rule].calibrated
    return primary_effects(
        effect_view(effect, biased=biased) for effect in found if effect.workload in main
    )


def _purpose(experiment: ExperimentState) -> PairPurpose | None:
    """Of the pairs that an estimate is made from."""
    match experiment.started.purpose:
        case "audit":
            return "audit"
        case "ablation":
            return "ablation"
        case "candidate":
            measured = pairs_by_purpose(experiment.facts)
            confirming = any(purpose == "confirm" for purpose, _ in measured)
            return "confirm" if confirming else "screen"
        case _:
            return None  # the same source on both sides
