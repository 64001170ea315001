"""A campaign, its candidates and one experiment, as far as they have come."""

from collections.abc import Iterable, Mapping

from attrs import frozen

from aiopt.events import Event, MechanismChecked
from aiopt.replay import CampaignState, ExperimentState, ProposalState
from aiopt.views.audit import AuditView, audit_view, left_out
from aiopt.views.calibration import (
    CalibrationRow,
    CalibrationView,
    calibration_rows,
    calibration_view,
)
from aiopt.views.causal import CausalView, causal_view
from aiopt.views.effects import EffectView, effects_of_verdict, percent_of, primary_effects
from aiopt.views.evidence import (
    EvidenceRow,
    evidence_table,
    instruction_flags,
    mechanism_flags,
)
from aiopt.views.tables import (
    GateRow,
    LookRow,
    PairRow,
    StageRow,
    gate_table,
    look_table,
    pair_table,
    stage_table,
)

__all__ = [
    "CandidateRow",
    "ExperimentView",
    "Summary",
    "baseline_failed",
    "candidate_row",
    "candidate_table",
    "experiment_view",
    "is_finished",
    "summary",
]


@frozen(kw_only=True)
class CandidateRow:
    """One proposal and what became of it.

    `status` is a verdict, or rejected, superseded, abandoned, running, proposed.
    """

    number: int
    experiment: str | None
    candidate: str
    patch: str
    hypothesis: str
    proposer: str
    status: str
    reason: str
    stage: str
    """The last stage entered, screen or confirm; empty if the rule has no stages. Estimates of the
    screen are biased.
    """
    pairs: int
    """Complete pairs, all workloads together."""
    seconds: float
    """Wall time of its stages."""
    p_screen: float | None
    p_confirm: float | None
    mei_eff_percent: float | None
    """The smallest gain that could have been proved."""
    needs: int | None
    """If inconclusive: about so many pairs would tell."""
    effects: tuple[EffectView, ...]
    mechanism: tuple[MechanismChecked, ...] = ()
    """Its claims, compared with the profiles of incumbent and candidate."""
    flags: tuple[str, ...] = ()
    """What of them does not hold, and what else has to be seen beside the verdict."""

    @property
    def primaries(self) -> tuple[EffectView, ...]:
        return primary_effects(self.effects)


def candidate_row(campaign: CampaignState, proposal: ProposalState) -> CandidateRow:
    """One proposal of a campaign."""
    experiment = campaign.experiment_of(proposal)
    verdict = experiment.verdict if experiment else None
    status: str = proposal.status
    reason = ""
    if proposal.rejected is not None:
        reason = f"{proposal.rejected.reason.replace('_', ' ')}: {proposal.rejected.detail}"
    elif verdict is not None:
        status, reason = verdict.kind, verdict.reason
    elif experiment is not None:
        reason = experiment.detail
    pairs = pair_table(experiment.facts) if experiment else ()
    return CandidateRow(
        number=proposal.number,
        experiment=proposal.experiment,
        candidate=proposal.proposed.candidate,
        patch=campaign.proposal_name(proposal),
        hypothesis=proposal.proposed.hypothesis,
        proposer=proposal.proposed.proposer,
        status=status,
        reason=reason,
        stage=verdict.stage if verdict else "",
        pairs=sum(pair.complete and pair.purpose != "warmup" for pair in pairs),
        seconds=round(experiment.seconds, 3) if experiment else 0.0,
        p_screen=verdict.p_screen if verdict else None,
        p_confirm=verdict.p_confirm if verdict else None,
        mei_eff_percent=percent_of(verdict.mei_eff) if verdict else None,
        needs=verdict.pairs_needed if verdict else None,
        effects=effects_of_verdict(experiment) if experiment else (),
        mechanism=tuple(experiment.mechanism) if experiment else (),
        flags=_flags(campaign, experiment, status) if experiment else (),
    )


def _flags(campaign: CampaignState, experiment: ExperimentState, status: str) -> tuple[str, ...]:
    """What a user must see beside the verdict."""
    started = experiment.started
    return (
        *mechanism_flags(status, experiment.mechanism),
        *instruction_flags(campaign, status, started.incumbent, started.candidate),
    )


def candidate_table(campaign: CampaignState) -> tuple[CandidateRow, ...]:
    """Every proposal, in order."""
    return tuple(candidate_row(campaign, p) for p in campaign.proposals.values())


@frozen(kw_only=True)
class ExperimentView:
    """Everything about one experiment."""

    experiment: str
    campaign: str
    number: int
    purpose: str
    patch: str
    """What it changes of its incumbent; of an ablation what is left out."""
    genome: tuple[tuple[str, str], ...]
    """Name and blob of each patch."""
    hypothesis: str
    candidate: str
    incumbent: str
    environment: str
    mode: str
    status: str
    reason: str
    stage: str
    p_screen: float | None
    p_confirm: float | None
    mei_eff_percent: float | None
    needs: int | None
    charged: float | None
    """What it cost of the error budget."""
    stages: tuple[StageRow, ...]
    gates: tuple[GateRow, ...]
    pairs: tuple[PairRow, ...]
    looks: tuple[LookRow, ...]
    evidence: tuple[EvidenceRow, ...]
    mechanism: tuple[MechanismChecked, ...]
    flags: tuple[str, ...]
    """What a user must see beside the verdict."""
    effects: tuple[EffectView, ...]
    """Of the verdict, of the audit or of the ablation."""
    calibration: tuple[CalibrationRow, ...]
    """If it is a calibration: what it found."""


