"""The fold: what a log's events add up to.

`step` is pure but for one thing: it updates the containers of the state that it is given, which
the fold owns (copying them would make a long log quadratic). No clock, no randomness, no I/O. The
live campaign, `aiopt replay`, the export and the tests call this same function, so a live state
always equals the fold of what was written.
"""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Literal

from attrs import Factory, define

from aiopt.events import (
    AblationMeasured,
    ArtifactBuilt,
    AuditMeasured,
    CalibrationFailed,
    CalibrationMeasured,
    CampaignFinished,
    CampaignInterrupted,
    CampaignResumed,
    CampaignStarted,
    CandidateProposed,
    CandidateRejected,
    EnvironmentObserved,
    Event,
    EvidenceCaptured,
    ExperimentFinished,
    ExperimentPurpose,
    ExperimentStarted,
    GateFailed,
    GatePassed,
    IncumbentChanged,
    LayoutBuilt,
    LevelCharged,
    LookTaken,
    MachineUnfit,
    MechanismChecked,
    Operator,
    PairScheduled,
    PairVoided,
    ProfilerUnavailable,
    ProposalDeclined,
    Recorded,
    RunMeasured,
    StageFinished,
    StageStarted,
    VerdictReached,
)
from aiopt.genome import Genome, KnownPatch, change_name
from aiopt.ids import candidate_id
from aiopt.rules import RuleParams, params_from

__all__ = [
    "CampaignState",
    "ExperimentState",
    "LogState",
    "ProposalState",
    "fold",
    "step",
]

ProposalStatus = Literal["proposed", "rejected", "running", "judged", "superseded", "abandoned"]


@define
class ExperimentState:
    """One experiment as far as it has come."""

    stream: str
    started: ExperimentStarted
    facts: list[Event] = Factory(list)
    """What a verdict is made of: gates, artifacts, pairs and runs, in order."""
    open_stages: dict[tuple[str, int, str], StageStarted] = Factory(dict)
    """Started and not finished: after a crash, what may still be running."""
    attempts: dict[tuple[str, str], int] = Factory(dict)
    """How often each (stage, run) was started."""
    artifact: str | None = None
    gates: list[str] = Factory(list)
    verdict: VerdictReached | None = None
    verdict_seq: int = 0
    audit: AuditMeasured | None = None
    ablation: AblationMeasured | None = None
    calibration: list[CalibrationMeasured] = Factory(list)
    failure: CalibrationFailed | None = None
    charged: LevelCharged | None = None
    looks: list[LookTaken] = Factory(list)
    profiles: list[EvidenceCaptured | ProfilerUnavailable] = Factory(list)
    """What each profiler said, in the order in which they ran."""
    mechanism: list[MechanismChecked] = Factory(list)
    outcome: str | None = None
    detail: str = ""
    seconds: float = 0.0
    """Wall time of its stages."""

    @property
    def is_transient(self) -> bool:
        """Whether the machinery failed and not the candidate, which may then be tried again."""
        return any(isinstance(fact, GateFailed) and fact.gate == "session" for fact in self.facts)


@define
class ProposalState:
    """One proposal and what became of it."""

    number: int
    proposed: CandidateProposed
    status: ProposalStatus = "proposed"
    rejected: CandidateRejected | None = None
    experiment: str | None = None


