"""One experiment as the exported texts tell of it."""

from collections.abc import Mapping, Sequence
from statistics import median

from attrs import frozen

from aiopt.events import Effect, Event, ExperimentStarted, PairPurpose, RunMeasured
from aiopt.pairs import pairs_of
from aiopt.replay import CampaignState, ExperimentState, ProposalState

__all__ = ["Experiment", "middle", "parent_of", "runs_of"]


@frozen(kw_only=True)
class Experiment:
    """An experiment within its campaign."""

    campaign: CampaignState
    state: ExperimentState
    others: Sequence[Event]
    """Those of its events that the fold lets go of."""
    names: Mapping[str, str]
    """What every experiment of the export is called, by its stream."""

    @property
    def started(self) -> ExperimentStarted:
        return self.state.started

    @property
    def name(self) -> str:
        return self.names[self.state.stream]

    @property
    def purpose(self) -> PairPurpose:
        """Of the pairs that count most; a baseline has none, but runs of its own."""
        return _main_purpose(self.state)

    @property
    def proposal(self) -> ProposalState | None:
        return self.campaign.proposals.get(self.started.number)

    @property
    def hypothesis(self) -> str:
        if self.started.purpose == "baseline":
            return "The unmodified source: what all candidates are compared with."
        if self.started.purpose == "audit":
            return "The final source against the unmodified one, on fresh pairs."
        proposal = self.proposal
        return (proposal.proposed.hypothesis if proposal else "") or "none was given"

    @property
    def parent(self) -> ExperimentState | None:
        return parent_of(self.campaign, self.state)

    def runs(self, workload: str, arm: str) -> list[RunMeasured]:
        return runs_of(self.state, workload, arm)

    def value(self, metric: str, workload: str, arm: str) -> float | None:
        return middle(self.runs(workload, arm), metric)

    @property
    def effects(self) -> tuple[Effect, ...]:
        """Of the audit or the verdict."""
        decided = self.state.audit or self.state.verdict
        return decided.effects if decided is not None else ()

    @property
    def deciding(self) -> tuple[str, str]:
        """The metric and workload of the table: what improved, else the first primary."""
        params = self.campaign.params
        improved = [e for e in self.effects if e.state == "improved" and e.metric in params.metrics]
        if improved:
            best = min(improved, key=lambda effect: (effect.p is None, effect.p))
            return best.metric, best.workload
        primaries = [n for n, m in params.metrics.items() if m.role == "primary"]
        return primaries[0], params.main[0]


def parent_of(campaign: CampaignState, experiment: ExperimentState) -> ExperimentState | None:
    """The experiment that first measured the incumbent: never the experiment itself."""
    for other in campaign.experiments.values():
        same = other.started.candidate == experiment.started.incumbent
        if same and other.stream != experiment.stream:
            return other
    return None


def _main_purpose(experiment: ExperimentState) -> PairPurpose:
    purposes: Mapping[str, PairPurpose] = {"baseline": "check", "audit": "audit"}
    return purposes.get(experiment.started.purpose, "screen")


def runs_of(experiment: ExperimentState, workload: str, arm: str) -> list[RunMeasured]:
    """The runs of one arm in complete pairs; a baseline has single runs, all of arm B."""
    purpose, facts = _main_purpose(experiment), experiment.facts
    if purpose == "check":
        runs = [e for e in facts if isinstance(e, RunMeasured) and e.workload == workload]
        return runs if arm == "B" else []
    pairs = [*pairs_of(facts, purpose, workload), *pairs_of(facts, "guard", workload)]
    return [pair.a if arm == "A" else pair.b for pair in pairs]


def middle(runs: Sequence[RunMeasured], metric: str) -> float | None:
    """The median over the runs of each run's median."""
    values = [median(run.metrics[metric]) for run in runs if run.metrics.get(metric)]
    return median(values) if values else None
