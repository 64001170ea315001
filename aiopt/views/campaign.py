"""A campaign, its candidates, one experiment and the audit, as far as they have come."""

from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from aiopt.events import Event, PatchRef
from aiopt.replay import CampaignState, ExperimentState, ProposalState
from aiopt.views.effects import EffectView, effect_view, primary_effects
from aiopt.views.tables import (
    EvidenceRow,
    GateRow,
    PairRow,
    StageRow,
    evidence_table,
    gate_table,
    pair_table,
    stage_table,
)

__all__ = [
    "AuditView",
    "CandidateRow",
    "ExperimentView",
    "Summary",
    "audit_view",
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
    pairs: int
    """Complete pairs, all workloads together."""
    seconds: float
    """Wall time of its stages."""
    effects: tuple[EffectView, ...]

    @property
    def primaries(self) -> tuple[EffectView, ...]:
        return primary_effects(self.effects)


def candidate_row(campaign: CampaignState, proposal: ProposalState) -> CandidateRow:
    """One proposal of a campaign."""
    experiment = campaign.experiments.get(proposal.experiment or "")
    verdict = experiment.verdict if experiment else None
    status: str = proposal.status
    reason = ""
    effects: tuple[EffectView, ...] = ()
    if proposal.rejected is not None:
        reason = f"{proposal.rejected.reason.replace('_', ' ')}: {proposal.rejected.detail}"
    elif verdict is not None:
        status, reason = verdict.kind, verdict.reason
        effects = tuple(effect_view(effect) for effect in verdict.effects)
    elif experiment is not None:
        reason = experiment.detail
    pairs = pair_table(experiment.facts) if experiment else ()
    return CandidateRow(
        number=proposal.number,
        experiment=proposal.experiment,
        candidate=proposal.proposed.candidate,
        patch=_patch_name(proposal.proposed.genome),
        hypothesis=proposal.proposed.hypothesis,
        proposer=proposal.proposed.proposer,
        status=status,
        reason=reason,
        pairs=sum(pair.complete for pair in pairs),
        seconds=round(experiment.seconds, 3) if experiment else 0.0,
        effects=effects,
    )


def candidate_table(campaign: CampaignState) -> tuple[CandidateRow, ...]:
    """Every proposal, in order."""
    return tuple(candidate_row(campaign, p) for p in campaign.proposals.values())


def _patch_name(genome: Sequence[PatchRef]) -> str:
    return genome[-1].name if genome else "baseline"


@frozen(kw_only=True)
class ExperimentView:
    """Everything about one experiment."""

    experiment: str
    campaign: str
    number: int
    purpose: str
    patch: str
    genome: tuple[tuple[str, str], ...]
    """Name and blob of each patch."""
    hypothesis: str
    candidate: str
    incumbent: str
    environment: str
    mode: str
    status: str
    reason: str
    stages: tuple[StageRow, ...]
    gates: tuple[GateRow, ...]
    pairs: tuple[PairRow, ...]
    evidence: tuple[EvidenceRow, ...]
    effects: tuple[EffectView, ...]
    """Of the verdict or of the audit."""


def experiment_view(
    campaign: CampaignState, experiment: ExperimentState, events: Iterable[Event]
) -> ExperimentView:
    """One experiment; `events` are those of its stream."""
    events = tuple(events)
    started = experiment.started
    proposal = campaign.proposals.get(started.number)
    if proposal is not None:
        row = candidate_row(campaign, proposal)
        status, reason, hypothesis = row.status, row.reason, row.hypothesis
    else:
        status = experiment.outcome or "running"
        reason, hypothesis = experiment.detail, ""
    measured = experiment.verdict or experiment.audit
    return ExperimentView(
        experiment=experiment.stream,
        campaign=campaign.stream,
        number=started.number,
        purpose=started.purpose,
        patch=_patch_name(started.genome),
        genome=tuple((patch.name, patch.digest) for patch in started.genome),
        hypothesis=hypothesis,
        candidate=started.candidate,
        incumbent=started.incumbent,
        environment=started.environment,
        mode=started.mode,
        status=status,
        reason=reason,
        stages=stage_table(events),
        gates=gate_table(events),
        pairs=pair_table(events),
        evidence=evidence_table(events),
        effects=tuple(effect_view(effect) for effect in measured.effects) if measured else (),
    )


@frozen(kw_only=True)
class AuditView:
    """The final source against the baseline on fresh pairs."""

    experiment: str
    final: str
    effects: tuple[EffectView, ...]


def audit_view(campaign: CampaignState) -> AuditView | None:
    """The audit of the present incumbent, if it was made."""
    for experiment in reversed(campaign.of_purpose("audit")):
        if experiment.audit is not None and experiment.audit.final == campaign.incumbent:
            return AuditView(
                experiment=experiment.stream,
                final=experiment.audit.final,
                effects=tuple(effect_view(effect) for effect in experiment.audit.effects),
            )
    return None


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
    candidates: tuple[CandidateRow, ...]
    audit: AuditView | None


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
        reason=campaign.finished or "",
        baseline=campaign.baseline,
        incumbent=campaign.incumbent,
        kept=tuple(patch.name for patch in campaign.incumbent_genome),
        counts=counts,
        seconds=round(sum(e.seconds for e in campaign.experiments.values()), 3),
        candidates=candidates,
        audit=audit_view(campaign),
    )


def is_finished(campaign: CampaignState) -> bool:
    """Whether nothing is left to do."""
    return campaign.finished is not None


def baseline_failed(campaign: CampaignState) -> bool:
    """Whether the unmodified source failed, so that there is nothing to go on with."""
    baselines = [e for e in campaign.experiments.values() if e.started.purpose == "baseline"]
    return bool(baselines) and all(e.outcome == "abandoned" for e in baselines)
