"""The loop: fold the log, ask the strategy, let the proposer propose, evaluate, append.

There is no state but the fold of the log. A campaign that was killed at any moment is opened again, what its controller left
running is killed, the pair that was cut off is voided, and the loop goes on where the log ends.
"""

import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal

import anyio
from anyio.abc import TaskGroup, TaskStatus
from attrs import define, frozen
from numpy.random import PCG64, Generator, SeedSequence

import aiopt
from aiopt import plugins
from aiopt.blobs import BlobStore
from aiopt.candidate import canonical, check_scope, hypothesis_of
from aiopt.config import structure, unstructure
from aiopt.errors import (
    AiOptError,
    ConfigError,
    PatchDoesNotApply,
    PatchError,
    PatchOutOfScope,
    SessionLost,
)
from aiopt.events import (
    BudgetSpent,
    CampaignFinished,
    CampaignInterrupted,
    CampaignResumed,
    CampaignStarted,
    CandidateProposed,
    CandidateRejected,
    EnvironmentObserved,
    Event,
    ExperimentFinished,
    ExperimentStarted,
    GateFailed,
    IncumbentChanged,
    PairScheduled,
    PairVoided,
    PatchRef,
    PluginUsed,
    Recorded,
    RejectReason,
    RunMeasured,
    VerdictReached,
)
from aiopt.ids import candidate_id, digest
from aiopt.lease import Lease
from aiopt.lifecycle import Stages, prepare
from aiopt.log import Log
from aiopt.measure import (
    IncumbentFailed,
    Side,
    judge_pairs,
    outcome_of,
    profile_runs,
    run_once,
)
from aiopt.protocols import (
    Backend,
    Patch,
    Profiler,
    Proposal,
    ProposalRequest,
    Proposer,
    Strategy,
    Workspace,
    WorkspaceSpec,
)
from aiopt.replay import CampaignState, ExperimentState, LogState, ProposalState, fold, step
from aiopt.settings import Settings, rule_params
from aiopt.sources import SourceRepository, remove_tree
from aiopt.target import Target, harness_digest, harness_files, load_target
from aiopt.verdict import Judge, audit_of, params_from, verdict_by

__all__ = ["BaselineFailed", "Campaign", "Observer", "open_campaign"]

Observer = Callable[[Recorded], None]

_SESSION_TRIES = 3
TRY = "try"
"""The proposer's name in campaigns whose patches come from `Campaign.judge`, one at a time."""


class BaselineFailed(AiOptError):
    """The unmodified source does not build, pass its own tests or yield its metrics."""


@define
class _Held:
    """A workspace that a task of its own keeps open, so that workspaces can be closed in any order."""

    workspace: Workspace
    _close: anyio.Event
    _closed: anyio.Event

    async def close(self) -> None:
        self._close.set()
        await self._closed.wait()


@frozen(kw_only=True)
class _Plugins:
    backend: Backend
    strategy: Strategy
    proposer: Proposer | None
    profilers: Mapping[str, Profiler]
    used: tuple[PluginUsed, ...]


def _load_plugins(settings: Settings, target: Target) -> _Plugins:
    environment = settings.here
    backend = plugins.load("backends", environment.backend, environment.options)
    strategy = plugins.load(
        "strategies", settings.strategy, settings.strategies.get(settings.strategy)
    )
    used = [backend.used, strategy.used]
    proposer = None
    if settings.proposer != TRY:
        loaded = plugins.load(
            "proposers", settings.proposer, settings.proposers.get(settings.proposer)
        )
        proposer = loaded.plugin
        used.append(loaded.used)
    profilers = {}
    if settings.mode == "full":
        for name in target.profilers:
            found = plugins.load("profilers", name, settings.profilers.get(name))
            profilers[name] = found.plugin
            used.append(found.used)
    return _Plugins(
        backend=backend.plugin,
        strategy=strategy.plugin,
        proposer=proposer,
        profilers=profilers,
        used=tuple(used),
    )


