"""The fold: what a log's events add up to, and what other
weights or another rule would make of them.

`step` is pure but for one thing: it updates the containers of the state that it is given, which
the fold owns (copying them would make a long log quadratic). No clock, no randomness, no I/O. The
live campaign, `aiopt replay`, the export and the tests call this same function, so a live state
always equals the fold of what was written.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Literal

from attrs import Factory, define, evolve, frozen

from aiopt.causal import SeedCausal, seed_causal, signals_of
from aiopt.errors import ConfigError
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
    PairScheduled,
    PairVoided,
    PatchRef,
    ProfilerUnavailable,
    Recorded,
    RunMeasured,
    StageFinished,
    StageStarted,
    VerdictReached,
)
from aiopt.evidence import Change, changes_of, is_evidence, scalar_of
from aiopt.fitness import Fitness, Unmeasured, fitness_of
from aiopt.ids import candidate_id
from aiopt.rules import NeedsMore, RuleParams, params_from, vary
from aiopt.verdict import check_rule, decide

__all__ = [
    "DEFAULT_FITNESS",
    "FITNESSES",
    "CampaignState",
    "Decision",
    "ExperimentState",
    "LogState",
    "ProposalState",
    "Ranked",
    "Rescored",
    "fold",
    "rescore",
    "step",
]

DEFAULT_FITNESS = "lower-bound"
FITNESSES = (DEFAULT_FITNESS, "seed-causal")
"""What a ranking can be by."""

_ONE_SIDED = 1.6448536269514722
_THROUGHPUT = ("throughput", "ops_per_sec", "rps", "qps")
_LATENCY = ("p99",)

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
    incumbent_genome: tuple[PatchRef, ...] = ()
    incumbent_tree: str = ""
    kept: list[str] = Factory(list)
    """Streams of the experiments that changed the incumbent, in order."""
    charged: list[LevelCharged] = Factory(list)
    """What the candidates that were screened cost of the error budget, in order."""
    unfit: MachineUnfit | None = None
    rebuilds: dict[tuple[str, int], str | None] = Factory(dict)
    """Digest of each neutral rebuild, by candidate and layout."""
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
        state.campaigns[stream] = CampaignState(
            stream=stream,
            started=event,
            incumbent=candidate_id(event.base_commit, ()),
            incumbent_tree=event.base_tree,
        )
    elif isinstance(event, ExperimentStarted):
        state.campaign_of[stream] = event.campaign
        campaign = state.campaigns[event.campaign]
        campaign.experiments[stream] = ExperimentState(stream=stream, started=event)
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
        case CandidateRejected():
            proposal = campaign.proposals[event.number]
            proposal.status, proposal.rejected = "rejected", event
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
        case CampaignInterrupted():
            campaign.interrupted = True
        case MachineUnfit():
            campaign.unfit = event
        case CampaignFinished():
            campaign.finished = event.reason
        case _:
            pass


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
        case GateFailed() | PairScheduled() | RunMeasured() | PairVoided():
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


# ---- other weights, another rule ----


@frozen(kw_only=True)
class Decision:
    """One experiment, as it was decided and as it would be."""

    experiment: str
    number: int
    patch: str
    seq: int
    logged: str
    replayed: str
    """A verdict, or `needs_more`."""
    needs_more: int
    """Pairs that are missing for the replayed decision, at the most."""
    same_premise: bool
    """False if under the replayed decisions another incumbent would have been measured against."""

    @property
    def flipped(self) -> bool:
        """Whether a keep became something else, or the other way round."""
        return (self.logged == "keep") != (self.replayed == "keep")


@frozen(kw_only=True)
class Ranked:
    """A measured candidate and its fitness under the weights."""

    experiment: str
    number: int
    patch: str
    step: Fitness
    """Against the incumbent that it was measured with."""
    total: float
    """Log cost ratio against the baseline: its own step on top of those of its incumbent."""
    low: float
    """Lower 95 % confidence bound of `total`; -inf where a single pair says nothing of the spread.
    """
    seed: SeedCausal | None = None
    """The score under the fitness `seed-causal`."""


@frozen(kw_only=True)
class Rescored:
    """A campaign under other weights or another rule."""

    campaign: str
    rule: str
    fitness: str
    """What the ranking is by: a name in FITNESSES."""
    weights: Mapping[str, float]
    ranking: tuple[Ranked, ...]
    unranked: tuple[tuple[str, str], ...]
    """Experiment and the reason why it has no fitness."""
    decisions: tuple[Decision, ...]
    post_hoc: bool
    """Whether rule or parameters were chosen after the outcomes were seen, so that the error level
    which they state does not hold.
    """
    parts_at: int | None
    """The first event at which the two histories part, or None."""

    @property
    def flips(self) -> tuple[Decision, ...]:
        return tuple(decision for decision in self.decisions if decision.flipped)


def rescore(
    campaign: CampaignState,
    *,
    weights: Mapping[str, float] | None = None,
    rule: str | None = None,
    params: RuleParams | None = None,
    fitness: str = DEFAULT_FITNESS,
    guards: Mapping[str, float] | None = None,
) -> Rescored:
    """What the same events would have led to; nothing is run, and what cannot be known is said.

    Without `weights` the primaries decide as they did, and the ranking weighs them equally. The
    ranking is by the lower confidence bound of the log ratio to the baseline, or by another of
    FITNESSES; no decision depends on it.

    What profilers measured can have a weight in the ranking, as `PROFILER:SCALAR`, less being
    better, and be a guard of it: `guards` are margins by such names, and a candidate of which it is
    proved that it has more than the margin above the baseline (0.05: by 5 %) is not ranked.

    Raises:
        ConfigError: no such rule or fitness, parameters under which it could not decide, or a
        weight or guard for what the campaign did not measure.
    """
    params = params or campaign.params
    of_metrics = {name: w for name, w in (weights or {}).items() if not is_evidence(name)}
    if of_metrics:
        params = vary(params, weights=of_metrics)
    logged = campaign.started.rule
    if rule is not None and rule != logged and params.pairs == campaign.params.pairs:
        params = evolve(params, pairs=None)  # the number belonged to the logged rule
    rule = rule or logged
    check_rule(rule, params)
    if fitness not in FITNESSES:
        problem = f"{fitness!r}: there are {', '.join(FITNESSES)}"
        raise ConfigError("fitness", [("", problem)])
    ranking_weights = dict(weights) if weights else _equal_weights(params)
    incumbent = campaign.baseline
    decisions, ranking, unranked = [], [], []
    origins = {campaign.baseline: _Origin()}
    seed = _Seed(campaign, params) if fitness == "seed-causal" else None
    evidence = _Evidence(campaign, {name for name in ranking_weights if is_evidence(name)}, guards)
    for experiment in campaign.experiments.values():
        if experiment.verdict is None or experiment.started.purpose != "candidate":
            continue
        decision = _decision(campaign, experiment, rule, params, incumbent)
        decisions.append(decision)
        if decision.replayed == "keep" and decision.same_premise:
            incumbent = experiment.started.candidate
        own: Fitness | Unmeasured
        if experiment.verdict.kind == "invalid":
            own = Unmeasured(reason=f"invalid: {experiment.verdict.reason}")
        else:
            changes = evidence.changes(experiment)
            own = fitness_of(params, experiment.facts, ranking_weights, changes)
            if isinstance(own, Fitness) and (unknown := evidence.unguarded(experiment)):
                own = evolve(own, missing=tuple(sorted({*own.missing, *unknown})))
        if isinstance(own, Unmeasured):
            unranked.append((experiment.stream, own.reason))
            continue
        origin = origins.get(experiment.started.incumbent, _Origin()).after(own)
        origins[experiment.started.candidate] = origin
        if broken := evidence.broken(experiment):
            unranked.append((experiment.stream, broken))
            continue
        score = seed.score(experiment) if seed is not None else None
        if seed is not None and score is None:
            unranked.append((experiment.stream, "none of the signals of seed-causal was measured"))
            continue
        ranking.append(
            Ranked(
                experiment=experiment.stream,
                number=experiment.started.number,
                patch=_patch_name(experiment),
                step=own,
                total=origin.total,
                low=origin.low,
                seed=score,
            )
        )
    ranking.sort(key=_rank)
    flips = [decision.seq for decision in decisions if decision.flipped]
    return Rescored(
        campaign=campaign.stream,
        rule=rule,
        fitness=fitness,
        weights=ranking_weights,
        ranking=tuple(ranking),
        unranked=tuple(unranked),
        decisions=tuple(decisions),
        post_hoc=rule != logged or params != campaign.params,
        parts_at=min(flips) if flips else None,
    )


def _rank(ranked: Ranked) -> tuple[float, float, int]:
    first = ranked.seed.value if ranked.seed is not None else ranked.low
    return -first, -ranked.total, ranked.number


@frozen
class _Origin:
    """Where a candidate stands against the baseline, over the steps of its incumbents."""

    total: float = 0.0
    variance: float = 0.0

    def after(self, step: Fitness) -> "_Origin":
        return _Origin(self.total + step.value, self.variance + step.se**2)

    @property
    def low(self) -> float:
        """The steps' pairs are different ones, so their variances add up."""
        return self.total - _ONE_SIDED * math.sqrt(self.variance)


