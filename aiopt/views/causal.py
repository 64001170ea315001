"""How good causal profiles' predictions were on a target, and where they see room."""

import math

from attrs import frozen

from aiopt.causal import Credit, CreditSummary, Headroom, credit_of, headroom, summarise
from aiopt.events import Scalar
from aiopt.replay import CampaignState, ExperimentState
from aiopt.views.evidence import profiles_of

__all__ = ["CausalView", "CreditRow", "causal_view"]


@frozen(kw_only=True)
class CreditRow:
    """One claim about a line, what the incumbent's profile promised for it, and what came of it."""

    experiment: str
    patch: str
    metric: str
    credit: Credit
    ratio: float | None
    """Realised over predicted."""


@frozen(kw_only=True)
class CausalView:
    """A diagnostic, folded over the campaign; no verdict and no fitness is made of it."""

    headroom: Headroom | None
    """Of the incumbent: None if no causal profile of it has intervals."""
    credits: tuple[CreditRow, ...]
    summary: CreditSummary


def causal_view(campaign: CampaignState) -> CausalView | None:
    """None where no causal profile was taken."""
    room = headroom(profiles_of(campaign, campaign.incumbent))
    rows = tuple(
        row for experiment in campaign.experiments.values() for row in _rows(campaign, experiment)
    )
    if room is None and not rows:
        return None
    return CausalView(headroom=room, credits=rows, summary=summarise([row.credit for row in rows]))


def _rows(campaign: CampaignState, experiment: ExperimentState) -> list[CreditRow]:
    rows = []
    parent = profiles_of(campaign, experiment.started.incumbent)
    for check in experiment.mechanism:
        realised = _realised(experiment, check.claim.metric)
        credit = credit_of(check, realised, parent) if realised is not None else None
        if credit is not None:
            rows.append(
                CreditRow(
                    experiment=experiment.stream,
                    patch=campaign.change_name(experiment),
                    metric=check.claim.metric,
                    credit=credit,
                    ratio=credit.ratio,
                )
            )
    return rows


def _realised(experiment: ExperimentState, metric: str) -> Scalar | None:
    """The share of the time saved, from timing pairs: 1 - candidate/incumbent."""
    verdict = experiment.verdict
    for effect in verdict.effects if verdict is not None else ():
        if effect.metric == metric and effect.effect is not None:
            low, high = (
                None if bound is None else -math.expm1(-bound)
                for bound in (effect.low, effect.high)
            )
            return Scalar(value=-math.expm1(-effect.effect), unit="ratio", low=low, high=high)
    return None
