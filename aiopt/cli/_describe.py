"""One line of text for each kind of event."""

from aiopt.cli._text import duration, effects_text, one_line, short
from aiopt.events import (
    ArtifactBuilt,
    AuditMeasured,
    BudgetSpent,
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
    MetricUnreadable,
    PairScheduled,
    PairVoided,
    ProfilerUnavailable,
    RunMeasured,
    SourcePrepared,
    StageFinished,
    StageStarted,
    VerdictReached,
)
from aiopt.views import effect_view, primary_effects

__all__ = ["describe"]


def describe(event: Event) -> str:
    """What the event says, on one line; everything is in `aiopt log --json`."""
    return one_line(_campaign(event) or _stage(event) or _measurement(event) or _fields(event))


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
            name = event.genome[-1].name if event.genome else "baseline"
            who = f"{name} ({event.candidate}) by {event.proposer}"
            return f"#{event.number} {who}: {event.hypothesis}"
        case CandidateRejected():
            return f"#{event.number} {event.reason.replace('_', ' ')}: {event.detail}"
        case IncumbentChanged():
            return f"{event.previous} -> {event.candidate} by {short(event.experiment)}"
        case ExperimentStarted():
            name = event.genome[-1].name if event.genome else "baseline"
            return f"{event.purpose} {name} ({event.candidate}) against {event.incumbent}"
        case ExperimentFinished():
            return f"{event.outcome} {event.detail}"
        case _:
            return ""


def _stage(event: Event) -> str:
    match event:
        case StageStarted():
            return f"{event.stage} {event.run} {' '.join(event.argv)}"
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
            return f"{_pair(event)} order {event.order}"
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
            scalars = (f"{k}={s.value:g} {s.unit}" for k, s in sorted(event.scalars.items()))
            return f"{event.profiler}: {', '.join(scalars)}"
        case ProfilerUnavailable():
            return f"{event.profiler} {event.status.replace('_', ' ')}: {event.reason}"
        case VerdictReached():
            return f"{event.kind.replace('_', ' ')}: {_effects(event.effects) or event.reason}"
        case AuditMeasured():
            return f"{event.final} against {event.baseline}: {_effects(event.effects)}"
        case _:
            return ""


def _pair(event: PairScheduled | RunMeasured | PairVoided | MetricUnreadable) -> str:
    again = f" attempt {event.attempt}" if event.attempt else ""
    return f"{event.purpose} {event.workload} {event.index}{again}"


def _effects(effects: tuple[Effect, ...]) -> str:
    return effects_text(primary_effects(effect_view(effect) for effect in effects))


def _fields(event: Event) -> str:
    """For a kind of event that nothing above knows."""
    return str(event).partition("(")[2].rstrip(")")