class _Evidence:
    """What profilers say of each candidate beside its incumbent."""

    def __init__(
        self, campaign: CampaignState, weighted: Iterable[str], guards: Mapping[str, float] | None
    ) -> None:
        self._profiles = _profiles_by_candidate(campaign)
        self._baseline = campaign.baseline
        self._weighted, self._guards = tuple(weighted), guards or {}
        for what, names in (("guards", self._guards), ("weights", self._weighted)):
            for name in names:
                self._check(what, name)

    def _check(self, what: str, name: str) -> None:
        if not is_evidence(name):
            problem = "expected PROFILER:SCALAR, such as callgrind:instructions"
            raise ConfigError(what, [(name, problem)])
        answers = [each for answers in self._profiles.values() for each in answers]
        if scalar_of(answers, name) is None:
            known = sorted({a.profiler for a in answers if isinstance(a, EvidenceCaptured)})
            problem = f"not measured in this campaign; its profilers: {', '.join(known) or 'none'}"
            raise ConfigError(what, [(name, problem)])

    def changes(self, experiment: ExperimentState) -> Mapping[str, Change]:
        """Against the incumbent, of what has a weight; what became infinite has no ratio."""
        found = self._of(self._weighted, experiment.started.incumbent, experiment)
        return {name: change for name, change in found.items() if math.isfinite(change.value)}

    def broken(self, experiment: ExperimentState) -> str:
        """Which guard is proved to be broken, and by how much; empty if none is."""
        for name, change in self._guarded(experiment).items():
            if -change.high > math.log1p(self._guards[name]):
                margin = f"beyond its margin of {100 * self._guards[name]:g} %"
                if math.isinf(change.value):
                    return f"{name} was 0 and is not any more, {margin}"
                more = [100 * math.expm1(-x) for x in (change.value, change.high, change.low)]
                return (
                    f"{name} changed by {more[0]:+.1f} % [{more[1]:+.1f}, {more[2]:+.1f}], {margin}"
                )
        return ""

    def unguarded(self, experiment: ExperimentState) -> frozenset[str]:
        """Guards of which candidate or baseline have no measurement."""
        return frozenset(self._guards).difference(self._guarded(experiment))

    def _guarded(self, experiment: ExperimentState) -> Mapping[str, Change]:
        """Against the baseline, as the ranking is: else it could be lost step by step."""
        return self._of(self._guards, self._baseline, experiment)

    def _of(
        self, names: Iterable[str], before: str, experiment: ExperimentState
    ) -> Mapping[str, Change]:
        sides = (self._profiles.get(each, ()) for each in (before, experiment.started.candidate))
        return changes_of(names, *sides)


