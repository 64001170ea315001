"""Effects as they are shown.

They keep the logged numbers (natural logs of cost ratios, positive is better) and add the
percentage that is saved.
"""

from collections.abc import Iterable

from attrs import frozen

from aiopt.events import Effect, PairPurpose
from aiopt.pairs import effects_of
from aiopt.replay import CampaignState, ExperimentState
from aiopt.stats import percent

__all__ = ["EffectView", "effect_view", "estimates", "primary_effects"]


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


def _better(effect: Effect, value: float | None) -> float | None:
    return None if value is None else round(100 * percent(value, effect.direction), 4)


def effect_view(effect: Effect) -> EffectView:
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
        better_percent=_better(effect, effect.effect),
        better_percent_low=_better(effect, effect.low),
        better_percent_high=_better(effect, effect.high),
    )


def primary_effects(effects: Iterable[EffectView]) -> tuple[EffectView, ...]:
    """Those that decide: the primaries, or the composite that stands for them."""
    return tuple(effect for effect in effects if effect.role == "primary")


def estimates(campaign: CampaignState, experiment: ExperimentState) -> tuple[EffectView, ...]:
    """What the pairs say so far about the primaries, before there is a verdict."""
    purpose: PairPurpose = "audit" if experiment.started.purpose == "audit" else "screen"
    found = effects_of(campaign.params, experiment.facts, purpose)
    main = campaign.params.main
    return primary_effects(effect_view(effect) for effect in found if effect.workload in main)
