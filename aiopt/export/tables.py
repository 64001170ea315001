"""`results.tsv`: a line for each experiment and each rejected proposal.

Columns and status words are those of autooptimization, whose tools can so read it.
`metric_value` is the candidate's median, `baseline_value` the median of all runs of the unmodified
source in the campaign under the same workload, `delta_vs_parent` compares with the incumbent's runs
in the same pairs, and `commit` is the git tree that was measured.
"""

from collections.abc import Iterable, Iterator, Mapping

from aiopt.events import GateFailed, RunMeasured, StageFinished
from aiopt.export.experiment import Experiment, middle, runs_of
from aiopt.export.figures import NOTHING, cell, delta
from aiopt.ids import short_name
from aiopt.replay import CampaignState, ProposalState

__all__ = ["COLUMNS", "rows", "table"]

COLUMNS = (
    "exp_id",
    "branch",
    "parent_branch",
    "commit",
    "metric_name",
    "metric_value",
    "baseline_value",
    "delta_vs_baseline",
    "delta_vs_parent",
    "cpu_pct",
    "latency_p99_ms",
    "error_rate",
    "pod_restarts",
    "status",
    "description",
)
"""In this order."""

_EXTRAS = ("cpu_pct", "latency_p99_ms", "error_rate", "pod_restarts")
"""Metrics with a column of their own."""
_INVALID_GATES = ("test", "harness")


def table(lines: Iterable[str]) -> str:
    """The text of the file."""
    return "\n".join(["\t".join(COLUMNS), *lines]) + "\n"


def rows(campaign: CampaignState, experiments: Iterable[Experiment]) -> Iterator[tuple[str, str]]:
    """Environment and line, in the order of the log; what was rejected comes last."""
    for experiment in experiments:
        yield experiment.started.environment, _line(_row(experiment))
    for proposal in campaign.proposals.values():
        if proposal.rejected is not None:
            yield campaign.started.environment, _line(_rejected_row(campaign, proposal))


def _line(row: Mapping[str, str]) -> str:
    return "\t".join(" ".join(row.get(column, NOTHING).split()) for column in COLUMNS)


def _branch(campaign: CampaignState, name: str) -> str:
    return f"autoopt/{campaign.started.target}/{short_name(campaign.stream)}-{name}"


def _row(experiment: Experiment) -> dict[str, str]:
    campaign, started = experiment.campaign, experiment.started
    metric, workload = experiment.deciding
    value = experiment.value(metric, workload, "B")
    baseline = middle(_baseline_runs(campaign, workload), metric)
    if started.purpose == "baseline":
        value = baseline = None if value is None else baseline
        parent, against_parent = NOTHING, delta(value, value)
    else:
        made_by = experiment.parent
        name = experiment.names[made_by.stream] if made_by else "baseline"
        parent = _branch(campaign, name)
        against_parent = delta(value, experiment.value(metric, workload, "A"))
    status, description = _status(experiment)
    return {
        "exp_id": experiment.name,
        "branch": _branch(campaign, experiment.name),
        "parent_branch": parent,
        "commit": started.tree[:8],
        "metric_name": metric,
        "metric_value": cell(value),
        "baseline_value": cell(baseline),
        "delta_vs_baseline": delta(value, baseline),
        "delta_vs_parent": against_parent,
        **{name: cell(experiment.value(name, workload, "B")) for name in _EXTRAS},
        "status": status,
        "description": description,
    }


def _rejected_row(campaign: CampaignState, proposal: ProposalState) -> dict[str, str]:
    rejected, hypothesis = proposal.rejected, proposal.proposed.hypothesis
    assert rejected is not None
    name = f"proposal-{proposal.number:04d}"
    why = f"{rejected.reason}: {rejected.detail}"
    return {
        "exp_id": name,
        "branch": _branch(campaign, name),
        "status": "invalid",
        "description": f"{why}; {hypothesis}" if hypothesis else why,
    }


def _baseline_runs(campaign: CampaignState, workload: str) -> list[RunMeasured]:
    """Every run of the unmodified source under a workload."""
    found = []
    for experiment in campaign.experiments.values():
        if experiment.started.purpose == "baseline":
            found += runs_of(experiment, workload, "B")
        elif experiment.started.incumbent == campaign.baseline:
            found += runs_of(experiment, workload, "A")
    return found


def _status(experiment: Experiment) -> tuple[str, str]:
    """Their word, and a description that begins with ours where they have none for it."""
    state, text = experiment.state, experiment.hypothesis
    proposal = experiment.proposal
    if proposal is not None and proposal.proposed.genome:
        text = f"{experiment.campaign.change_name(state)}: {text}"
    verdict = state.verdict
    gate = next((e for e in state.facts if isinstance(e, GateFailed)), None)
    if verdict is None:
        if state.outcome is None:
            return "in_progress", text
        if gate is not None:
            return _gate_status(experiment, gate), f"{gate.gate}: {gate.detail}; {text}"
        if state.outcome == "measured":
            return "keep", text
        return "discard", f"{state.outcome}: {state.detail}; {text}"
    text = f"{text} ({verdict.reason})"
    match verdict.kind:
        case "keep":
            return "keep", text
        case "inconclusive" | "no_change":
            return "discard", f"{verdict.kind}: {text}"
        case "invalid":
            return ("invalid" if gate is None else _gate_status(experiment, gate)), text
        case _:
            broken = any(effect.state == "broken" for effect in verdict.effects)
            return ("constraint_violation" if broken else "discard"), text


def _gate_status(experiment: Experiment, gate: GateFailed) -> str:
    if gate.gate in _INVALID_GATES:
        return "invalid"
    ended = [e for e in experiment.others if isinstance(e, StageFinished) and e.outcome != "ok"]
    timed_out = bool(ended) and ended[-1].outcome == "timeout"
    return "timeout" if timed_out else "crash"
