"""Does the log decide what it says? Every decision in it, made anew from the events before it.

Verdicts, looks, calibrations, audits and ablations are outputs: they are logged because they had
consequences, and must follow, byte for byte, from the pairs.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from attrs import fields, frozen, has

from aiopt.audit import ablation_of, audit_of
from aiopt.calibration import calibration_of
from aiopt.codec import encode
from aiopt.events import Event
from aiopt.replay import CampaignState, ExperimentState, LogState
from aiopt.rules import NeedsMore
from aiopt.verdict import RULES

__all__ = ["Contradiction", "Reproduction", "reproduce"]


@frozen(kw_only=True)
class Contradiction:
    """A decision that does not follow from the events."""

    experiment: str
    differs: str
    """Which fields of which event; or what there is instead of it."""
    logged: str
    """The type of the event, and what it says."""
    recomputed: str


@frozen(kw_only=True)
class Reproduction:
    """What came of deciding anew."""

    decisions: int
    contradictions: tuple[Contradiction, ...]
    not_checked: tuple[tuple[str, str], ...]
    """Experiments and why: a rule or a version of it that this aiopt does not have."""


def reproduce(state: LogState) -> Reproduction:
    """Every decision of a log, made anew."""
    decisions, contradictions, not_checked = 0, [], []
    for campaign in state.campaigns.values():
        for experiment in campaign.experiments.values():
            reason = _unknown_rule(campaign, experiment)
            if reason:
                not_checked.append((experiment.stream, reason))
                continue
            for logged, recomputed in _decisions(campaign, experiment):
                decisions += 1
                if _text(logged) != _text(recomputed):
                    contradictions.append(
                        Contradiction(
                            experiment=experiment.stream,
                            differs=_difference(logged, recomputed),
                            logged=_text(logged),
                            recomputed=_text(recomputed),
                        )
                    )
    return Reproduction(
        decisions=decisions,
        contradictions=tuple(contradictions),
        not_checked=tuple(not_checked),
    )


def _unknown_rule(campaign: CampaignState, experiment: ExperimentState) -> str:
    started = campaign.started
    rule = RULES.get(started.rule)
    if rule is None:
        return f"no rule {started.rule}"
    if rule.version != started.rule_version:
        return f"rule {rule.id} version {started.rule_version}; this aiopt has {rule.version}"
    return ""


Decision = Event | NeedsMore | Sequence[Event]


def _decisions(
    campaign: CampaignState, experiment: ExperimentState
) -> Iterator[tuple[Decision, Decision]]:
    """What was logged, and what it should be."""
    params, rule = campaign.params, RULES[campaign.started.rule]
    events = campaign.evidence(experiment)
    if experiment.verdict is not None:
        yield experiment.verdict, rule.decide(params, events)
        yield experiment.looks, list(rule.looks(params, events))
    if experiment.calibration or experiment.failure is not None:
        outcome = calibration_of(params, events)
        logged: Decision = experiment.failure or experiment.calibration
        yield logged, list(outcome) if isinstance(outcome, tuple) else outcome
    if experiment.audit is not None:
        audit = experiment.audit
        yield audit, audit_of(audit.baseline, audit.final)(params, events)
    if experiment.ablation is not None and experiment.ablation.separable:
        ablation = experiment.ablation
        yield ablation, ablation_of(ablation.final, ablation.without)(params, events)


def _difference(logged: Decision, recomputed: Decision) -> str:
    kind: Any = type(logged)
    name = kind.__name__
    if kind is not type(recomputed) or not has(kind):
        return f"{name} instead of: {_text(recomputed)[:80]}"
    found = [f.name for f in fields(kind) if getattr(logged, f.name) != getattr(recomputed, f.name)]
    return f"{name} differs in {', '.join(found)}"


def _text(decision: Decision) -> str:
    if isinstance(decision, NeedsMore):
        return f"needs {decision.missing} more pairs of the purpose {decision.purpose}"
    if isinstance(decision, Sequence):
        return "; ".join(_text(event) for event in decision) or "nothing"
    return f"{type(decision).__name__} {encode(decision)[2]}"