class Campaign:
    """One search over one target, open for work. Get one from `open_campaign`."""

    def __init__(
        self,
        *,
        folder: Path,
        target: Target,
        settings: Settings,
        log: Log,
        blobs: BlobStore,
        lease: Lease,
        work: Path,
        plug: _Plugins,
        tasks: TaskGroup,
        state: LogState,
        observer: Observer | None,
    ) -> None:
        self._folder, self._target, self._settings = folder, target, settings
        self._log, self._blobs, self._lease, self._work = log, blobs, lease, work
        self._plug, self._tasks, self._observer = plug, tasks, observer
        self._log_state = state
        self._stream = ""
        self._repository = SourceRepository(work)
        self._held: dict[str, _Held] = {}
        self._sides: dict[str, Side] = {}
        self._lost: dict[str, int] = {}
        """How often each candidate's session was lost."""
        self._reason = "nothing is left to do"
        files = harness_files(folder, target)
        self._harness, self._harness_names = work / "harness", files
        self._harness_digest = harness_digest(folder, files)
        self._marker = f"aiopt-{digest(str(log.path.resolve()).encode())[:16]}"

    # -- the log --

    @property
    def state(self) -> CampaignState:
        """The fold of what this campaign has logged so far."""
        return self._log_state.campaigns[self._stream]

    def _append(self, *items: tuple[str, Event]) -> None:
        """One transaction: on disk first, then in the state, then seen by the observer."""
        for recorded in self._log.append(items):
            self._log_state = step(self._log_state, recorded)
            if self._observer is not None:
                self._observer(recorded)

    def _emit(self, stream: str, *events: Event) -> None:
        self._append(*((stream, event) for event in events))

    # -- beginning --

    async def begin(self, resume: str | None) -> None:
        """Clear away what a dead controller left, then start or take over."""
        supervisors = [
            stage.supervisor
            for campaign in self._log_state.campaigns.values()
            for stage in campaign.cut_off_stages()
            if stage.supervisor is not None
        ]
        killed = await self._plug.backend.kill_remains(self._marker, supervisors)
        remove_tree(self._work / "runs")
        self._snapshot_harness()
        if resume is None:
            await self._start()
        else:
            await self._resume(resume, killed)

    async def _start(self) -> None:
        base_commit, base_tree = await self._import_source()
        params = rule_params(self._target, self._settings)
        params_from(params)
        stream = self._log.new_stream("cmp")
        observed = dict(await self._plug.backend.observe())
        self._stream = stream
        self._append(
            (
                stream,
                CampaignStarted(
                    target=self._target.name,
                    target_digest=self._harness_digest,
                    spec=unstructure(self._target),
                    base_commit=base_commit,
                    base_tree=base_tree,
                    config=unstructure(self._settings),
                    rule=self._settings.rule,
                    rule_version=1,
                    rule_params=params,
                    seed=self._settings.seed,
                    environment=self._settings.environment,
                    plugins=self._plug.used,
                    aiopt_version=aiopt.__version__,
                ),
            ),
            (
                stream,
                EnvironmentObserved(environment=self._settings.environment, facts=observed),
            ),
        )

    async def _resume(self, stream: str, killed: int) -> None:
        self._stream = stream
        started = self.state.started
        if started.target_digest != self._harness_digest:
            raise ConfigError(
                str(self._folder),
                [
                    (
                        "",
                        "target.toml or the harness has changed since the campaign began, so its "
                        "measurements would not go together: restore it, or begin another campaign",
                    )
                ],
            )
        if not await self._repository.has(started.base_commit):
            commit, _ = await self._import_source()
            if commit != started.base_commit:
                raise ConfigError(
                    str(self._folder),
                    [
                        (
                            "source",
                            f"is not what the campaign began with: commit {commit}, then "
                            f"{started.base_commit}; restore it, or begin another campaign",
                        )
                    ],
                )
        voids = [
            (experiment.stream, void)
            for experiment in self.state.experiments.values()
            if experiment.outcome is None
            for void in _cut_off(experiment)
        ]
        resumed = CampaignResumed(
            processes_killed=killed, aiopt_version=aiopt.__version__, plugins=self._plug.used
        )
        self._append((stream, resumed), *voids)

    async def _import_source(self) -> tuple[str, str]:
        source = self._target.source
        if source.path is not None:
            return await self._repository.import_folder(self._folder / source.path)
        if source.git is not None and source.revision is not None:
            with anyio.fail_after(source.timeout):
                return await self._repository.import_git(source.git, source.revision)
        return await self._fetched_source()

    async def _fetched_source(self) -> tuple[str, str]:
        """Run the target's own fetch script; it is the user's, so it may use the network and the user's environment."""
        script = self._target.source.script
        assert script is not None
        argv = ["sh", "-c", script] if isinstance(script, str) else list(script)
        if argv[0].startswith("./"):
            argv[0] = str(self._folder / argv[0])
        fetched = self._work / "fetched"
        remove_tree(fetched)
        fetched.mkdir(parents=True)
        with anyio.fail_after(self._target.source.timeout):
            done = await anyio.run_process(argv, cwd=fetched, check=False)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
            raise ConfigError(
                str(self._folder / "target.toml"),
                [("source.script", f"exit {done.returncode}: {' | '.join(said)}")],
            )
        imported = await self._repository.import_folder(fetched)
        remove_tree(fetched)
        return imported

    def _snapshot_harness(self) -> None:
        """Stages see a copy, so that edits to the target's folder do not reach a campaign that runs."""
        remove_tree(self._harness)
        for name in self._harness_names:
            copy = self._harness / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self._folder / name, copy)

    # -- workspaces --

    async def _hold(self, spec: WorkspaceSpec, *, task_status: TaskStatus[_Held]) -> None:
        close, closed = anyio.Event(), anyio.Event()
        try:
            async with self._plug.backend.open(spec) as workspace:
                task_status.started(_Held(workspace, close, closed))
                await close.wait()
        finally:
            closed.set()

    async def _open_workspace(self, candidate: str) -> Workspace:
        spec = WorkspaceSpec(
            name=candidate,
            tree=self._tree_of(candidate),
            harness=self._harness,
            scratch=self._work / "runs" / candidate,
            marker=self._marker,
            writable=self._target.writable,
            pass_env=self._target.pass_env,
            lease_fd=self._lease.fd,
            stages_lock=self._lease.stages_path,
        )
        spec.scratch.mkdir(parents=True, exist_ok=True)
        held: _Held = await self._tasks.start(self._hold, spec)
        self._held[candidate] = held
        return held.workspace

    def _tree_of(self, candidate: str) -> Path:
        return self._work / "trees" / candidate

    async def _close(self, candidate: str, *, keep_tree: bool = False) -> None:
        """Give up a candidate's workspace; nothing of it is left, its tree only if asked for."""
        self._sides.pop(candidate, None)
        held = self._held.pop(candidate, None)
        if held is not None:
            await held.close()
        remove_tree(self._work / "runs" / candidate)
        if not keep_tree:
            remove_tree(self._tree_of(candidate))

    async def _side(
        self,
        candidate: str,
        tree: str,
        emit: Callable[..., None],
        experiment: ExperimentState | None,
        incumbent_artifact: str | None,
    ) -> Side | None:
        """A candidate built and tested, in its workspace; None if a gate failed."""
        workspace = await self._open_workspace(candidate)
        attempts = experiment.attempts if experiment is not None else {}
        stages = Stages(self._target, workspace, emit, self._blobs, self._parser(), attempts)
        async with self._plug.backend.building():
            built = await prepare(
                stages,
                self._target,
                workspace,
                emit,
                candidate=candidate,
                tree=tree,
                harness_digest=self._harness_digest,
                incumbent_artifact=incumbent_artifact,
                known_artifact=experiment.artifact if experiment is not None else None,
                passed=experiment.gates if experiment is not None else (),
            )
        if built is None:
            return None
        side = Side(built=built, stages=stages)
        self._sides[candidate] = side
        return side

    def _parser(self) -> Any:
        return load_parser(self._target.output.format, self._folder)

    async def _incumbent(self) -> Side:
        """The incumbent, ready to be run; built again if a new controller finds it gone."""
        state = self.state
        return await self._known(state.incumbent, state.incumbent_genome)

    async def _known(self, candidate: str, genome: tuple[PatchRef, ...]) -> Side:
        """A candidate that passed its gates before, ready to be run."""
        if candidate in self._sides:
            return self._sides[candidate]
        experiment = next(
            e
            for e in self.state.experiments.values()
            if e.started.candidate == candidate and e.started.purpose != "audit"
        )
        intact = await self._repository.is_unchanged(self._tree_of(candidate))
        if not intact:
            await self._check_out(candidate, genome)
        emit = partial(self._emit, self._stream)
        side = await self._side(
            candidate, experiment.started.tree, emit, experiment if intact else None, None
        )
        if side is None:
            raise IncumbentFailed(
                f"candidate {candidate} passed its gates before and fails them now; "
                "`aiopt log` shows the stage and its output"
            )
        return side

    async def _check_out(self, candidate: str, genome: tuple[PatchRef, ...]) -> str:
        patches = [canonical(self._blobs.get(patch.digest)) for patch in genome]
        return await self._repository.tree_with(
            self.state.started.base_commit, patches, self._target.scope, self._tree_of(candidate)
        )

    # -- the baseline --

    async def _baseline(self) -> None:
        """Build, test and run the unmodified source once under every workload, before anything is proposed.

        Raises:
            BaselineFailed: with the stage and what it said.
        """
        state = self.state
        baseline = state.baseline
        experiment = next(
            (e for e in state.experiments.values() if e.started.purpose == "baseline"), None
        )
        if experiment is not None and experiment.outcome == "measured":
            return
        if experiment is None:
            stream = self._log.new_stream("exp")
            self._emit(
                stream, self._experiment("baseline", 0, baseline, (), state.started.base_tree)
            )
            experiment = state.experiments[stream]
        emit = partial(self._emit, experiment.stream)
        await self._check_out(baseline, ())
        side = await self._side(baseline, state.started.base_tree, emit, experiment, None)
        failure = _gate_failure(experiment) if side is None else None
        if side is not None:
            failure = await self._check_workloads(side, emit)
        if failure is not None:
            emit(failure, ExperimentFinished(outcome="abandoned", detail=failure.detail))
            raise BaselineFailed(
                f"the unmodified source of {self._target.name} fails in {failure.gate}: "
                f"{failure.detail}\nsee `aiopt show {experiment.stream.partition('~')[0]}`; "
                "mend the target, then run again"
            )
        emit(ExperimentFinished(outcome="measured"))

    async def _check_workloads(self, side: Side, emit: Callable[..., None]) -> GateFailed | None:
        for workload in self._target.workloads:
            pair = PairScheduled(purpose="check", workload=workload, index=0, attempt=0, order="BA")
            async with self._plug.backend.measuring():
                ran = await run_once(side, pair, "B")
            *unreadable, last = outcome_of(ran, self._target, pair, "B", 1)
            if unreadable:
                emit(*unreadable)
            if isinstance(last, GateFailed):
                return last
            emit(last)
        return None

    def _experiment(
        self,
        purpose: Literal["baseline", "candidate", "audit"],
        number: int,
        candidate: str,
        genome: tuple[PatchRef, ...],
        tree: str,
    ) -> ExperimentStarted:
        state = self.state
        audit = purpose == "audit"
        return ExperimentStarted(
            campaign=self._stream,
            number=number,
            purpose=purpose,
            candidate=candidate,
            genome=genome,
            tree=tree,
            incumbent=state.baseline if audit else state.incumbent,
            incumbent_tree=state.started.base_tree if audit else state.incumbent_tree,
            environment=self._settings.environment,
            mode=self._settings.mode,
        )

    # -- the loop --

    async def run(self) -> None:
        """Search until the proposer has no more or the budget is spent, then audit.

        Raises:
            BaselineFailed, IncumbentFailed: nothing can be measured; logged as an interruption.
        """
        with self._interruption_logged():
            await self._baseline()
            while await self._round():
                pass
            if self.state.kept:
                await self._audit()
            self._emit(self._stream, CampaignFinished(reason=self._reason))

    async def judge(self, patch: Patch) -> ProposalState:
        """Evaluate one patch on top of the incumbent; the campaign stays open for more."""
        with self._interruption_logged():
            await self._baseline()
            while any(True for _ in self.state.unsettled()):
                await self._settle()
            number = self._propose(
                Proposal(patch=patch), self.state.incumbent, self.state.incumbent_genome, TRY
            )
            while self.state.proposals[number].status in ("proposed", "running"):
                await self._settle()
            return self.state.proposals[number]

    @contextmanager
    def _interruption_logged(self) -> Iterator[None]:
        """Whatever ends the work before its time is in the log, and `resume` goes on from there."""
        try:
            yield
        except anyio.get_cancelled_exc_class():
            self._emit(self._stream, CampaignInterrupted(reason="stopped by the user"))
            raise
        except (BaselineFailed, IncumbentFailed, SessionLost, ConfigError) as error:
            self._emit(self._stream, CampaignInterrupted(reason=str(error)))
            raise

    async def _round(self) -> bool:
        """Propose as long as there is room, then bring one candidate to its end; False when there is nothing left."""
        while len(list(self.state.unsettled())) < self._settings.jobs and await self._ask():
            pass
        if not any(True for _ in self.state.unsettled()):
            return False
        await self._settle()
        return True

    async def _ask(self) -> bool:
        """One more proposal, if budget, strategy and proposer have one."""
        state, budget = self.state, self._settings.budget
        if budget.candidates is not None and len(state.proposals) >= budget.candidates:
            self._reason = f"the budget of {budget.candidates} candidates is spent"
            return False
        spent = sum(experiment.seconds for experiment in state.experiments.values()) / 60
        if budget.minutes is not None and spent >= budget.minutes:
            self._reason = f"the budget of {budget.minutes:g} minutes is spent"
            return False
        number = state.next_number
        rng = Generator(PCG64(SeedSequence([state.started.seed, number])))
        selections = self._plug.strategy.ask(state, rng, 1)
        if not selections or self._plug.proposer is None:
            self._reason = "the strategy asks for nothing more"
            return False
        selection = selections[0]
        hints = self._folder / "hints.md"
        tree = self._tree_of(state.incumbent)
        proposal = await self._plug.proposer.propose(
            ProposalRequest(
                selection=selection,
                state=state,
                target_folder=self._folder,
                tree=tree if tree.is_dir() and selection.parents == (state.incumbent,) else None,
                hints=hints.read_text(encoding="utf-8") if hints.is_file() else "",
                read_blob=self._blobs.get,
            )
        )
        if proposal is None:
            self._reason = "the proposer has no more"
            return False
        self._propose(proposal, selection.parents[0], selection.genome, self._settings.proposer)
        return True

    def _propose(
        self, proposal: Proposal, parent: str, genome: tuple[PatchRef, ...], proposer: str
    ) -> int:
        """Log a proposal: its patch is stored first, so that nothing can refer to what is not there."""
        patch = proposal.patch
        try:
            text = canonical(patch.text).text
        except PatchError:
            text = patch.text  # kept as it came; it is rejected when it is settled
        ref = PatchRef(name=patch.name, digest=self._blobs.put(text))
        number = self.state.next_number
        genome = (*genome, ref)
        proposed = CandidateProposed(
            number=number,
            candidate=candidate_id(self.state.started.base_commit, [p.digest for p in genome]),
            genome=genome,
            parents=(parent,),
            hypothesis=patch.hypothesis or hypothesis_of(patch.text),
            proposer=proposer,
            cost=dict(proposal.cost),
        )
        spent = [
            BudgetSpent(what=name, amount=float(amount), unit=name)
            for name, amount in proposal.cost.items()
            if isinstance(amount, int | float)
        ]
        self._emit(self._stream, proposed, *spent)
        return number

    async def _settle(self) -> None:
        """Build and test all unsettled candidates side by side, then measure the first of those that passed."""
        await self._incumbent()
        async with anyio.create_task_group() as tasks:
            limit = anyio.CapacityLimiter(self._settings.jobs)
            for proposal in list(self.state.unsettled()):
                if proposal.proposed.candidate not in self._sides:
                    tasks.start_soon(self._prepare, proposal, limit)
        ready = next(iter(self.state.unsettled()), None)
        if ready is None or ready.proposed.candidate not in self._sides:
            return  # it lost its session in preparing; the next round tries again
        try:
            await self._measure(ready)
        except SessionLost as error:
            await self._session_lost(ready, str(error))

    async def _prepare(self, proposal: ProposalState, limit: anyio.CapacityLimiter) -> None:
        async with limit:
            try:
                await self._build(proposal)
            except SessionLost as error:
                await self._session_lost(proposal, str(error))

    async def _build(self, proposal: ProposalState) -> None:
        """From a proposal to a side that can be measured, or to its rejection or verdict."""
        proposed, state = proposal.proposed, self.state
        candidate = proposed.candidate
        experiment = state.experiments.get(proposal.experiment or "")
        if experiment is None:
            tree = await self._accept(proposal)
            if tree is None:
                return
            stream = self._log.new_stream("exp")
            started = self._experiment(
                "candidate", proposal.number, candidate, proposed.genome, tree
            )
            self._emit(stream, started)
            experiment = state.experiments[stream]
        elif not await self._repository.is_unchanged(self._tree_of(candidate)):
            await self._check_out(candidate, proposed.genome)
            experiment.artifact, experiment.gates = None, []
        incumbent = await self._incumbent()
        emit = partial(self._emit, experiment.stream)
        side = await self._side(
            candidate, experiment.started.tree, emit, experiment, incumbent.built.artifact
        )
        if self._harness_changed():
            emit(GateFailed(gate="harness", detail="the files of the target were modified"))
            self._snapshot_harness()
        judge = self._judge_of(experiment)
        if side is None or judge.outcome is not None:
            await self._conclude(experiment, judge)

    def _harness_changed(self) -> bool:
        return harness_digest(self._harness, self._harness_names) != self._harness_digest

    async def _accept(self, proposal: ProposalState) -> str | None:
        """The candidate's tree, checked out; None if it was rejected."""
        proposed = proposal.proposed
        reason: RejectReason = "malformed"
        duplicate_of = None
        try:
            patch = canonical(self._blobs.get(proposed.genome[-1].digest))
            reason = "out_of_scope"
            check_scope(patch, self._target.scope)
            tree = await self._check_out(proposed.candidate, proposed.genome)
            reason, detail, duplicate_of = self._seen_before(proposal, tree)
            if not detail:
                return tree
        except PatchDoesNotApply as error:
            reason, detail = "does_not_apply", str(error)
        except PatchOutOfScope as error:
            reason, detail = "out_of_scope", str(error)
        except PatchError as error:
            detail = str(error)
        self._emit(
            self._stream,
            CandidateRejected(
                number=proposal.number,
                candidate=proposed.candidate,
                reason=reason,
                detail=detail,
                duplicate_of=duplicate_of,
            ),
        )
        await self._close(proposed.candidate)
        return None

    def _seen_before(
        self, proposal: ProposalState, tree: str
    ) -> tuple[RejectReason, str, str | None]:
        """Whether this very tree is the incumbent's, or was judged against this incumbent already."""
        state = self.state
        if tree == state.incumbent_tree:
            return "empty", "it changes nothing: the tree is the incumbent's", None
        for experiment in state.experiments.values():
            started = experiment.started
            if (
                started.purpose == "candidate"
                and (started.tree, started.incumbent) == (tree, state.incumbent)
                and experiment.outcome in (None, "judged")
            ):
                name = experiment.stream
                return "duplicate", f"the same tree as {name.partition('~')[0]}", name
        return "duplicate", "", None

    def _judge_of(self, experiment: ExperimentState) -> Judge:
        state = self.state
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
        experiment = self.state.experiments[proposal.experiment or ""]
        side = self._sides[proposal.proposed.candidate]
        emit = partial(self._emit, experiment.stream)
        judge = self._judge_of(experiment)
        await judge_pairs(
            judge,
            self._target,
            self._plug.backend,
            {"A": await self._incumbent(), "B": side},
            emit,
        )
        if self._harness_changed():
            failed = GateFailed(gate="harness", detail="the files of the target were modified")
            emit(failed)
            judge.tell(failed)
            self._snapshot_harness()
        if self._plug.profilers:
            await profile_runs(
                self._plug.profilers,
                self._target,
                self._plug.backend,
                side,
                emit,
                self._blobs,
                self._work,
            )
        await self._conclude(experiment, judge)

    async def _conclude(self, experiment: ExperimentState, judge: Judge) -> None:
        """Verdict, end of the experiment and change of the incumbent are one transaction."""
        verdict, started, state = judge.outcome, experiment.started, self.state
        assert isinstance(verdict, VerdictReached)
        stream, previous = experiment.stream, state.incumbent
        items: list[tuple[str, Event]] = [
            (stream, verdict),
            (stream, ExperimentFinished(outcome="judged")),
        ]
        lost: list[str] = []
        if verdict.kind == "keep":
            items.append(
                (
                    self._stream,
                    IncumbentChanged(
                        candidate=started.candidate,
                        genome=started.genome,
                        tree=started.tree,
                        experiment=stream,
                        previous=previous,
                    ),
                )
            )
            for other in state.unsettled():
                if other.experiment not in (None, stream):
                    lost.append(other.proposed.candidate)
                    detail = f"the incumbent changed with {stream.partition('~')[0]}"
                    items.append(
                        (
                            other.experiment or "",
                            ExperimentFinished(outcome="superseded", detail=detail),
                        )
                    )
        self._append(*items)
        for candidate in [*lost, previous if verdict.kind == "keep" else started.candidate]:
            await self._close(candidate)

    async def _session_lost(self, proposal: ProposalState, reason: str) -> None:
        """Void what was cut off and let the next round try again; the third time the candidate is to blame."""
        candidate = proposal.proposed.candidate
        experiment = self.state.experiments[proposal.experiment or ""]
        emit = partial(self._emit, experiment.stream)
        await self._close(candidate, keep_tree=True)
        for void in _cut_off(experiment):
            emit(void)
        self._lost[candidate] = self._lost.get(candidate, 0) + 1
        if self._lost[candidate] >= _SESSION_TRIES:
            emit(GateFailed(gate="session", detail=reason))
            await self._conclude(experiment, self._judge_of(experiment))

    # -- the result --

    async def _audit(self) -> None:
        """The final source against the baseline, on fresh pairs."""
        state = self.state
        experiment = next(
            (e for e in state.audits() if e.started.candidate == state.incumbent), None
        )
        if experiment is not None and experiment.outcome is not None:
            return
        if experiment is None:
            stream = self._log.new_stream("exp")
            started = self._experiment(
                "audit", 0, state.incumbent, state.incumbent_genome, state.incumbent_tree
            )
            self._emit(stream, started)
            experiment = state.experiments[stream]
        emit = partial(self._emit, experiment.stream)
        judge = self._judge_of(experiment)
        sides: dict[Any, Side] = {
            "A": await self._known(state.baseline, ()),
            "B": await self._incumbent(),
        }
        outcome = await judge_pairs(judge, self._target, self._plug.backend, sides, emit)
        emit(outcome, ExperimentFinished(outcome="measured"))

    async def close(self) -> None:
        """Give up all workspaces. Trees stay while the campaign can still go on, so that nothing is built twice."""
        finished = self.state.finished is not None
        for candidate in list(self._held):
            await self._close(candidate, keep_tree=not finished)
        if finished:
            for name in ("trees", "runs", "harness", "fetched"):
                remove_tree(self._work / name)