def experiment_view(
    campaign: CampaignState, experiment: ExperimentState, events: Iterable[Event]
) -> ExperimentView:
    """One experiment; `events` are those of its stream."""
    events = tuple(events)
    started = experiment.started
    proposal = campaign.proposals.get(started.number)
    verdict = experiment.verdict
    if proposal is not None:
        row = candidate_row(campaign, proposal)
        status, reason, hypothesis = row.status, row.reason, row.hypothesis
    else:
        status, hypothesis = experiment.outcome or "running", ""
        ended = experiment.failure or experiment.ablation
        reason = (ended.detail if ended else "") or experiment.detail
    return ExperimentView(
        experiment=experiment.stream,
        campaign=campaign.stream,
        number=started.number,
        purpose=started.purpose,
        patch=left_out(campaign, experiment)
        if started.purpose == "ablation"
        else campaign.change_name(experiment),
        genome=tuple((patch.name, patch.digest) for patch in started.genome),
        hypothesis=hypothesis,
        candidate=started.candidate,
        incumbent=started.incumbent,
        environment=started.environment,
        mode=started.mode,
        status=status,
        reason=reason,
        stage=verdict.stage if verdict else "",
        p_screen=verdict.p_screen if verdict else None,
        p_confirm=verdict.p_confirm if verdict else None,
        mei_eff_percent=percent_of(verdict.mei_eff) if verdict else None,
        needs=verdict.pairs_needed if verdict else None,
        charged=experiment.charged.charged if experiment.charged else None,
        stages=stage_table(events),
        gates=gate_table(events),
        pairs=pair_table(events),
        looks=look_table(events, campaign.params),
        evidence=evidence_table(experiment.profiles, experiment.facts),
        mechanism=tuple(experiment.mechanism),
        flags=_flags(campaign, experiment, status),
        effects=effects_of_verdict(experiment),
        calibration=calibration_rows(campaign.params, experiment),
    )


@frozen(kw_only=True)
class Summary:
    """A campaign as far as it has come."""

    campaign: str
    target: str
    environment: str
    mode: str
    strategy: str
    proposer: str
    rule: str
    seed: int
    status: str
    """finished, interrupted or unfinished."""
    reason: str
    baseline: str
    incumbent: str
    kept: tuple[str, ...]
    """Names of the patches that the incumbent consists of, in order."""
    counts: Mapping[str, int]
    """How many candidates ended in which status."""
    seconds: float
    calibration: CalibrationView | None
    candidates: tuple[CandidateRow, ...]
    audit: AuditView | None
    causal: CausalView | None
    """How good causal profiles' predictions were, and where they see room."""


def summary(campaign: CampaignState) -> Summary:
    """The whole campaign at a glance."""
    started, config = campaign.started, campaign.started.config
    candidates = candidate_table(campaign)
    counts: dict[str, int] = {}
    for row in sorted(candidates, key=lambda row: row.status):
        counts[row.status] = counts.get(row.status, 0) + 1
    status = "finished" if is_finished(campaign) else "unfinished"
    if status == "unfinished" and campaign.interrupted:
        status = "interrupted"
    return Summary(
        campaign=campaign.stream,
        target=started.target,
        environment=started.environment,
        mode=str(config.get("mode", "")),
        strategy=str(config.get("strategy", "")),
        proposer=str(config.get("proposer", "")),
        rule=started.rule,
        seed=started.seed,
        status=status,
        reason=campaign.finished or _unfit(campaign),
        baseline=campaign.baseline,
        incumbent=campaign.incumbent,
        kept=tuple(patch.name for patch in campaign.incumbent_genome),
        counts=counts,
        seconds=round(sum(e.seconds for e in campaign.experiments.values()), 3),
        calibration=calibration_view(campaign),
        candidates=candidates,
        audit=audit_view(campaign),
        causal=causal_view(campaign),
    )


def _unfit(campaign: CampaignState) -> str:
    unfit = campaign.unfit
    return f"the machine is unfit: {unfit.reason}" if unfit is not None else ""


def is_finished(campaign: CampaignState) -> bool:
    """Whether nothing is left to do."""
    return campaign.finished is not None


def baseline_failed(campaign: CampaignState) -> bool:
    """Whether the unmodified source failed, so that there is nothing to go on with."""
    baselines = [e for e in campaign.experiments.values() if e.started.purpose == "baseline"]
    return bool(baselines) and all(e.outcome == "abandoned" for e in baselines)
