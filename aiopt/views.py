"""Read models: what people and programs want to see of a campaign, as values.

Everything here is pure and made of the fold (`aiopt.replay`) and of events. The command line, the
export and reports print these values, and none of them computes its own.

Effects keep the logged numbers (natural logs of cost ratios, positive is better) and add the
percentage that is saved.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import fields, frozen, has

from aiopt.events import (
    Effect,
    Event,
    EvidenceCaptured,
    GateFailed,
    GatePassed,
    MetricUnreadable,
    PairPurpose,
    PairScheduled,
    PairVoided,
    ProfilerUnavailable,
    RunMeasured,
    StageFinished,
    StageStarted,
)
from aiopt.ids import short_name
from aiopt.pairs import effects_of
from aiopt.replay import CampaignState, ExperimentState, ProposalState
from aiopt.stats import percent

__all__ = [
    "AuditView",
    "CandidateRow",
    "EffectView",
    "EvidenceRow",
    "ExperimentView",
    "GateRow",
    "PairRow",
    "StageRow",
    "Summary",
    "audit_view",
    "baseline_failed",
    "candidate_row",
    "candidate_table",
    "effect_view",
    "estimates",
    "evidence_table",
    "experiment_view",
    "gate_table",
    "is_finished",
    "pair_table",
    "primary_effects",
    "short",
    "stage_table",
    "summary",
    "to_json",
]


# ---- effects ----


@frozen(kw_only=True)
class EffectView:
    """One effect, also as the percentage of the cost that is saved; None: there is no bound."""

    metric: str
    workload: str
    role: str
    state: str
    pairs: int
    effect: float | None
    low: float | None
    high: float | None
    p: float | None
    saved_percent: float | None
    saved_percent_low: float | None
    saved_percent_high: float | None


def _saved(effect: float | None) -> float | None:
    return None if effect is None else round(100 * percent(effect), 4)


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
        saved_percent=_saved(effect.effect),
        saved_percent_low=_saved(effect.low),
        saved_percent_high=_saved(effect.high),
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


# ---- tables of one experiment ----


@frozen(kw_only=True)
class StageRow:
    """One stage that was started; `outcome` is `cut off` if nothing says how it ended."""

    stage: str
    run: str
    attempt: int
    outcome: str
    exit_code: int | None
    signal: int | None
    seconds: float | None
    cpu_seconds: float | None
    peak_rss_mb: float | None
    argv: tuple[str, ...]
    log: str | None
    """Blob with its output."""


def stage_table(events: Iterable[Event]) -> tuple[StageRow, ...]:
    """The stages in the order in which they were started."""
    started: list[StageStarted] = []
    finished: dict[tuple[str, int, str], list[StageFinished]] = {}
    for event in events:
        match event:
            case StageStarted():
                started.append(event)
            case StageFinished():
                key = (event.stage, event.attempt, event.run)
                finished.setdefault(key, []).append(event)
            case _:
                pass
    return tuple(_stage_row(stage, finished) for stage in started)


def _stage_row(
    stage: StageStarted, finished: Mapping[tuple[str, int, str], list[StageFinished]]
) -> StageRow:
    ends = finished.get((stage.stage, stage.attempt, stage.run), [])
    end = ends.pop(0) if ends else None
    return StageRow(
        stage=stage.stage,
        run=stage.run,
        attempt=stage.attempt,
        outcome=end.outcome if end else "cut off",
        exit_code=end.exit_code if end else None,
        signal=end.signal if end else None,
        seconds=end.seconds if end else None,
        cpu_seconds=end.cpu_seconds if end else None,
        peak_rss_mb=round(end.peak_rss_bytes / 1e6, 3) if end else None,
        argv=stage.argv,
        log=end.log if end else None,
    )


@frozen(kw_only=True)
class GateRow:
    """A yes/no check before measuring."""

    gate: str
    passed: bool
    detail: str
    log: str | None


def gate_table(events: Iterable[Event]) -> tuple[GateRow, ...]:
    """The checks in order."""
    found = []
    for event in events:
        match event:
            case GatePassed():
                found.append(GateRow(gate=event.gate, passed=True, detail="", log=None))
            case GateFailed():
                found.append(
                    GateRow(gate=event.gate, passed=False, detail=event.detail, log=event.log)
                )
            case _:
                pass
    return tuple(found)


@frozen(kw_only=True)
class PairRow:
    """One attempt at a pair: the samples of both arms, or why it does not count."""

    purpose: str
    workload: str
    index: int
    attempt: int
    order: str
    a: Mapping[str, tuple[float, ...]] | None
    """Of the incumbent; None: not measured."""
    b: Mapping[str, tuple[float, ...]] | None
    void: str
    unreadable: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether it counts."""
        return self.a is not None and self.b is not None and not self.void


