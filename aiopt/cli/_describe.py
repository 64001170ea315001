"""One line of text for each kind of event."""

import math
from collections.abc import Sequence

from aiopt.cli._text import duration, effects_text, one_line, short
from aiopt.events import (
    AblationMeasured,
    ArtifactBuilt,
    AuditMeasured,
    BudgetSpent,
    CalibrationFailed,
    CalibrationMeasured,
    CampaignFinished,
    CampaignInterrupted,
    CampaignResumed,
    CampaignStarted,
    CandidateProposed,
    CandidateRejected,
    Effect,
    EnvironmentObserved,
    Event,
    EvidenceCaptured,
    ExperimentFinished,
    ExperimentStarted,
    GateFailed,
    GatePassed,
    IncumbentChanged,
    LevelCharged,
    LookTaken,
    MachineUnfit,
    MeasuringPaused,
    MechanismChecked,
    MetricUnreadable,
    PairScheduled,
    PairVoided,
    PatchRef,
    ProfilerUnavailable,
    ProposalDeclined,
    RunMeasured,
    SourcePrepared,
    StageFinished,
    StageStarted,
    VerdictReached,
)
from aiopt.stats import percent
from aiopt.views import effect_view, primary_effects

__all__ = ["describe"]


def describe(event: Event) -> str:
    """What the event says, on one line; everything is in `aiopt log --json`."""
    parts = (_campaign, _stage, _measurement, _statistics)
    found = next((text for text in (part(event) for part in parts) if text), "")
    return one_line(found or _fields(event))


def _campaign(event: Event) -> str:
    match event:
        case CampaignStarted():
            proposer = event.config.get("proposer", "?")
            return f"{event.target} in {event.environment}, proposer {proposer}, seed {event.seed}"
        case CampaignResumed():
            return f"{event.processes_killed} processes killed"
        case CampaignInterrupted() | CampaignFinished():
            return event.reason
        case EnvironmentObserved():
            facts = event.facts
            return f"{event.environment}: {facts.get('cpu_model', '?')}, {facts.get('kernel', '?')}"
        case BudgetSpent():
            return f"{event.what}: {event.amount:g} {event.unit}"
        case CandidateProposed():
            how = f"by {event.proposer}" if event.proposer else event.operator
            who = f"{_names(event.genome)} ({event.candidate}) {how}"
            return f"#{event.number} {who}: {event.hypothesis}".removesuffix(": ")
        case ProposalDeclined():
            return f"{event.operator}: {event.proposer} has nothing for {_names(event.genome)}"
        case CandidateRejected():
            return f"#{event.number} {event.reason.replace('_', ' ')}: {event.detail}"
        case IncumbentChanged():
            return f"{event.previous} -> {event.candidate} by {short(event.experiment)}"
        case ExperimentStarted():
            name = f"{_names(event.genome)} ({event.candidate})"
            return f"{event.purpose} {name} against {event.incumbent}"
        case ExperimentFinished():
            return f"{event.outcome} {event.detail}"
        case _:
            return ""


def _names(genome: Sequence[PatchRef]) -> str:
    """The last patches, for they are what is new as a rule."""
    names = [patch.name for patch in genome[-_NAMES:]]
    more = [f"{len(genome) - _NAMES} more"] if len(genome) > _NAMES else []
    return " + ".join([*more, *names]) or "baseline"


_NAMES = 3


def _stage(event: Event) -> str:
    match event:
        case StageStarted():
            # A profiler's script is many lines; the log has it whole.
            words = ("…" if "\n" in word else word for word in event.argv)
            return f"{event.stage} {event.run} {' '.join(words)}"
        case StageFinished():
            end = f"exit {event.exit_code}" if event.signal is None else f"signal {event.signal}"
            took = f"{duration(event.seconds)}, {event.peak_rss_bytes / 1e6:.0f} MB"
            return f"{event.stage} {event.run} {event.outcome} ({end}, {took})"
        case SourcePrepared():
            return f"tree {event.tree[:12]}"
        case ArtifactBuilt():
            same = " (the incumbent's)" if event.digest == event.incumbent_digest else ""
            return f"{event.files} files, {event.digest[:12]}{same}"
        case GatePassed():
            return event.gate
        case GateFailed():
            return f"{event.gate}: {event.detail}"
        case _:
            return ""


