"""A campaign's result: the audit beside what its steps claimed, and what each patch is worth."""

import math
from collections.abc import Iterator

from attrs import frozen

from aiopt.audit import Shrunken, shrink
from aiopt.events import AuditMeasured, Effect
from aiopt.ids import candidate_id
from aiopt.pairs import composite, effect_of, pairs_of
from aiopt.replay import CampaignState, ExperimentState
from aiopt.rules import Objective
from aiopt.stats import mad_sd
from aiopt.views._words import plural
from aiopt.views.effects import EffectView, effect_view, percent_of, primary_effects

__all__ = [
    "AblationRow",
    "AuditView",
    "ClaimRow",
    "ShrunkenRow",
    "audit_view",
    "left_out",
    "shrunken_table",
]

_SD_FLOOR = 1e-4
_INTERVAL_IN_SE = 3.92
"""The length of a 95 % interval in standard errors, for a normal estimate."""
_SIGNED_RANK_COST = 1.0233
"""The signed-rank interval is wider than that of the mean, for normal differences: sqrt(pi/3)."""


@frozen(kw_only=True)
class ClaimRow:
    """One objective: what the kept patches claimed one by one, and what the audit measured."""

    metric: str
    workload: str
    steps: int
    """Kept patches whose estimates are added up."""
    claimed: float
    """The sum of their effects (natural log) when they were kept."""
    claimed_percent: float
    audited: EffectView
    """The result."""


@frozen(kw_only=True)
class AblationRow:
    """What one patch contributes to the final source: that source against itself without it."""

    experiment: str
    patch: str
    digest: str
    state: str
    """supported; unsupported: it is worth less than the margin; not separable: the others do not
    build or pass their tests without it.
    """
    detail: str
    effects: tuple[EffectView, ...]
    """Of the objectives."""


@frozen(kw_only=True)
class ShrunkenRow:
    """One measured candidate; its estimate, and what is left of it beside all the others."""

    metric: str
    workload: str
    number: int
    experiment: str
    patch: str
    status: str
    effect: float
    se: float
    shrunken: float
    effect_percent: float
    shrunken_percent: float


@frozen(kw_only=True)
class AuditView:
    """The final source against the baseline on fresh pairs."""

    experiment: str
    final: str
    effects: tuple[EffectView, ...]
    claims: tuple[ClaimRow, ...]
    ablation: tuple[AblationRow, ...]
    ablation_due: bool
    """Whether patches are left that no ablation has taken out."""
    shrunken: tuple[ShrunkenRow, ...]
    """For ranking only, best first."""
    sentences: tuple[str, ...]


def audit_view(campaign: CampaignState) -> AuditView | None:
    """The audit of the present incumbent, if it was made."""
    for experiment in reversed(campaign.of_purpose("audit")):
        if experiment.audit is not None and experiment.audit.final == campaign.incumbent:
            return _view(campaign, experiment, experiment.audit)
    return None


def _view(campaign: CampaignState, experiment: ExperimentState, audit: AuditMeasured) -> AuditView:
    claims = tuple(_claims(campaign, experiment, audit))
    ablation = tuple(_ablation(campaign))
    genome = campaign.incumbent_genome
    wanted = len(genome) if campaign.params.ablation_pairs and len(genome) > 1 else 0
    return AuditView(
        experiment=experiment.stream,
        final=audit.final,
        effects=tuple(effect_view(effect) for effect in audit.effects),
        claims=claims,
        ablation=ablation,
        ablation_due=len(ablation) < wanted,
        shrunken=shrunken_table(campaign),
        sentences=tuple(_sentences(campaign, ablation)),
    )


def _claims(
    campaign: CampaignState, experiment: ExperimentState, audit: AuditMeasured
) -> Iterator[ClaimRow]:
    params = campaign.params
    kept = [campaign.experiments[stream] for stream in campaign.kept]
    for objective in params.objectives:
        found = [_effect_on(objective, step) for step in kept]
        effects = [effect for effect in found if effect is not None]
        claimed = sum(effects)
        direction = params.direction_of(objective.metric)
        yield ClaimRow(
            metric=objective.metric,
            workload=objective.workload,
            steps=len(effects),
            claimed=claimed,
            claimed_percent=percent_of(claimed, direction) or 0.0,
            audited=effect_view(_audited(campaign, experiment, audit, objective)),
        )


def _effect_on(objective: Objective, experiment: ExperimentState) -> float | None:
    """What the verdict of an experiment says of an objective, whether it was claimed or not."""
    verdict = experiment.verdict
    for effect in verdict.effects if verdict is not None else ():
        if (effect.metric, effect.workload) == objective.key:
            return effect.effect
    return None


def _audited(
    campaign: CampaignState, experiment: ExperimentState, audit: AuditMeasured, objective: Objective
) -> Effect:
    """The audit's estimate of an objective; that of a composite is made from the same pairs."""
    for effect in audit.effects:
        if (effect.metric, effect.workload) == objective.key:
            return effect
    pairs = pairs_of(experiment.facts, "audit", objective.workload)
    d = composite(pairs, objective.weights, campaign.params)
    direction = campaign.params.direction_of(objective.metric)
    return effect_of(*objective.key, "primary", direction, d, len(pairs))


