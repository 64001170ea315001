"""Experiments from beginning to end: the baseline, and candidates.

Every step is a transition of the log's fold, so an experiment that was cut off anywhere goes on
where its events end.
"""

from collections.abc import AsyncIterator, Iterable, Iterator

import anyio
from attrs import frozen

from aiopt.blobs import BlobStore
from aiopt.budget import charge
from aiopt.calibrating import ensure_calibrated
from aiopt.candidate import canonical, check_scope
from aiopt.errors import (
    AiOptError,
    PatchDoesNotApply,
    PatchError,
    PatchOutOfScope,
    SessionLost,
)
from aiopt.events import (
    Arm,
    CandidateProposed,
    CandidateRejected,
    Event,
    EvidenceCaptured,
    ExperimentFinished,
    GateFailed,
    IncumbentChanged,
    MechanismChecked,
    PairScheduled,
    PairVoided,
    ProfilerUnavailable,
    RejectReason,
    RunMeasured,
    VerdictReached,
)
from aiopt.genome import without
from aiopt.ids import short_name
from aiopt.laboratory import Change, Laboratory, earlier_of
from aiopt.lifecycle import Emit
from aiopt.measure import IncumbentFailed, Side, outcome_of, run_once
from aiopt.mechanism import Profile, check_claim, is_line
from aiopt.moved_lines import lines_after
from aiopt.profiling import ProfileRunner
from aiopt.replay import CampaignState, ExperimentState, ProposalState
from aiopt.verdict import RULES, Judge, verdict_by
from aiopt.views import profiles_of

__all__ = ["BaselineFailed", "Evaluator", "cut_off_pairs"]

_SESSION_TRIES = 3


@frozen
class _Rejection:
    reason: RejectReason
    detail: str
    duplicate_of: str | None = None
    patch: str | None = None
    clashes_with: tuple[str, ...] = ()


class BaselineFailed(AiOptError):
    """The unmodified source does not build, pass its own tests or yield its metrics."""