@define
class CampaignState:
    """One campaign as far as it has come."""

    stream: str
    started: CampaignStarted
    incumbent: str
    incumbent_genome: Genome = ()
    incumbent_tree: str = ""
    kept: list[str] = Factory(list)
    """Streams of the experiments that changed the incumbent, in order."""
    charged: list[LevelCharged] = Factory(list)
    """What the candidates that were screened cost of the error budget, in order."""
    unfit: MachineUnfit | None = None
    rebuilds: dict[tuple[str, int], str | None] = Factory(dict)
    """Digest of each neutral rebuild, by candidate and layout."""
    genomes: dict[str, Genome] = Factory(dict)
    """The patches of every candidate that was proposed or measured; none for the baseline."""
    patches: dict[str, KnownPatch] = Factory(dict)
    """Every patch of every candidate, by digest."""
    declined: set[Operator] = Factory(set)
    """What the proposer had nothing for, since it last had something or the campaign went on."""
    runs: int = 0
    """Of the workload, whatever for."""
    proposals: dict[int, ProposalState] = Factory(dict)
    experiments: dict[str, ExperimentState] = Factory(dict)
    environments: dict[str, EnvironmentObserved] = Factory(dict)
    open_stages: dict[tuple[str, int, str], StageStarted] = Factory(dict)
    """Of an incumbent that is being built again after a resume."""
    resumes: int = 0
    interrupted: bool = False
    finished: str | None = None

    @property
    def baseline(self) -> str:
        """The candidate without patches."""
        return candidate_id(self.started.base_commit, ())

    @property
    def params(self) -> RuleParams:
        return params_from(self.started.rule_params)

    @property
    def next_number(self) -> int:
        return len(self.proposals) + 1

    def unsettled(self) -> Iterator[ProposalState]:
        """Proposals that have neither been rejected nor brought to an end."""
        for proposal in self.proposals.values():
            if proposal.status in ("proposed", "running"):
                yield proposal

    def cut_off_stages(self) -> Iterator[StageStarted]:
        """Stages that were started and not finished, in this
        campaign's stream and its experiments'.
        """
        yield from self.open_stages.values()
        for experiment in self.experiments.values():
            yield from experiment.open_stages.values()

    def of_purpose(self, purpose: ExperimentPurpose) -> list[ExperimentState]:
        """The experiments of one purpose, in the order in which they began."""
        return [e for e in self.experiments.values() if e.started.purpose == purpose]

    def judged(self) -> Iterator[ExperimentState]:
        """The experiments of candidates that have a verdict, in the order in which they began."""
        for experiment in self.experiments.values():
            if experiment.verdict is not None and experiment.started.purpose == "candidate":
                yield experiment

    def change_name(self, experiment: ExperimentState) -> str:
        """What an experiment's candidate has that its incumbent has not."""
        started = experiment.started
        return change_name(self.genomes.get(started.incumbent, ()), started.genome)

    def experiment_of(self, proposal: "ProposalState") -> ExperimentState | None:
        """The latest in which the proposal was evaluated."""
        return self.experiments.get(proposal.experiment or "")

    def proposal_name(self, proposal: "ProposalState") -> str:
        """What a proposed candidate has that its incumbent, or before it was evaluated its first
        parent, has not.
        """
        experiment = self.experiment_of(proposal)
        if experiment is not None:
            return self.change_name(experiment)
        parents, genome = proposal.proposed.parents, proposal.proposed.genome
        return change_name(self.genomes.get(parents[0], ()) if parents else (), genome)

    def series(self, experiment: ExperimentState) -> int:
        """How many of its purpose began before it: their coins differ by that. Candidates have
        a number of their own.
        """
        if experiment.started.purpose == "candidate":
            return 0
        streams = [e.stream for e in self.of_purpose(experiment.started.purpose)]
        return streams.index(experiment.stream)

    @property
    def calibration(self) -> ExperimentState | None:
        """The calibration that is in force: the latest one that was finished."""
        done = [e for e in self.of_purpose("calibration") if e.outcome == "measured"]
        return done[-1] if done else None

    def calibration_of(self, experiment: ExperimentState) -> ExperimentState | None:
        """The calibration that an experiment is judged by: the one that was
        in force when it was charged, or when it began.
        """
        if experiment.charged is not None:
            return self.experiments.get(experiment.charged.calibration)
        if experiment.started.purpose == "calibration":
            return None  # it stands by itself, also where it replaces another one
        before = takewhile(lambda other: other is not experiment, self.experiments.values())
        done = [e for e in before if e.started.purpose == "calibration" and e.outcome == "measured"]
        return done[-1] if done else None

    def evidence(self, experiment: ExperimentState) -> list[Event]:
        """All that an experiment is judged by: the facts of its calibration, then its own."""
        calibration = self.calibration_of(experiment)
        return [*(calibration.facts if calibration else ()), *experiment.facts]


@define
class LogState:
    """A whole log: its campaigns, in order."""

    campaigns: dict[str, CampaignState] = Factory(dict)
    campaign_of: dict[str, str] = Factory(dict)
    """Experiment stream to campaign stream."""
    last_seq: int = 0

    def experiment(self, stream: str) -> ExperimentState:
        """Raises KeyError if there is none by this name."""
        return self.campaigns[self.campaign_of[stream]].experiments[stream]


def fold(events: Iterable[Recorded], state: LogState | None = None) -> LogState:
    """The state after these events, from an empty one or on top of a given one."""
    state = state if state is not None else LogState()
    for recorded in events:
        state = step(state, recorded)
    return state


def step(state: LogState, recorded: Recorded) -> LogState:
    """The state after one more event."""
    state.last_seq = recorded.seq
    stream, event = recorded.stream, recorded.event
    if isinstance(event, CampaignStarted):
        baseline = candidate_id(event.base_commit, ())
        state.campaigns[stream] = CampaignState(
            stream=stream,
            started=event,
            incumbent=baseline,
            incumbent_tree=event.base_tree,
            genomes={baseline: ()},
        )
    elif isinstance(event, ExperimentStarted):
        state.campaign_of[stream] = event.campaign
        campaign = state.campaigns[event.campaign]
        campaign.experiments[stream] = ExperimentState(stream=stream, started=event)
        campaign.genomes[event.candidate] = event.genome
        proposal = campaign.proposals.get(event.number)
        if proposal is not None:
            proposal.status, proposal.experiment = "running", stream
    elif stream in state.campaign_of:
        campaign = state.campaigns[state.campaign_of[stream]]
        _experiment_step(campaign, campaign.experiments[stream], recorded)
    elif stream in state.campaigns:
        _campaign_step(state.campaigns[stream], event)
    return state