def left_out(campaign: CampaignState, experiment: ExperimentState) -> str:
    """Name of the patch that an ablation measures the final source without."""
    started = experiment.started
    for place, patch in enumerate(started.genome):
        rest = [p.digest for p in (*started.genome[:place], *started.genome[place + 1 :])]
        if candidate_id(campaign.started.base_commit, rest) == started.incumbent:
            return patch.name
    return "?"


def _ablation(campaign: CampaignState) -> Iterator[AblationRow]:
    """Of each patch of the incumbent, in the order in which they were kept."""
    found = {
        experiment.ablation.without: experiment
        for experiment in campaign.of_purpose("ablation")
        if experiment.ablation is not None and experiment.ablation.final == campaign.incumbent
    }
    for patch in campaign.incumbent_genome:
        experiment = found.get(patch.digest)
        measured = experiment.ablation if experiment is not None else None
        if experiment is None or measured is None:
            continue
        state = "supported" if measured.supported else "unsupported"
        yield AblationRow(
            experiment=experiment.stream,
            patch=patch.name,
            digest=patch.digest,
            state=state if measured.separable else "not separable",
            detail=measured.detail,
            effects=primary_effects(
                effect_view(effect)
                for effect in measured.effects
                if effect.workload in campaign.params.main
            ),
        )


def _sentences(campaign: CampaignState, ablation: tuple[AblationRow, ...]) -> Iterator[str]:
    steps = plural(len(campaign.kept), "kept patch", "kept patches")
    yield (
        f"The audit is the result. What is claimed beside it is the sum over {steps}, each of "
        "which was chosen."
    )
    unsupported = [row.patch for row in ablation if row.state == "unsupported"]
    if unsupported:
        margin = percent_of(campaign.params.delta0)
        yield (
            f"unsupported: {', '.join(unsupported)}: without it the final source is not worse by "
            f"more than {margin:.1f} %. Nothing was taken out; that is yours to decide."
        )


# ---- for ranking ----


def shrunken_table(campaign: CampaignState) -> tuple[ShrunkenRow, ...]:
    """All measured candidates, their estimates drawn towards the mean of all; best first for each
    objective. Empty if there are fewer than two: there is nothing to draw them towards.
    """
    rows: list[ShrunkenRow] = []
    for objective in campaign.params.objectives:
        measured = dict(_estimates(campaign, objective))
        if len(measured) > 1:
            found = shrink(measured)
            best_first = sorted(found, key=lambda stream: -found[stream].shrunken)
            rows += [_shrunken(campaign, objective, name, found[name]) for name in best_first]
    return tuple(rows)


def _estimates(
    campaign: CampaignState, objective: Objective
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Effect and standard error of each candidate that was measured, by its experiment."""
    for experiment in campaign.of_purpose("candidate"):
        for effect in experiment.verdict.effects if experiment.verdict is not None else ():
            if (effect.metric, effect.workload) == objective.key and effect.effect is not None:
                se = _standard_error(campaign, experiment, objective, effect)
                yield experiment.stream, (effect.effect, se)


def _standard_error(
    campaign: CampaignState, experiment: ExperimentState, objective: Objective, effect: Effect
) -> float:
    """From the interval; where the pairs were too few for one, from the noise of the calibration
    (or of the pairs themselves where there was none).
    """
    least = _SIGNED_RANK_COST * _SD_FLOOR / math.sqrt(effect.pairs)
    if effect.low is not None and effect.high is not None:
        return max(least, (effect.high - effect.low) / _INTERVAL_IN_SE)
    calibration = campaign.calibration_of(experiment)
    for each in calibration.calibration if calibration is not None else ():
        if (each.metric, each.workload, each.role) == (*objective.key, "primary"):
            return _SIGNED_RANK_COST * each.sd_pair / math.sqrt(effect.pairs)
    pairs = pairs_of(experiment.facts, "screen", objective.workload)
    d = composite(pairs, objective.weights, campaign.params) or []
    sd = mad_sd(d) if d else 0.0
    return max(least, _SIGNED_RANK_COST * sd / math.sqrt(effect.pairs))


def _shrunken(
    campaign: CampaignState, objective: Objective, stream: str, found: Shrunken
) -> ShrunkenRow:
    experiment = campaign.experiments[stream]
    verdict = experiment.verdict
    direction = campaign.params.direction_of(objective.metric)
    return ShrunkenRow(
        metric=objective.metric,
        workload=objective.workload,
        number=experiment.started.number,
        experiment=stream,
        patch=campaign.change_name(experiment),
        status=verdict.kind if verdict is not None else "",
        effect=found.effect,
        se=found.se,
        shrunken=found.shrunken,
        effect_percent=percent_of(found.effect, direction) or 0.0,
        shrunken_percent=percent_of(found.shrunken, direction) or 0.0,
    )