class Evaluator:
    """Takes the proposals of one campaign to their verdicts."""

    def __init__(self, lab: Laboratory, *, blobs: BlobStore, profilers: ProfileRunner) -> None:
        self._lab, self._blobs, self._profilers = lab, blobs, profilers
        self._journal, self._bench = lab.journal, lab.bench
        self._target, self._settings, self._backend = lab.target, lab.settings, lab.backend
        self._lost: dict[str, int] = {}
        """How often each candidate's session was lost."""

    @property
    def _state(self) -> CampaignState:
        return self._lab.state

    # -- the baseline --

    async def baseline(self, *, profiled: bool = True) -> None:
        """Build, test and run the unmodified source once under every workload, and profile it,
        unless that was done.

        Raises:
            BaselineFailed: with the stage and what it said.
        """
        state = self._state
        before = state.of_purpose("baseline")
        if any(experiment.outcome == "measured" for experiment in before):
            return
        open_ = [experiment for experiment in before if experiment.outcome is None]
        change = self._lab.baseline
        experiment = open_[0] if open_ else self._lab.begin("baseline", 0, change, change)
        emit = self._lab.emitter(experiment)
        intact = await self._bench.is_intact(state.baseline, change.tree)
        if not intact:
            await self._bench.check_out(state.baseline, state.started.base_commit, ())
        side = await self._bench.side(
            state.baseline,
            change.tree,
            emit,
            earlier=earlier_of(experiment, intact=intact),
        )
        if side is not None:
            failure = await self._check_workloads(experiment, side, emit)
        else:
            failure = next(e for e in reversed(experiment.facts) if isinstance(e, GateFailed))
        if failure is not None:
            emit(ExperimentFinished(outcome="abandoned", detail=failure.detail))
            await self._bench.close(state.baseline)
            raise BaselineFailed(
                f"the unmodified source of {self._target.name} fails in {failure.gate}: "
                f"{failure.detail}; `aiopt show {self._target.name} "
                f"{short_name(experiment.stream)}` shows more. Mend the target, then run again"
            )
        assert side is not None
        if profiled:
            await self._profile(experiment, side)
        emit(ExperimentFinished(outcome="measured"))

    async def _check_workloads(
        self, experiment: ExperimentState, side: Side, emit: Emit
    ) -> GateFailed | None:
        done = {event.workload for event in experiment.facts if isinstance(event, RunMeasured)}
        for workload in self._target.workloads:
            failure = None if workload in done else await self._check(side, workload, emit)
            if failure is not None:
                return failure
        return None

    async def _check(self, side: Side, workload: str, emit: Emit) -> GateFailed | None:
        """One run by itself; the gate if it fails, which is logged then."""
        pair = PairScheduled(purpose="check", workload=workload, index=0, attempt=0, order="BA")
        async with self._backend.measuring():
            ran = await run_once(side, pair, "B")
        outcome = outcome_of(ran, self._target, pair, "B", 1, may_be_invalid=True)
        emit(*outcome)
        return outcome[-1] if isinstance(outcome[-1], GateFailed) else None

    # -- profiles on demand --

    async def profile(self, workload: str) -> ExperimentState:
        """Profile the incumbent under one workload, beside one run without a profiler.

        Raises:
            IncumbentFailed: it does not build, or does not run.
        """
        for cut_off in self._state.of_purpose("profile"):
            if cut_off.outcome is None:
                self._lab.emitter(cut_off)(ExperimentFinished(outcome="abandoned"))
        change = self._lab.incumbent
        built = await self._lab.side_of(change)
        experiment = self._lab.begin("profile", 0, change, change)
        emit = self._lab.emitter(experiment)
        side = built.writing_to(emit)
        failure = await self._check(side, workload, emit)
        if failure is not None:
            emit(ExperimentFinished(outcome="abandoned", detail=failure.detail))
            raise IncumbentFailed(
                f"the workload {workload} fails: {failure.detail}; `aiopt log` shows more"
            )
        await self._profilers.run(side, workload, emit, frozenset())
        emit(ExperimentFinished(outcome="measured"))
        return experiment

    # -- candidates --

    async def prepare(self) -> None:
        """Build and test all unsettled proposals side by side; what fails is settled by that."""
        await self._lab.side_of(self._lab.incumbent)
        async with anyio.create_task_group() as tasks:
            limit = anyio.CapacityLimiter(self._settings.jobs)
            for proposal in list(self._state.unsettled()):
                if proposal.proposed.candidate not in self._bench.sides:
                    tasks.start_soon(self._prepare_one, proposal, limit)

    async def measure_next(self) -> None:
        """Measure the first candidate that is built and tested, to its verdict.

        Raises:
            Unfit: the machine does not allow a verdict.
        """
        ready = next(
            (p for p in self._state.unsettled() if p.proposed.candidate in self._bench.sides), None
        )
        if ready is None:
            return  # all lost their sessions while they were built; the next round tries again
        await ensure_calibrated(self._lab)
        try:
            await self._measure(ready)
        except SessionLost as error:
            await self._session_lost(ready, str(error))

    async def _prepare_one(self, proposal: ProposalState, limit: anyio.CapacityLimiter) -> None:
        async with limit:
            try:
                await self._build(proposal)
            except SessionLost as error:
                await self._session_lost(proposal, str(error))

    async def _build(self, proposal: ProposalState) -> None:
        """From a proposal to a side that can be measured, or to its rejection or verdict."""
        proposed, state = proposal.proposed, self._state
        candidate = proposed.candidate
        experiment = state.experiment_of(proposal)
        intact = False
        if experiment is None:
            tree = await self._accept(proposal)
            if tree is None:
                return
            change = Change(candidate, proposed.genome, tree)
            number, incumbent = proposal.number, self._lab.incumbent
            experiment = self._lab.begin("candidate", number, change, incumbent)
        elif self._is_done_with(experiment):
            await self._conclude(experiment, self._judge(experiment))
            return
        else:
            intact = await self._bench.is_intact(candidate, experiment.started.tree)
            if not intact:
                base = state.started.base_commit
                await self._bench.check_out(candidate, base, proposed.genome)
        against = await self._lab.side_of(self._lab.incumbent)
        side = await self._bench.side(
            candidate,
            experiment.started.tree,
            self._lab.emitter(experiment),
            incumbent_artifact=against.built.artifact,
            earlier=earlier_of(experiment, intact=intact),
        )
        await self._check_harness(experiment)
        if side is None or self._is_done_with(experiment):
            await self._conclude(experiment, self._judge(experiment))

    def _is_done_with(self, experiment: ExperimentState) -> bool:
        """Whether nothing is to be run any more: a kill may have come after the last pair and
        before the last profile.
        """
        outcome = self._judge(experiment).outcome
        if outcome is None:
            return False
        profiled = self._profilers.profilers.keys() <= _answered(experiment)
        return outcome.kind == "invalid" or profiled

    async def _check_harness(self, experiment: ExperimentState) -> bool:
        """Whether it is what it was."""
        if not await self._bench.mend_harness():
            return True
        detail = "the target's own files were modified while it ran"
        self._journal.emit(experiment.stream, GateFailed(gate="harness", detail=detail))
        return False

    async def _accept(self, proposal: ProposalState) -> str | None:
        """The candidate's tree, checked out; None if it was rejected."""
        proposed, base = proposal.proposed, self._state.started.base_commit
        rejected: _Rejection | None
        try:
            for ref in proposed.genome:
                check_scope(canonical(self._blobs.get(ref.digest)), self._target.scope)
            tree = await self._bench.check_out(proposed.candidate, base, proposed.genome)
            rejected = self._seen_before(tree, proposed)
            if rejected is None:
                return tree
        except PatchDoesNotApply as error:
            rejected = await self._clash(proposed, error)
        except PatchOutOfScope as error:
            rejected = _Rejection("out_of_scope", str(error))
        except PatchError as error:
            rejected = _Rejection("malformed", str(error))
        self._journal.emit(
            self._journal.stream,
            CandidateRejected(
                number=proposal.number,
                candidate=proposed.candidate,
                reason=rejected.reason,
                detail=rejected.detail,
                duplicate_of=rejected.duplicate_of,
                patch=rejected.patch,
                clashes_with=rejected.clashes_with,
            ),
        )
        await self._bench.close(proposed.candidate)
        return None

    async def _clash(self, proposed: CandidateProposed, error: PatchDoesNotApply) -> _Rejection:
        """Which patch does not apply, and which of those before it are in its way."""
        before, failed = proposed.genome[: error.place], proposed.genome[error.place]
        in_the_way = []
        for other in before:
            rest = without(before, other.digest)
            try:
                await self._bench.check_out(
                    proposed.candidate, self._state.started.base_commit, (*rest, failed)
                )
            except (PatchDoesNotApply, PatchOutOfScope):
                continue
            in_the_way.append(other)
        names = " and ".join(other.name for other in in_the_way)
        together = f"{failed.name} does not go together with {names}: " if in_the_way else ""
        return _Rejection(
            "does_not_apply",
            f"{together}{error}",
            patch=failed.digest,
            clashes_with=tuple(other.digest for other in in_the_way),
        )

    def _seen_before(self, tree: str, proposed: CandidateProposed) -> _Rejection | None:
        """Whether this very tree is the incumbent's, or was judged already.

        What a search made is not measured twice; what a person or an agent hands over may be
        measured again once the incumbent is another one.
        """
        state = self._state
        if tree == state.incumbent_tree:
            return _Rejection("empty", "it changes nothing: the tree is the incumbent's")
        if tree == state.started.base_tree:
            return _Rejection("empty", "nothing is left: the tree is the baseline's")
        for experiment in state.of_purpose("candidate"):
            started = experiment.started
            if (
                started.tree == tree
                and (proposed.operator != "propose" or started.incumbent == state.incumbent)
                and experiment.outcome in (None, "judged")
                and not experiment.is_transient
            ):
                stream = experiment.stream
                return _Rejection("duplicate", f"the same tree as {short_name(stream)}", stream)
        return None

    def _judge(self, experiment: ExperimentState) -> Judge[VerdictReached]:
        return self._lab.judge(experiment, verdict_by(self._state.started.rule))

    async def _measure(self, proposal: ProposalState) -> None:
        experiment = self._state.experiments[proposal.experiment or ""]
        side = self._bench.sides[proposal.proposed.candidate]
        self._charge(experiment)
        started, on_trial = experiment.started, frozenset[Arm]({"B"})
        change = Change(started.candidate, started.genome, started.tree)
        arms = await self._lab.arms(experiment, self._lab.incumbent, change, on_trial)
        outcome = await self._lab.run_pairs(experiment, self._judge(experiment), arms, on_trial)
        intact = await self._check_harness(experiment)
        if outcome.kind != "invalid" and intact:
            await self._profile(experiment, side)
        await self._conclude(experiment, self._judge(experiment))

    async def _profile(self, experiment: ExperimentState, side: Side) -> None:
        """Under the first workload; what an earlier controller got is not asked for again."""
        workload, done = self._target.main_workloads[0], _answered(experiment)
        await self._profilers.run(side, workload, self._lab.emitter(experiment), done)

    def _charge(self, experiment: ExperimentState) -> None:
        """A candidate that is screened costs of the campaign's error budget, once."""
        state, calibration = self._state, self._state.calibration
        if not RULES[state.started.rule].calibrated or experiment.charged is not None:
            return
        assert calibration is not None
        number = experiment.started.number
        charged = charge(state.params, number, state.charged, calibration.stream)
        self._journal.emit(experiment.stream, charged)

    async def _conclude(self, experiment: ExperimentState, judge: Judge[VerdictReached]) -> None:
        """Verdict, end of the experiment and change of the incumbent are one transaction."""
        verdict, started, state = judge.outcome, experiment.started, self._state
        assert verdict is not None
        stream, previous = experiment.stream, state.incumbent
        looks = self._lab.new_looks(experiment, judge)  # a kill came between the pair and its look
        items: list[tuple[str, Event]] = [
            *((stream, look) for look in looks),
            (stream, verdict),
            *[(stream, checked) async for checked in self._mechanism(experiment, verdict)],
            (stream, ExperimentFinished(outcome="judged")),
        ]
        done_with = [started.candidate]
        if verdict.kind == "keep":
            changed = IncumbentChanged(
                candidate=started.candidate,
                genome=started.genome,
                tree=started.tree,
                experiment=stream,
                previous=previous,
            )
            items.append((self._journal.stream, changed))
            done_with = [previous]
            superseded = ExperimentFinished(
                outcome="superseded", detail=f"{short_name(stream)} changed the incumbent"
            )
            for other in state.unsettled():
                if other.experiment is not None and other.experiment != stream:
                    items.append((other.experiment, superseded))
                    done_with.append(other.proposed.candidate)
        self._journal.append(*items)
        for candidate in done_with:
            await self._bench.close(candidate)

    async def _mechanism(
        self, experiment: ExperimentState, verdict: VerdictReached
    ) -> AsyncIterator[MechanismChecked]:
        """What the patch claims, against the profiles of incumbent and candidate."""
        started, state = experiment.started, self._state
        claims = state.proposals[started.number].proposed.claims
        if not claims or verdict.kind == "invalid" or not self._profilers.profilers:
            return
        main = self._target.main_workloads[0]
        before, after = (
            [*self._stacks_of(profiles_of(state, candidate), main)]
            for candidate in (started.incumbent, started.candidate)
        )
        effects = [effect for effect in verdict.effects if effect.workload == main]
        for claim in claims:
            metric = self._target.metrics.get(claim.metric)
            unit = metric.unit if metric is not None else ""
            followed = None
            if is_line(claim.function) and started.incumbent == state.incumbent:
                diff = await self._bench.diff(state.incumbent_tree, started.tree)
                followed = lines_after(diff, claim.function)
            yield check_claim(claim, unit, before, after, effects, followed)

    def _stacks_of(
        self, answers: Iterable[EvidenceCaptured | ProfilerUnavailable], workload: str
    ) -> Iterator[Profile]:
        for answer in answers:
            if (
                isinstance(answer, EvidenceCaptured)
                and answer.workload == workload
                and answer.stacks is not None
            ):
                stacks = self._blobs.get(answer.stacks).decode(errors="replace")
                yield Profile(profiler=answer.profiler, stacks=stacks, unit=answer.stacks_unit)

    async def _session_lost(self, proposal: ProposalState, reason: str) -> None:
        """Void what was cut off and let the next round try again; the
        third time the candidate is to blame.
        """
        candidate = proposal.proposed.candidate
        experiment = self._state.experiments[proposal.experiment or ""]
        await self._bench.close(candidate, keep_tree=True)
        for void in cut_off_pairs(experiment.facts):
            self._journal.emit(experiment.stream, void)
        self._lost[candidate] = self._lost.get(candidate, 0) + 1
        if self._lost[candidate] >= _SESSION_TRIES:
            self._journal.emit(experiment.stream, GateFailed(gate="session", detail=reason))
            await self._conclude(experiment, self._judge(experiment))


def _answered(experiment: ExperimentState) -> frozenset[str]:
    """The profilers that have said something about it."""
    return frozenset(event.profiler for event in experiment.profiles)


def cut_off_pairs(facts: Iterable[Event]) -> Iterator[PairVoided]:
    """The voids of pairs that were scheduled and did not get both runs:
    one side alone was not measured beside the other.
    """
    missing: dict[tuple[str, str, int, int], tuple[PairScheduled, set[str]]] = {}
    for event in facts:
        match event:
            case PairScheduled():
                missing[_key(event)] = (event, {"A", "B"})
            case RunMeasured() if _key(event) in missing:
                missing[_key(event)][1].discard(event.arm)
                if not missing[_key(event)][1]:
                    del missing[_key(event)]
            case PairVoided():
                missing.pop(_key(event), None)
            case _:
                pass
    for pair, _ in missing.values():
        yield PairVoided(
            purpose=pair.purpose,
            workload=pair.workload,
            index=pair.index,
            attempt=pair.attempt,
            reason="interrupted",
        )


def _key(event: PairScheduled | RunMeasured | PairVoided) -> tuple[str, str, int, int]:
    return (event.purpose, event.workload, event.index, event.attempt)
