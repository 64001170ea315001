"""Experiments from beginning to end: the baseline, a candidate, an audit.

Every step is a transition of the log's fold, so an experiment that was cut off anywhere goes on
where its events end.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Literal

import anyio
from attrs import frozen

from aiopt.blobs import BlobStore
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
    CandidateRejected,
    Event,
    ExperimentFinished,
    ExperimentStarted,
    GateFailed,
    IncumbentChanged,
    PairScheduled,
    PairVoided,
    PatchRef,
    RejectReason,
    RunMeasured,
    VerdictReached,
)
from aiopt.ids import short_name
from aiopt.journal import Journal
from aiopt.lifecycle import Emit
from aiopt.measure import IncumbentFailed, Side, judge_pairs, outcome_of, profile_runs, run_once
from aiopt.protocols import Backend, Profiler
from aiopt.replay import CampaignState, ExperimentState, ProposalState
from aiopt.settings import Settings
from aiopt.target import Target
from aiopt.verdict import Judge, audit_of, verdict_by
from aiopt.workbench import Workbench

__all__ = ["BaselineFailed", "Evaluator", "cut_off_pairs"]

_SESSION_TRIES = 3

Purpose = Literal["baseline", "candidate", "audit"]


@frozen
class _Change:
    """A candidate and the tree that its genome makes."""

    candidate: str
    genome: tuple[PatchRef, ...]
    tree: str


@frozen
class _Rejection:
    reason: RejectReason
    detail: str
    duplicate_of: str | None = None


class BaselineFailed(AiOptError):
    """The unmodified source does not build, pass its own tests or yield its metrics."""


class Evaluator:
    """Takes the proposals of one campaign to their verdicts."""

    def __init__(
        self,
        *,
        journal: Journal,
        bench: Workbench,
        blobs: BlobStore,
        target: Target,
        settings: Settings,
        backend: Backend,
        profilers: Mapping[str, Profiler],
    ) -> None:
        self._journal, self._bench, self._blobs = journal, bench, blobs
        self._target, self._settings = target, settings
        self._backend, self._profilers = backend, profilers
        self._lost: dict[str, int] = {}
        """How often each candidate's session was lost."""

    @property
    def _state(self) -> CampaignState:
        return self._journal.campaign

    def _begin(self, purpose: Purpose, number: int, change: _Change) -> ExperimentState:
        state = self._state
        audit = purpose == "audit"
        stream = self._journal.new_stream("exp")
        self._journal.emit(
            stream,
            ExperimentStarted(
                campaign=self._journal.stream,
                number=number,
                purpose=purpose,
                candidate=change.candidate,
                genome=change.genome,
                tree=change.tree,
                incumbent=state.baseline if audit else state.incumbent,
                incumbent_tree=state.started.base_tree if audit else state.incumbent_tree,
                environment=self._settings.environment,
                mode=self._settings.mode,
            ),
        )
        return state.experiments[stream]

    def _emitter(self, experiment: ExperimentState) -> Emit:
        return partial(self._journal.emit, experiment.stream)

    # -- the baseline --

    async def baseline(self) -> None:
        """Build, test and run the unmodified source once under
        every workload, unless that was done.

        Raises:
            BaselineFailed: with the stage and what it said.
        """
        state = self._state
        before = [e for e in state.experiments.values() if e.started.purpose == "baseline"]
        if any(experiment.outcome == "measured" for experiment in before):
            return
        open_ = [experiment for experiment in before if experiment.outcome is None]
        change = _Change(state.baseline, (), state.started.base_tree)
        experiment = open_[0] if open_ else self._begin("baseline", 0, change)
        emit = self._emitter(experiment)
        intact = await self._bench.is_intact(state.baseline, change.tree)
        if not intact:
            await self._bench.check_out(state.baseline, state.started.base_commit, ())
        side = await self._bench.side(
            state.baseline,
            change.tree,
            emit,
            attempts=experiment.attempts,
            known_artifact=experiment.artifact if intact else None,
            passed=tuple(experiment.gates) if intact else (),
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
        emit(ExperimentFinished(outcome="measured"))

    async def _check_workloads(
        self, experiment: ExperimentState, side: Side, emit: Emit
    ) -> GateFailed | None:
        done = {event.workload for event in experiment.facts if isinstance(event, RunMeasured)}
        for workload in self._target.workloads:
            if workload in done:
                continue
            pair = PairScheduled(purpose="check", workload=workload, index=0, attempt=0, order="BA")
            async with self._backend.measuring():
                ran = await run_once(side, pair, "B")
            outcome = outcome_of(ran, self._target, pair, "B", 1)
            emit(*outcome)
            if isinstance(outcome[-1], GateFailed):
                return outcome[-1]
        return None

    # -- sides --

    async def _incumbent(self) -> Side:
        """The incumbent, ready to be run; built again if a new controller finds it gone."""
        return await self._known(self._state.incumbent)

    async def _known(self, candidate: str) -> Side:
        """A candidate that passed its gates before, ready to be run.

        Raises:
            IncumbentFailed: it fails them now.
        """
        if candidate in self._bench.sides:
            return self._bench.sides[candidate]
        experiment = next(
            e
            for e in self._state.experiments.values()
            if e.started.candidate == candidate and e.started.purpose != "audit"
        )
        started = experiment.started
        intact = await self._bench.is_intact(candidate, started.tree)
        if not intact:
            await self._bench.check_out(candidate, self._state.started.base_commit, started.genome)
        side = await self._bench.side(
            candidate,
            started.tree,
            partial(self._journal.emit, self._journal.stream),
            known_artifact=experiment.artifact if intact else None,
            passed=experiment.gates if intact else (),
        )
        if side is None:
            raise IncumbentFailed(
                f"candidate {candidate} passed its gates before and fails them now; "
                "`aiopt log` shows the stage and its output"
            )
        return side

    # -- candidates --

    async def prepare(self) -> None:
        """Build and test all unsettled proposals side by side; what fails is settled by that."""
        await self._incumbent()
        async with anyio.create_task_group() as tasks:
            limit = anyio.CapacityLimiter(self._settings.jobs)
            for proposal in list(self._state.unsettled()):
                if proposal.proposed.candidate not in self._bench.sides:
                    tasks.start_soon(self._prepare_one, proposal, limit)

    async def measure_next(self) -> None:
        """Measure the first candidate that is built and tested, to its verdict."""
        ready = next(
            (p for p in self._state.unsettled() if p.proposed.candidate in self._bench.sides), None
        )
        if ready is None:
            return  # all lost their sessions while they were built; the next round tries again
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
        experiment = state.experiments.get(proposal.experiment or "")
        intact = False
        if experiment is None:
            tree = await self._accept(proposal)
            if tree is None:
                return
            change = _Change(candidate, proposed.genome, tree)
            experiment = self._begin("candidate", proposal.number, change)
        elif self._judge(experiment).outcome is not None:
            await self._conclude(experiment, self._judge(experiment))
            return
        else:
            intact = await self._bench.is_intact(candidate, experiment.started.tree)
            if not intact:
                base = state.started.base_commit
                await self._bench.check_out(candidate, base, proposed.genome)
        incumbent = await self._incumbent()
        side = await self._bench.side(
            candidate,
            experiment.started.tree,
            self._emitter(experiment),
            incumbent_artifact=incumbent.built.artifact,
            attempts=experiment.attempts,
            known_artifact=experiment.artifact if intact else None,
            passed=tuple(experiment.gates) if intact else (),
        )
        self._check_harness(experiment)
        judge = self._judge(experiment)
        if side is None or judge.outcome is not None:
            await self._conclude(experiment, judge)

    def _check_harness(self, experiment: ExperimentState) -> None:
        if self._bench.harness_changed():
            detail = "the target's own files were modified while it ran"
            self._journal.emit(experiment.stream, GateFailed(gate="harness", detail=detail))
            self._bench.restore_harness()

    async def _accept(self, proposal: ProposalState) -> str | None:
        """The candidate's tree, checked out; None if it was rejected."""
        proposed = proposal.proposed
        rejected: _Rejection | None
        try:
            patch = canonical(self._blobs.get(proposed.genome[-1].digest))
            check_scope(patch, self._target.scope)
            tree = await self._bench.check_out(
                proposed.candidate, self._state.started.base_commit, proposed.genome
            )
            rejected = self._seen_before(tree)
            if rejected is None:
                return tree
        except PatchDoesNotApply as error:
            rejected = _Rejection("does_not_apply", str(error))
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
            ),
        )
        await self._bench.close(proposed.candidate)
        return None

    def _seen_before(self, tree: str) -> _Rejection | None:
        """Whether this very tree is the incumbent's, or was judged against it already."""
        state = self._state
        if tree == state.incumbent_tree:
            return _Rejection("empty", "it changes nothing: the tree is the incumbent's")
        for experiment in state.experiments.values():
            started = experiment.started
            if (
                started.purpose == "candidate"
                and (started.tree, started.incumbent) == (tree, state.incumbent)
                and experiment.outcome in (None, "judged")
            ):
                stream = experiment.stream
                return _Rejection("duplicate", f"the same tree as {short_name(stream)}", stream)
        return None

    def _judge(self, experiment: ExperimentState) -> Judge:
        state = self._state
        if experiment.started.purpose == "audit":
            decider = audit_of(state.baseline, experiment.started.candidate)
        else:
            decider = verdict_by(state.started.rule)
        return Judge(
            decider,
            state.params,
            seed=state.started.seed,
            number=experiment.started.number,
            events=experiment.facts,
        )

    async def _measure(self, proposal: ProposalState) -> None:
        experiment = self._state.experiments[proposal.experiment or ""]
        side = self._bench.sides[proposal.proposed.candidate]
        emit = self._emitter(experiment)
        incumbent = await self._incumbent()
        sides: dict[Arm, Side] = {"A": incumbent.writing_to(emit), "B": side}
        outcome = await judge_pairs(
            self._judge(experiment), self._target, self._backend, sides, emit
        )
        self._check_harness(experiment)
        if self._profilers and isinstance(outcome, VerdictReached) and outcome.kind != "invalid":
            await profile_runs(
                self._profilers,
                self._target,
                self._backend,
                side,
                emit,
                self._blobs,
                self._bench.scratch,
            )
        await self._conclude(experiment, self._judge(experiment))

    async def _conclude(self, experiment: ExperimentState, judge: Judge) -> None:
        """Verdict, end of the experiment and change of the incumbent are one transaction."""
        verdict, started, state = judge.outcome, experiment.started, self._state
        assert isinstance(verdict, VerdictReached)
        stream, previous = experiment.stream, state.incumbent
        items: list[tuple[str, Event]] = [
            (stream, verdict),
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

    # -- the result --

    async def audit(self) -> None:
        """The incumbent against the baseline, on fresh pairs, unless that was done."""
        state = self._state
        found = [e for e in state.audits() if e.started.candidate == state.incumbent]
        if any(experiment.outcome is not None for experiment in found):
            return
        change = _Change(state.incumbent, state.incumbent_genome, state.incumbent_tree)
        experiment = found[0] if found else self._begin("audit", 0, change)
        emit = self._emitter(experiment)
        sides: dict[Arm, Side] = {
            "A": (await self._known(state.baseline)).writing_to(emit),
            "B": (await self._incumbent()).writing_to(emit),
        }
        outcome = await judge_pairs(
            self._judge(experiment), self._target, self._backend, sides, emit
        )
        emit(outcome, ExperimentFinished(outcome="measured"))


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