def _measurement(event: Event) -> str:
    match event:
        case PairScheduled():
            rebuild = f" rebuild {event.layout}" if event.layout else ""
            return f"{_pair(event)} order {event.order}{rebuild}"
        case RunMeasured():
            samples = (
                f"{name}={','.join(f'{value:g}' for value in values)}"
                for name, values in sorted(event.metrics.items())
            )
            return f"{_pair(event)} {event.arm} {' '.join(samples)}"
        case PairVoided():
            return f"{_pair(event)}: {event.reason}"
        case MetricUnreadable():
            return f"{_pair(event)} {event.arm} {event.metric}: {event.found}"
        case EvidenceCaptured():
            found = ", ".join(finding.where for finding in event.findings[:3])
            counts = f"{len(event.scalars)} scalars, {len(event.findings)} findings"
            return f"{event.profiler} {event.workload}: {counts}{': ' if found else ''}{found}"
        case MechanismChecked():
            return f"{event.profiler} {event.status.replace('_', ' ')}: {event.detail}"
        case ProfilerUnavailable():
            return f"{event.profiler} {event.status.replace('_', ' ')}: {event.reason}"
        case VerdictReached():
            biased = event.stage == "screen"
            text = _effects(event.effects, biased=biased) or event.reason
            needs = f"; about {event.pairs_needed} pairs would tell" if event.pairs_needed else ""
            return f"{event.kind.replace('_', ' ')}: {text}{needs}"
        case AuditMeasured():
            return f"{event.final} against {event.baseline}: {_effects(event.effects)}"
        case AblationMeasured():
            state = "supported" if event.supported else "unsupported"
            if not event.separable:
                return f"{event.final} without {event.without[:12]}: not separable: {event.detail}"
            return f"{event.final} without {event.without[:12]}, {state}: {_effects(event.effects)}"
        case _:
            return ""


def _statistics(event: Event) -> str:
    match event:
        case CalibrationMeasured():
            plan = (
                f"{event.n2} pairs show that it holds within {math.expm1(event.mei_eff):.0%}"
                if event.role == "guard"
                else f"{percent(event.mei_eff):.1%} can be proved with {event.n1} + {event.n2}"
            )
            warnings = "".join(f"; {warning}" for warning in event.warnings)
            name = f"{event.metric} ({event.workload})"
            return f"{name}: pairs differ by {event.sd_pair:.2%}, {plan}{warnings}"
        case CalibrationFailed():
            return f"{event.cause.replace('_', ' ')}: {event.detail}"
        case MeasuringPaused():
            return f"for {duration(event.seconds)}: {event.reason}"
        case MachineUnfit():
            return event.reason
        case LevelCharged():
            spent = f"spent {event.spent:.3g}, left {event.left:.3g}"
            return f"#{event.number} is charged {event.charged:.2g}: {spent}"
        case LookTaken():
            name = f"{event.purpose} {event.metric} ({event.workload})"
            p = f"p {event.p:.2g} of {event.level:.2g}"
            effect = f"effect {event.effect:+.4f}, sd {event.sd:.4f}"
            return f"{name} after {event.pairs} pairs: {p}, {effect}: {event.action}"
        case _:
            return ""


def _pair(event: PairScheduled | RunMeasured | PairVoided | MetricUnreadable) -> str:
    again = f" attempt {event.attempt}" if event.attempt else ""
    return f"{event.purpose} {event.workload} {event.index}{again}"


def _effects(effects: tuple[Effect, ...], *, biased: bool = False) -> str:
    return effects_text(primary_effects(effect_view(effect, biased=biased) for effect in effects))


def _fields(event: Event) -> str:
    """For a kind of event that nothing above knows."""
    return str(event).partition("(")[2].rstrip(")")