def pair_table(events: Iterable[Event]) -> tuple[PairRow, ...]:
    """The pairs in the order in which they were scheduled."""
    events = tuple(events)
    runs: dict[tuple[str, str, int, int, str], RunMeasured] = {}
    voids: dict[tuple[str, str, int, int], str] = {}
    unreadable: dict[tuple[str, str, int, int], list[str]] = {}
    for event in events:
        match event:
            case RunMeasured():
                runs[*_pair_key(event), event.arm] = event
            case PairVoided():
                voids[_pair_key(event)] = event.reason
            case MetricUnreadable():
                text = f"{event.metric} ({event.arm}): {event.found}"
                unreadable.setdefault(_pair_key(event), []).append(text)
            case _:
                pass
    rows = []
    for event in events:
        if isinstance(event, PairScheduled):
            key = _pair_key(event)
            a, b = runs.get((*key, "A")), runs.get((*key, "B"))
            rows.append(
                PairRow(
                    purpose=event.purpose,
                    workload=event.workload,
                    index=event.index,
                    attempt=event.attempt,
                    order=event.order,
                    a=a.metrics if a else None,
                    b=b.metrics if b else None,
                    void=voids.get(key, ""),
                    unreadable=tuple(unreadable.get(key, ())),
                )
            )
    return tuple(rows)


def _pair_key(
    event: PairScheduled | RunMeasured | PairVoided | MetricUnreadable,
) -> tuple[str, str, int, int]:
    return event.purpose, event.workload, event.index, event.attempt


@frozen(kw_only=True)
class EvidenceRow:
    """What one profiler found, or why it found nothing."""

    profiler: str
    status: str
    reason: str
    fix: str
    scalars: Mapping[str, tuple[float, str]]
    """Name to value and unit."""
    stacks: str | None
    artifact: str | None


def evidence_table(events: Iterable[Event]) -> tuple[EvidenceRow, ...]:
    """The profilers in the order in which they ran."""
    found = []
    for event in events:
        match event:
            case EvidenceCaptured():
                scalars = {name: (s.value, s.unit) for name, s in sorted(event.scalars.items())}
                found.append(
                    EvidenceRow(
                        profiler=event.profiler,
                        status="measured",
                        reason="",
                        fix="",
                        scalars=scalars,
                        stacks=event.stacks,
                        artifact=event.artifact,
                    )
                )
            case ProfilerUnavailable():
                found.append(
                    EvidenceRow(
                        profiler=event.profiler,
                        status=event.status,
                        reason=event.reason,
                        fix=event.fix,
                        scalars={},
                        stacks=None,
                        artifact=None,
                    )
                )
            case _:
                pass
    return tuple(found)


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


# ---- tables of one campaign ----


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


def _patch_name(genome: tuple[Any, ...]) -> str:
    return str(genome[-1].name) if genome else "baseline"


@frozen(kw_only=True)
class AuditView:
    """The final source against the baseline on fresh pairs."""

    experiment: str
    final: str
    effects: tuple[EffectView, ...]


def audit_view(campaign: CampaignState) -> AuditView | None:
    """The audit of the present incumbent, if it was made."""
    for experiment in campaign.audits():
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


# ---- JSON ----


def to_json(value: Any) -> Any:
    """A view as plain JSON data: objects under the names of the fields, streams in full."""
    if has(type(value)):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(type(value))}
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def short(stream: str | None) -> str:
    """`exp-0007`, or a dash where there is no stream."""
    return short_name(stream) if stream else "-"
