"""The loop: fold the log, ask the strategy, let the proposer propose, evaluate, append.

There is no state but the fold of the log. A campaign that was killed at any moment is opened
again, what its controller left running is killed, the pair that was cut off is voided, and the
loop goes on where the log ends.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
from attrs import evolve, frozen

import aiopt
from aiopt import plugins
from aiopt.auditing import ablate, audit, audit_is_due
from aiopt.blobs import BlobStore
from aiopt.calibrating import ensure_calibrated
from aiopt.candidate import canonical, claims_of, hypothesis_of, part_of
from aiopt.config import structure, unstructure
from aiopt.errors import ConfigError, PatchError, SessionLost
from aiopt.evaluate import BaselineFailed, Evaluator, cut_off_pairs
from aiopt.events import (
    BudgetSpent,
    CampaignFinished,
    CampaignInterrupted,
    CampaignResumed,
    CampaignStarted,
    CandidateProposed,
    EnvironmentObserved,
    PatchPart,
    PatchRef,
    PatchShape,
    PluginUsed,
    ProposalDeclined,
)
from aiopt.genome import ordered
from aiopt.ids import candidate_id
from aiopt.journal import Journal, Observer
from aiopt.laboratory import Laboratory, Unfit
from aiopt.lease import Lease
from aiopt.log import Log
from aiopt.measure import IncumbentFailed
from aiopt.profiling import ProfileRunner
from aiopt.protocols import (
    Backend,
    Patch,
    Profiler,
    Proposal,
    ProposalRequest,
    Proposer,
    Selection,
    Strategy,
)
from aiopt.replay import CampaignState, ExperimentState, ProposalState, fold
from aiopt.settings import TRY, Settings, rule_params
from aiopt.stats import proposal_rng
from aiopt.target import Target, load_target, spec_of
from aiopt.verdict import RULES, params_for
from aiopt.views import evidence_digest, evidence_table, profiles_of
from aiopt.workbench import Workbench, marker_of

__all__ = ["BaselineFailed", "Campaign", "Observer", "Unfit", "open_campaign"]


@frozen(kw_only=True)
class _Plugins:
    backend: Backend
    strategy: Strategy
    proposer: Proposer | None
    profilers: Mapping[str, Profiler]
    used: tuple[PluginUsed, ...]


def _load_plugins(
    settings: Settings, target: Target, profile_with: Sequence[str] | None
) -> _Plugins:
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
    if profile_with is None:
        named = target.profilers if settings.profile_with is None else settings.profile_with
        profile_with = named if settings.mode == "full" else ()
    profilers = {}
    for name in profile_with:
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
        plug: _Plugins,
        journal: Journal,
        blobs: BlobStore,
        bench: Workbench,
    ) -> None:
        self._folder, self._target, self._settings = folder, target, settings
        self._plug, self._journal, self._blobs, self._bench = plug, journal, blobs, bench
        self._lab = Laboratory(
            journal=journal, bench=bench, target=target, settings=settings, backend=plug.backend
        )
        runner = ProfileRunner(
            profilers=plug.profilers,
            backend=plug.backend,
            blobs=blobs,
            scratch=bench.scratch,
            slowdown=settings.profile_slowdown,
        )
        self._evaluator = Evaluator(self._lab, blobs=blobs, profilers=runner)
        self._why_no_more = "nothing is left to do"
        self._was_finished: str | None = None
        """Why the campaign had been finished before it was opened again."""

    @property
    def state(self) -> CampaignState:
        """The fold of what this campaign has logged so far."""
        return self._journal.campaign

    # -- beginning --

    async def begin(self, resume: str | None) -> None:
        """Clear away what a dead controller left, then start or take over."""
        supervisors = [
            stage.supervisor
            for campaign in self._journal.log_state.campaigns.values()
            for stage in campaign.cut_off_stages()
            if stage.supervisor is not None
        ]
        killed = await self._bench.clear(supervisors, self._adoptable(resume))
        if resume is None:
            await self._start()
        else:
            await self._resume(resume, killed)

    def _adoptable(self, resume: str | None) -> list[str]:
        """The jobs of builds and tests that a dead controller began: they may go on, and what
        measures may not, since its pair is not whole.
        """
        if resume is None:
            return []
        return [
            stage.job
            for experiment in self._journal.log_state.campaigns[resume].experiments.values()
            for stage in experiment.open_stages.values()
            if stage.job and stage.stage in ("build", "test")
        ]

    async def _start(self) -> None:
        settings = self._settings
        params = params_for(settings.rule, rule_params(self._target, settings))
        base_commit, base_tree = await self._bench.import_source()
        observed = dict(await self._plug.backend.observe())
        self._journal.stream = stream = self._journal.new_stream("cmp")
        self._journal.emit(
            stream,
            CampaignStarted(
                target=self._target.name,
                target_digest=self._bench.harness_digest,
                harness=self._blobs.put(self._bench.harness_archive()),
                spec=spec_of(self._target),
                base_commit=base_commit,
                base_tree=base_tree,
                config=unstructure(settings),
                rule=settings.rule,
                rule_version=RULES[settings.rule].version,
                rule_params=unstructure(params),  # complete: defaults may change, the log may not
                seed=settings.seed,
                environment=settings.environment,
                plugins=self._plug.used,
                aiopt_version=aiopt.__version__,
            ),
            EnvironmentObserved(environment=settings.environment, facts=observed),
        )

    async def _resume(self, stream: str, killed: int) -> None:
        self._journal.stream = stream
        self._was_finished = self.state.finished
        started = self.state.started
        if started.target_digest != self._bench.harness_digest:
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
        if not await self._bench.has_source(started.base_commit):
            commit, _ = await self._bench.import_source()
            if commit != started.base_commit:
                raise ConfigError(
                    str(self._folder),
                    [
                        (
                            "source",
                            f"is commit {commit}, and the campaign began with "
                            f"{started.base_commit}: restore it, or begin another campaign",
                        )
                    ],
                )
        voids = [
            (experiment.stream, void)
            for experiment in self.state.experiments.values()
            if experiment.outcome is None
            for void in cut_off_pairs(experiment.facts)
        ]
        resumed = CampaignResumed(
            processes_killed=killed, aiopt_version=aiopt.__version__, plugins=self._plug.used
        )
        self._journal.append((stream, resumed), *voids)

    # -- the loop --

    async def run(self) -> None:
        """Search until the proposer has no more or the budget is spent, then audit.

        Raises:
            BaselineFailed, IncumbentFailed, Unfit: nothing can be
            measured; logged as an interruption.
        """
        with self._interruption_logged():
            await self._evaluator.baseline()
            await ensure_calibrated(self._lab)
            while await self._round():
                if audit_is_due(self.state):
                    await audit(self._lab)
            if self.state.kept:
                await audit(self._lab)
                await ablate(self._lab)
            self._journal.emit(self._journal.stream, CampaignFinished(reason=self._why_no_more))

    async def audit(self, *, anew: bool = False) -> None:
        """The incumbent against the baseline on fresh pairs, then without each of its patches.

        A campaign that was finished is finished afterwards, also if this is interrupted.

        Raises:
            ConfigError: nothing was kept, so there is nothing to audit.
            Unfit, BaselineFailed, IncumbentFailed: nothing can be measured.
        """
        try:
            self._check_kept()
            with self._interruption_logged():
                await self._evaluator.baseline()
                await ensure_calibrated(self._lab)
                await audit(self._lab, anew=anew)
                await ablate(self._lab)
        finally:
            self._finish_again()

    async def profile(self, workload: str | None = None) -> ExperimentState:
        """Profile the incumbent with the profilers that the campaign was opened with.

        A campaign that was finished is finished afterwards, also if this is interrupted.

        Raises:
            ConfigError: the target has no such workload.
            BaselineFailed, IncumbentFailed: it does not run.
        """
        try:
            with self._interruption_logged():
                known = self._target.workloads
                if workload is not None and workload not in known:
                    problem = f"{workload!r}: there are {', '.join(known)}"
                    raise ConfigError(str(self._folder), [("workloads", problem)])
                await self._evaluator.baseline(profiled=False)
                return await self._evaluator.profile(workload or self._target.main_workloads[0])
        finally:
            self._finish_again()

    def _finish_again(self) -> None:
        if self._was_finished is not None:
            self._journal.emit(self._journal.stream, CampaignFinished(reason=self._was_finished))

    def _check_kept(self) -> None:
        if not self.state.kept:
            raise ConfigError(
                self._journal.stream,
                [("", "nothing was kept: the final source is the unmodified one")],
            )

    async def judge(self, patch: Patch) -> ProposalState:
        """Evaluate one patch on top of the incumbent; the campaign stays open for more.

        Raises:
            BaselineFailed, IncumbentFailed, Unfit: nothing can be
            measured; logged as an interruption.
        """
        with self._interruption_logged():
            await self._evaluator.baseline()
            ref, _ = self._store(patch)
            begun = [p for p in self.state.unsettled() if p.proposed.genome[-1] == ref]
            await self._settle_all()
            if begun:  # the same call was interrupted before
                return begun[0]
            state = self.state
            here = Selection(parents=(state.incumbent,), genome=state.incumbent_genome)
            number = self._propose(Proposal(patch=patch), here, TRY)
            await self._settle_all()
            return self.state.proposals[number]

    @contextmanager
    def _interruption_logged(self) -> Iterator[None]:
        """Whatever ends the work before its time is in the log, and `resume` goes on from there."""
        try:
            yield
        except anyio.get_cancelled_exc_class():
            self._interrupted("stopped by the user")
            raise
        except (BaselineFailed, IncumbentFailed, Unfit, SessionLost, ConfigError) as error:
            self._interrupted(str(error))
            raise

    def _interrupted(self, reason: str) -> None:
        self._journal.emit(self._journal.stream, CampaignInterrupted(reason=reason))

    async def _settle_all(self) -> None:
        while any(True for _ in self.state.unsettled()):
            await self._evaluator.prepare()
            await self._evaluator.measure_next()

    async def _round(self) -> bool:
        """Build ahead as far as there is room, then measure one; False when nothing is left."""
        await self._evaluator.prepare()
        while await self._fill():
            await self._evaluator.prepare()
        if not any(True for _ in self.state.unsettled()):
            return False
        await self._evaluator.measure_next()
        return True

    async def _fill(self) -> bool:
        """Propose while there is room; whether anything was."""
        before = len(self.state.proposals)
        while len(list(self.state.unsettled())) < self._settings.jobs and await self._ask():
            pass
        return len(self.state.proposals) > before

    async def _ask(self) -> bool:
        """One more candidate, if budget, strategy and proposer have one."""
        self._why_no_more = self._over_budget()
        if self._why_no_more or self._plug.proposer is None:
            return False
        while True:
            state = self.state
            rng = proposal_rng(state.started.seed, state.next_number)
            selections = self._plug.strategy.ask(state, rng, 1)
            if not selections:
                self._why_no_more = "the strategy asks for nothing more"
                return False
            selection = selections[0]
            if selection.operator not in ("propose", "rewrite"):
                self._combine(selection)
                return True
            proposal = await self._plug.proposer.propose(await self._request(selection))
            if proposal is not None:
                self._propose(proposal, selection, self._settings.proposer)
                return True
            if selection.operator in state.declined:
                self._why_no_more = "the proposer has no more"
                return False
            self._decline(selection)

    def _decline(self, selection: Selection) -> None:
        """Log that the proposer had nothing, so that the strategy can ask for something else."""
        declined = ProposalDeclined(
            operator=selection.operator,
            proposer=self._settings.proposer,
            parents=selection.parents,
            genome=selection.genome,
        )
        self._journal.emit(self._journal.stream, declined)

    def _over_budget(self) -> str:
        state, budget = self.state, self._settings.budget
        if budget.runs is not None and state.runs >= budget.runs:
            return f"the budget of {budget.runs} runs is spent"
        if budget.candidates is not None and len(state.proposals) >= budget.candidates:
            return f"the budget of {budget.candidates} candidates is spent"
        minutes = sum(experiment.seconds for experiment in state.experiments.values()) / 60
        if budget.minutes is not None and minutes >= budget.minutes:
            return f"the budget of {budget.minutes:g} minutes is spent"
        return ""

    async def _request(self, selection: Selection) -> ProposalRequest:
        hints = anyio.Path(self._folder / "hints.md")
        here = selection.parents == (self.state.incumbent,)
        parent, tree = self.state.incumbent, self.state.incumbent_tree
        intact = here and await self._bench.is_intact(parent, tree)
        return ProposalRequest(
            selection=selection,
            state=self.state,
            target_folder=self._folder,
            tree=self._bench.tree_of(parent) if intact else None,
            hints=await hints.read_text(encoding="utf-8") if await hints.is_file() else "",
            evidence=self._evidence_of(selection),
            read_blob=self._blobs.get,
        )

    def _evidence_of(self, selection: Selection) -> str:
        parent = selection.parents[-1] if selection.parents else self.state.baseline
        return evidence_digest(evidence_table(profiles_of(self.state, parent)))

    def _store(self, patch: Patch) -> tuple[PatchRef, PatchShape | None]:
        try:
            read = canonical(patch.text)
            text, shape = read.text, read.shape
        except PatchError:
            text, shape = patch.text, None  # kept as it came; it is rejected when it is settled
        return PatchRef(name=patch.name, digest=self._blobs.put(text)), shape

    def _combine(self, selection: Selection) -> None:
        """Log a candidate that the strategy made of known patches."""
        state, genome, parts = self.state, list[PatchRef](), list[PatchPart]()
        for patch in ordered(selection.genome, state.patches):
            hunks = selection.parts.get(patch.digest)
            if hunks is None:
                genome.append(patch)
                continue
            part = part_of(canonical(self._blobs.get(patch.digest)), hunks)
            name = f"{patch.name}#{','.join(map(str, hunks))}"
            genome.append(PatchRef(name=name, digest=self._blobs.put(part.text)))
            parts.append(
                PatchPart(
                    digest=part.digest, origin=patch.digest, hunks=tuple(hunks), shape=part.shape
                )
            )
        self._journal.emit(
            self._journal.stream,
            CandidateProposed(
                number=state.next_number,
                candidate=candidate_id(state.started.base_commit, [p.digest for p in genome]),
                genome=tuple(genome),
                parents=selection.parents,
                hypothesis="",
                proposer="",
                operator=selection.operator,
                parts=tuple(parts),
            ),
        )

    def _propose(self, proposal: Proposal, selection: Selection, proposer: str) -> int:
        """Log a proposal: its patch is stored first, so that
        nothing can refer to what is not there.
        """
        patch, number = proposal.patch, self.state.next_number
        ref, shape = self._store(patch)
        genome = (*selection.genome, ref)
        proposed = CandidateProposed(
            number=number,
            candidate=candidate_id(self.state.started.base_commit, [p.digest for p in genome]),
            genome=genome,
            parents=selection.parents,
            hypothesis=patch.hypothesis or hypothesis_of(patch.text),
            claims=patch.claims or claims_of(patch.text),
            proposer=proposer,
            cost=dict(proposal.cost),
            operator=selection.operator,
            patch=ref.digest,
            shape=shape,
        )
        spent = [
            BudgetSpent(what=name, amount=float(amount), unit=name)
            for name, amount in proposal.cost.items()
            if isinstance(amount, int | float)
        ]
        self._journal.emit(self._journal.stream, proposed, *spent)
        return number

    async def close(self) -> None:
        """Give up all workspaces. Trees stay while the campaign can
        still go on, so that nothing is built twice.
        """
        begun = self._journal.stream != ""
        await self._bench.close_all(keep_trees=begun and self.state.finished is None)


@asynccontextmanager
async def open_campaign(
    folder: Path,
    results: Path,
    settings: Settings | None = None,
    *,
    resume: str | None = None,
    observer: Observer | None = None,
    wait: float = 0.0,
    profile_with: Sequence[str] | None = None,
) -> AsyncIterator[Campaign]:
    """A campaign on the target in `folder`, logging to `results/<target>/`:
    a new one, or the one whose stream is `resume`.

    A resumed campaign uses the settings that it was started with. `wait` is how many seconds to
    wait for the lease. `profile_with` names the profilers instead of what its mode says.

    Raises:
        ConfigError: the target or the settings have problems, or do not fit the campaign that is
        resumed.
        ConcurrentWriteError: another process holds the lease; says which.
    """
    target = load_target(folder)
    folder, home = _absolute(folder), _home(_absolute(results), target)
    with (
        Lease.acquire(home / "events.db", wait=wait) as lease,
        Log.open(home / "events.db") as log,
    ):
        state = fold(log.read())
        if resume is not None:
            settings = structure(state.campaigns[resume].started.config, Settings, "the log")
        settings = settings or Settings()
        plug = _load_plugins(settings, target, profile_with)
        blobs = BlobStore(home / "blobs")
        journal = Journal(log, state, observer)
        try:
            async with (
                plug.backend.session(marker_of(home / "events.db")) as backend,
                anyio.create_task_group() as tasks,
            ):
                plug = evolve(plug, backend=backend)
                bench = Workbench(
                    folder=folder,
                    target=target,
                    backend=plug.backend,
                    blobs=blobs,
                    lease=lease,
                    work=home / ".work",
                    log_path=home / "events.db",
                    tasks=tasks,
                )
                campaign = Campaign(
                    folder=folder,
                    target=target,
                    settings=settings,
                    plug=plug,
                    journal=journal,
                    blobs=blobs,
                    bench=bench,
                )
                try:
                    await campaign.begin(resume)
                    yield campaign
                finally:
                    with anyio.CancelScope(shield=True):
                        await campaign.close()
        except BaseExceptionGroup as group:
            raise _alone(group) from None


def _absolute(folder: Path) -> Path:
    return folder.absolute()


def _home(results: Path, target: Target) -> Path:
    home = results / target.name
    home.mkdir(parents=True, exist_ok=True)
    return home


def _alone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception in a group; task groups wrap what callers want to catch by its class."""
    if len(group.exceptions) > 1:
        return group
    (only,) = group.exceptions
    return _alone(only) if isinstance(only, BaseExceptionGroup) else only