def _profiles_by_candidate(
    campaign: CampaignState,
) -> dict[str, list[EvidenceCaptured | ProfilerUnavailable]]:
    found: dict[str, list[EvidenceCaptured | ProfilerUnavailable]] = {}
    for experiment in campaign.experiments.values():
        for answer in experiment.profiles:
            found.setdefault(answer.candidate, []).append(answer)
    return found


class _Seed:
    """The signals of the seed's fitness, candidate by candidate, in the order of the log."""

    def __init__(self, campaign: CampaignState, params: RuleParams) -> None:
        self._params = params
        self._throughput = _seed_metric(params, _THROUGHPUT)
        self._latency = _seed_metric(params, _LATENCY)
        self._profiles = _profiles_by_candidate(campaign)
        self._baseline = signals_of(self._profiles.get(campaign.baseline, ()), params.main[0])
        self._totals: dict[str | None, dict[str, float]] = {
            name: {campaign.baseline: 0.0} for name in (self._throughput, self._latency)
        }

    def score(self, experiment: ExperimentState) -> SeedCausal | None:
        candidate = experiment.started.candidate
        throughput = self._total(experiment, self._throughput)
        latency = self._total(experiment, self._latency)
        signals = evolve(
            signals_of(self._profiles.get(candidate, ()), self._params.main[0]),
            throughput=None if throughput is None else math.exp(throughput),
            latency=None if latency is None else math.exp(-latency),
        )
        return seed_causal(signals, self._baseline)

    def _total(self, experiment: ExperimentState, metric: str | None) -> float | None:
        """Log ratio of one metric against the baseline, positive is better."""
        before = self._totals[metric].get(experiment.started.incumbent)
        if metric is None or before is None:
            return None
        own = fitness_of(self._params, experiment.facts, {metric: 1.0})
        if isinstance(own, Unmeasured):
            return None
        total = self._totals[metric][experiment.started.candidate] = before + own.value
        return total


def _seed_metric(params: RuleParams, words: tuple[str, ...]) -> str | None:
    """The first metric whose name has one of the words in it."""
    return next((name for name in params.metrics if any(word in name for word in words)), None)


def _equal_weights(params: RuleParams) -> dict[str, float]:
    primaries = [name for name, metric in params.metrics.items() if metric.role == "primary"]
    return {name: 1 / len(primaries) for name in primaries}


def _patch_name(experiment: ExperimentState) -> str:
    genome = experiment.started.genome
    return genome[-1].name if genome else "baseline"


def _decision(
    campaign: CampaignState,
    experiment: ExperimentState,
    rule: str,
    params: RuleParams,
    incumbent: str,
) -> Decision:
    assert experiment.verdict is not None
    outcome = decide(rule, params, campaign.evidence(experiment))
    return Decision(
        experiment=experiment.stream,
        number=experiment.started.number,
        patch=_patch_name(experiment),
        seq=experiment.verdict_seq,
        logged=experiment.verdict.kind,
        replayed="needs_more" if isinstance(outcome, NeedsMore) else outcome.kind,
        needs_more=outcome.missing if isinstance(outcome, NeedsMore) else 0,
        same_premise=experiment.started.incumbent == incumbent,
    )