def _cut_off(experiment: ExperimentState) -> Iterator[PairVoided]:
    """Pairs that were scheduled and did not get both of their runs; each side must run beside the other, so they are void."""
    for pair in experiment.facts:
        if not isinstance(pair, PairScheduled):
            continue
        key = (pair.purpose, pair.workload, pair.index, pair.attempt)
        arms = set()
        ended = False
        for event in experiment.facts:
            if isinstance(event, RunMeasured | PairVoided):
                if (event.purpose, event.workload, event.index, event.attempt) == key:
                    ended |= isinstance(event, PairVoided)
                    arms |= {event.arm} if isinstance(event, RunMeasured) else set()
        if not ended and len(arms) < 2:
            yield PairVoided(
                purpose=pair.purpose,
                workload=pair.workload,
                index=pair.index,
                attempt=pair.attempt,
                reason="interrupted",
            )


def _gate_failure(experiment: ExperimentState) -> GateFailed | None:
    return next((event for event in experiment.facts if isinstance(event, GateFailed)), None)


@asynccontextmanager
async def open_campaign(
    folder: Path,
    results: Path,
    settings: Settings | None = None,
    *,
    resume: str | None = None,
    observer: Observer | None = None,
    wait: float = 0.0,
) -> AsyncIterator[Campaign]:
    """A campaign on the target in `folder`, logging to `results/<target>/`: a new one, or the one whose stream is `resume`.

    A resumed campaign uses the settings that it was started with.

    Raises:
        ConfigError: the target or the settings have problems, or do not fit the campaign that is resumed.
        ConcurrentWriteError: another process holds the lease; says which.
    """
    folder = folder.resolve()
    target = load_target(folder)
    home = results / target.name
    home.mkdir(parents=True, exist_ok=True)
    with (
        Lease.acquire(home / "events.db", wait=wait) as lease,
        Log.open(home / "events.db") as log,
    ):
        state = fold(log.read())
        if resume is not None:
            settings = structure(state.campaigns[resume].started.config, Settings, "the log")
        settings = settings or Settings()
        plug = _load_plugins(settings, target)
        try:
            async with anyio.create_task_group() as tasks:
                campaign = Campaign(
                    folder=folder,
                    target=target,
                    settings=settings,
                    log=log,
                    blobs=BlobStore(home / "blobs"),
                    lease=lease,
                    work=home / ".work",
                    plug=plug,
                    tasks=tasks,
                    state=state,
                    observer=observer,
                )
                try:
                    await campaign.begin(resume)
                    yield campaign
                finally:
                    with anyio.CancelScope(shield=True):
                        await campaign.close()
        except BaseExceptionGroup as group:
            raise _alone(group) from None


def _alone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in a group; task groups wrap what callers want to catch by its class."""
    if len(group.exceptions) > 1:
        return group
    (only,) = group.exceptions
    return _alone(only) if isinstance(only, BaseExceptionGroup) else only


def load_parser(name: str, folder: Path) -> Any:
    """The parser of a target: the name of a format, or `file.py:function` in the target's folder.

    Raises:
        ConfigError: there is no such file or function.
    """
    file, colon, function = name.partition(":")
    if not colon:
        return name
    path = folder / file
    spec = spec_from_file_location(f"aiopt_parser_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(str(folder / "target.toml"), [("output.format", f"no file {path}")])
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(
            str(folder / "target.toml"), [("output.format", f"{path} has no function {function}")]
        )
    return found
