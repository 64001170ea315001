"""How far the pairs of an experiment that is running are."""

from collections.abc import Mapping
from typing import Any, Literal

from attrs import frozen

from aiopt.audit import ablation_of, audit_of
from aiopt.calibration import calibration_of
from aiopt.events import PairPurpose
from aiopt.pairs import pairs_by_purpose
from aiopt.replay import CampaignState, ExperimentState
from aiopt.rules import NeedsMore, RuleParams
from aiopt.verdict import RULES, Decider, verdict_by

__all__ = ["ProgressView", "progress_view"]

Bound = Literal["exactly", "at least", "at most", "unknown"]

_DOING = {
    "calibration": "calibrating",
    "layout": "comparing rebuilds",
    "confirm": "confirmation",
    "guard": "guards",
}


@frozen(kw_only=True)
class ProgressView:
    """Pairs until the next look."""

    doing: str
    """calibrating, screen, confirmation, guards, audit, ablation, …"""
    done: Mapping[str, int]
    """Valid pairs of the workloads that are measured now."""
    wanted: Mapping[str, int]
    """Pairs that each of them will have at the next look."""
    bound: Bound
    """What the pairs that are missing say of all that are still to come: a stage that is looked at
    several times may end at any look.
    """
    text: str
    """`screen 4 of 6`, `calibrating 12 of 50 pairs (mixed)`."""

    @property
    def missing(self) -> Mapping[str, int]:
        """Workload to pairs until the next look."""
        return {name: wanted - self.done[name] for name, wanted in self.wanted.items()}


def progress_view(campaign: CampaignState, experiment: ExperimentState) -> ProgressView | None:
    """What the pairs of an experiment are for, and how many the next look needs; None if none."""
    decider = _decider(campaign, experiment)
    if decider is None:
        return None
    evidence = campaign.evidence(experiment)
    decided = decider(campaign.params, evidence)
    if not isinstance(decided, NeedsMore):
        return None
    measured = pairs_by_purpose(evidence)
    have = {name: len(measured.get((decided.purpose, name), ())) for name in decided.wanted}
    wanted = {name: n for name, n in decided.wanted.items() if have[name] < n}
    done = {name: have[name] for name in wanted}
    return ProgressView(
        doing=_DOING.get(decided.purpose, decided.purpose),
        done=done,
        wanted=wanted,
        bound=_bound(campaign, experiment),
        text=_text(campaign.params, decided.purpose, done, wanted),
    )


def _decider(campaign: CampaignState, experiment: ExperimentState) -> Decider[Any] | None:
    started = experiment.started
    match started.purpose:
        case "calibration":
            return calibration_of
        case "audit":
            return audit_of(started.incumbent, started.candidate)
        case "ablation":
            return ablation_of(started.candidate, "")
        case "candidate":
            return verdict_by(campaign.started.rule)
        case _:
            return None  # the baseline is run once, without pairs


def _bound(campaign: CampaignState, experiment: ExperimentState) -> Bound:
    match experiment.started.purpose:
        case "calibration" | "ablation":
            return "exactly"
        case "audit":
            return "at least"  # it is extended once if the interval is still too wide
        case _:
            return "unknown" if RULES[campaign.started.rule].calibrated else "at most"


def _text(
    params: RuleParams, purpose: PairPurpose, done: Mapping[str, int], wanted: Mapping[str, int]
) -> str:
    """The workloads are named unless they all are at the same place of a stage."""
    doing = _DOING.get(purpose, purpose)
    places = dict.fromkeys((done[name], n) for name, n in wanted.items())
    if purpose in ("screen", "confirm") and set(wanted) == set(params.main) and len(places) == 1:
        ((have, n),) = places
        return f"{doing} {have} of {n}"
    each = (f"{done[name]} of {n} pairs ({name})" for name, n in wanted.items())
    return f"{doing} {', '.join(each)}"