def _campaign_step(campaign: CampaignState, event: Event) -> None:
    match event:
        case CandidateProposed():
            campaign.proposals[event.number] = ProposalState(number=event.number, proposed=event)
            campaign.genomes[event.candidate] = event.genome
            _learn(campaign, event)
        case CandidateRejected():
            proposal = campaign.proposals[event.number]
            proposal.status, proposal.rejected = "rejected", event
        case ProposalDeclined():
            campaign.declined.add(event.operator)
        case LayoutBuilt():
            campaign.rebuilds[event.candidate, event.layout] = event.digest
        case IncumbentChanged():
            campaign.incumbent = event.candidate
            campaign.incumbent_genome = event.genome
            campaign.incumbent_tree = event.tree
            campaign.kept.append(event.experiment)
        case StageStarted():
            campaign.open_stages[event.stage, event.attempt, event.run] = event
        case StageFinished():
            campaign.open_stages.pop((event.stage, event.attempt, event.run), None)
        case EnvironmentObserved():
            campaign.environments[event.environment] = event
        case CampaignResumed():
            campaign.open_stages.clear()  # its remains were killed before it was written
            campaign.resumes += 1
            campaign.interrupted = False
            campaign.unfit = None
            campaign.finished = None
            campaign.declined.clear()
        case CampaignInterrupted():
            campaign.interrupted = True
        case MachineUnfit():
            campaign.unfit = event
        case CampaignFinished():
            campaign.finished = event.reason
        case _:
            pass


def _learn(campaign: CampaignState, event: CandidateProposed) -> None:
    """The patches that a candidate brought."""
    if event.patch is not None:
        campaign.declined.clear()
    parts = {part.digest: part for part in event.parts}
    for patch in event.genome:
        if patch.digest in campaign.patches:
            continue
        part, count = parts.get(patch.digest), len(campaign.patches) + 1
        origin = campaign.patches.get(part.origin) if part is not None else None
        campaign.patches[patch.digest] = KnownPatch(
            ref=patch,
            seen=(origin.seen[0], count) if origin is not None else (count, 0),
            shape=part.shape if part is not None else event.shape,
            origin=part.origin if part is not None else "",
            hunks=part.hunks if part is not None else (),
        )


def _within_service(experiment: ExperimentState, event: StageFinished) -> bool:
    """Whether the stage ran beside a service, whose own time covers it."""
    return any(stage == "deploy" and run == event.run for stage, _, run in experiment.open_stages)


def _experiment_step(
    campaign: CampaignState, experiment: ExperimentState, recorded: Recorded
) -> None:
    event = recorded.event
    match event:
        case StageStarted():
            experiment.open_stages[event.stage, event.attempt, event.run] = event
            key = (event.stage, event.run)
            experiment.attempts[key] = experiment.attempts.get(key, 0) + 1
        case StageFinished():
            experiment.open_stages.pop((event.stage, event.attempt, event.run), None)
            if not _within_service(experiment, event):
                experiment.seconds += event.seconds
        case ArtifactBuilt():
            experiment.artifact, experiment.gates = event.digest, []
            experiment.facts.append(event)
        case LayoutBuilt():
            campaign.rebuilds[event.candidate, event.layout] = event.digest
            experiment.facts.append(event)
        case GatePassed():
            experiment.gates.append(event.gate)
        case RunMeasured():
            experiment.facts.append(event)
            campaign.runs += 1
        case GateFailed() | PairScheduled() | PairVoided():
            experiment.facts.append(event)
        case LevelCharged():
            experiment.charged = event
            experiment.facts.append(event)
            campaign.charged.append(event)
        case LookTaken():
            experiment.looks.append(event)
        case CalibrationMeasured():
            experiment.calibration.append(event)
        case CalibrationFailed():
            experiment.failure = event
        case EvidenceCaptured() | ProfilerUnavailable():
            experiment.profiles.append(event)
        case MechanismChecked():
            experiment.mechanism.append(event)
        case AblationMeasured():
            experiment.ablation = event
        case VerdictReached():
            experiment.verdict, experiment.verdict_seq = event, recorded.seq
        case AuditMeasured():
            experiment.audit = event
        case ExperimentFinished():
            experiment.outcome, experiment.detail = event.outcome, event.detail
            experiment.open_stages.clear()
            proposal = campaign.proposals.get(experiment.started.number)
            if proposal is not None and event.outcome != "measured":
                proposal.status = event.outcome
        case _:
            pass
