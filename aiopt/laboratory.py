"""What experiments of every purpose share: their beginning, their sides, their pairs."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeVar

import anyio
from attrs import evolve, frozen

from aiopt.errors import AiOptError
from aiopt.events import (
    Arm,
    ExperimentPurpose,
    ExperimentStarted,
    GateFailed,
    LookTaken,
    MachineUnfit,
    MeasuringPaused,
    PairScheduled,
    PatchRef,
)
from aiopt.journal import Journal
from aiopt.lifecycle import Earlier, Emit
from aiopt.measure import Arms, IncumbentFailed, PairRunner, Side, TwoSides
from aiopt.pairs import pairs_by_purpose
from aiopt.protocols import Backend
from aiopt.replay import CampaignState, ExperimentState
from aiopt.rules import VoidRules
from aiopt.settings import Settings
from aiopt.target import Target
from aiopt.verdict import RULES, Decider, Judge
from aiopt.voiding import WINDOW, rules_in_force, too_many
from aiopt.workbench import Workbench

__all__ = ["Change", "Laboratory", "LayoutArms", "Unfit", "earlier_of"]

T = TypeVar("T")

_PAUSES = 6


@frozen
class Change:
    """A candidate and the tree that its genome makes."""

    candidate: str
    genome: tuple[PatchRef, ...]
    tree: str


def earlier_of(experiment: ExperimentState, *, intact: bool) -> Earlier:
    """What was got to with a candidate, of which its source is still there, or not."""
    return Earlier(
        attempts=experiment.attempts,
        cut_off=experiment.open_stages if intact else {},
        artifact=experiment.artifact if intact else None,
        passed=tuple(experiment.gates) if intact else (),
    )


class Unfit(AiOptError):
    """The machine does not allow a verdict now."""


class Laboratory:
    """The bench of one campaign and its journal; experiments begin here and run their pairs."""

    def __init__(
        self,
        *,
        journal: Journal,
        bench: Workbench,
        target: Target,
        settings: Settings,
        backend: Backend,
    ) -> None:
        self.journal, self.bench = journal, bench
        self.target, self.settings, self.backend = target, settings, backend
        self._voided: list[bool] = []
        """Of the pairs that this controller scheduled, which the machine voided."""
        self._pauses = 0

    @property
    def state(self) -> CampaignState:
        return self.journal.campaign

    def begin(
        self, purpose: ExperimentPurpose, number: int, change: Change, against: Change
    ) -> ExperimentState:
        """Log that an experiment began: `change` is arm B, `against` is arm A."""
        stream = self.journal.new_stream("exp")
        self.journal.emit(
            stream,
            ExperimentStarted(
                campaign=self.journal.stream,
                number=number,
                purpose=purpose,
                candidate=change.candidate,
                genome=change.genome,
                tree=change.tree,
                incumbent=against.candidate,
                incumbent_tree=against.tree,
                environment=self.settings.environment,
                mode=self.settings.mode,
            ),
        )
        return self.state.experiments[stream]

    @property
    def baseline(self) -> Change:
        """The unmodified source."""
        state = self.state
        return Change(state.baseline, (), state.started.base_tree)

    @property
    def incumbent(self) -> Change:
        """What candidates are measured against now."""
        state = self.state
        return Change(state.incumbent, state.incumbent_genome, state.incumbent_tree)

    def emitter(self, experiment: ExperimentState) -> Emit:
        """Writes to the stream of this experiment."""
        return partial(self.journal.emit, experiment.stream)

    async def side_of(self, change: Change) -> Side:
        """A candidate that passed its gates before, ready to be run; built again if a new
        controller finds it gone.

        Raises:
            IncumbentFailed: it fails them now.
        """
        candidate = change.candidate
        if candidate in self.bench.sides:
            return self.bench.sides[candidate]
        before = next(
            e
            for e in self.state.experiments.values()
            if e.started.candidate == candidate and e.started.purpose in ("baseline", "candidate")
        )
        intact = await self.bench.is_intact(candidate, change.tree)
        if not intact:
            await self.bench.check_out(candidate, self.state.started.base_commit, change.genome)
        side = await self.bench.side(
            candidate,
            change.tree,
            partial(self.journal.emit, self.journal.stream),
            earlier=Earlier(artifact=before.artifact, passed=before.gates) if intact else None,
        )
        if side is None:
            raise IncumbentFailed(
                f"candidate {candidate} passed its gates before and fails them now; "
                "`aiopt log` shows the stage and its output"
            )
        return side

    async def arms(
        self,
        experiment: ExperimentState,
        a: Change,
        b: Change,
        on_trial: frozenset[Arm] = frozenset(),
    ) -> "TwoSides | LayoutArms":
        """The two arms of an experiment. One on trial has been built for it before; another one
        passed its gates earlier, and is built again only if it is gone.

        Raises:
            IncumbentFailed: such a one fails its gates now.
        """
        changes: Mapping[Arm, Change] = {"A": a, "B": b}
        emit, plain = self.emitter(experiment), {}
        for arm, change in changes.items():
            if arm in on_trial:
                plain[arm] = self.bench.sides[change.candidate]
            else:
                plain[arm] = (await self.side_of(change)).writing_to(emit)
        sides = TwoSides(plain["A"], plain["B"])
        if not self.state.params.layout.rotate:
            return sides
        return LayoutArms(self, experiment, changes, sides, on_trial)

    def judge(self, experiment: ExperimentState, decider: Decider[T]) -> Judge[T]:
        """The judge of an experiment, told all that was measured so far."""
        state = self.state
        return Judge(
            decider,
            state.params,
            seed=state.started.seed,
            number=experiment.started.number,
            series=state.series(experiment),
            events=state.evidence(experiment),
        )

    async def run_pairs(
        self,
        experiment: ExperimentState,
        judge: Judge[T],
        arms: Arms,
        on_trial: frozenset[Arm] = frozenset(),
    ) -> T:
        """Run the pairs of an experiment to its outcome; looks are logged as they are taken.

        Raises:
            IncumbentFailed: an arm that is not on trial fails.
            SessionLost: the machinery went away.
            Unfit: too many pairs are void, and waiting did not help.
        """
        params = self.state.params
        runner = PairRunner(
            target=self.target,
            backend=self.backend,
            arms=arms,
            emit=self.emitter(experiment),
            rules=self._rules(experiment),
            warmup=params.warmup,
            on_trial=on_trial,
            voided=self._note_void,
        )
        return await runner.until_outcome(judge, lambda: self._log_looks(experiment, judge))

    def _rules(self, experiment: ExperimentState) -> VoidRules:
        """What voids a pair: nothing in a calibration, which shows what is normal here, and
        nothing where there is none.
        """
        rules = self.state.params.void
        calibration = self.state.calibration_of(experiment)
        if experiment.started.purpose == "calibration" or calibration is None:
            return evolve(rules, steal=0.0, psi=0.0, throttle=False)
        measured = pairs_by_purpose(calibration.facts)
        pairs = [
            pair
            for (purpose, _), each in measured.items()
            if purpose == "calibration"
            for pair in each
        ]
        return rules_in_force(rules, pairs)[0]

    def new_looks(self, experiment: ExperimentState, judge: Judge[T]) -> Sequence[LookTaken]:
        """The looks at its pairs that are not logged yet."""
        if experiment.started.purpose != "candidate":
            return ()
        rule = RULES[self.state.started.rule]
        return rule.looks(self.state.params, judge.events)[len(experiment.looks) :]

    def _log_looks(self, experiment: ExperimentState, judge: Judge[T]) -> None:
        looks = self.new_looks(experiment, judge)
        if looks:
            self.journal.emit(experiment.stream, *looks)

    async def _note_void(self, void: bool) -> None:
        """Wait where too many pairs are void: 1, 2, 4 … times the pause.

        Raises:
            Unfit: after six pauses it is no better.
        """
        self._voided.append(void)
        recent = self._voided[-WINDOW:]
        if not too_many(recent):
            self._pauses = 0 if len(recent) == WINDOW else self._pauses
            return
        reason = f"{sum(recent)} of the last {len(recent)} pairs were void by the machine's state"
        if self._pauses >= _PAUSES:
            unfit = MachineUnfit(reason=reason, voided=sum(recent), scheduled=len(recent))
            self.journal.emit(self.journal.stream, unfit)
            raise Unfit(
                f"the machine is unfit: {reason}, and waiting did not help. `aiopt resume` goes on "
                "when it is quieter; `aiopt log` shows which rule voided them, and "
                "`--set void.psi=0` begins a campaign without it"
            )
        seconds = self.state.params.void.pause * 2**self._pauses
        self._pauses += 1
        self._voided.clear()
        paused = MeasuringPaused(reason=reason, seconds=seconds)
        self.journal.emit(self.journal.stream, paused)
        await anyio.sleep(seconds)


class LayoutArms:
    """Two arms that take every layout in turn, both the same one.

    All rebuilds are made when the first of them is needed, not each before its own pair: a round of
    pairs needs every one, and the load of a build just before a pair would void it.
    """

    def __init__(
        self,
        lab: Laboratory,
        experiment: ExperimentState,
        changes: Mapping[Arm, Change],
        plain: TwoSides,
        on_trial: frozenset[Arm],
    ) -> None:
        self._lab, self._experiment, self._changes = lab, experiment, changes
        self._plain, self._on_trial = plain, on_trial
        self._rebuilt: dict[tuple[Arm, int], Side] = {}

    async def of(self, pair: PairScheduled) -> Mapping[Arm, Side] | GateFailed:
        """See `aiopt.measure.Arms.of`."""
        if not pair.layout:
            return await self._plain.of(pair)
        rebuilt: Sequence[Arm] = ("B",) if pair.purpose == "layout" else ("A", "B")
        failed = await self.build(rebuilt)
        if failed is not None:
            return failed
        sides = await self._plain.of(pair)
        return {**sides, **{arm: self._rebuilt[arm, pair.layout] for arm in rebuilt}}

    async def build(self, arms: Sequence[Arm]) -> GateFailed | None:
        """Make all rebuilds of these arms, unless that was done; the gate if one fails that is on
        trial, which is tried first.

        Raises:
            IncumbentFailed: one fails that is not.
        """
        for arm in sorted(arms, key=lambda arm: arm not in self._on_trial):
            for layout in range(1, self._lab.state.params.layout.rotate + 1):
                if (arm, layout) in self._rebuilt:
                    continue
                side = await self._build(arm, layout)
                if isinstance(side, GateFailed):
                    return side
                self._rebuilt[arm, layout] = side
        return None

    async def _build(self, arm: Arm, layout: int) -> Side | GateFailed:
        lab, experiment, change = self._lab, self._experiment, self._changes[arm]
        on_trial = arm in self._on_trial
        # A calibration tells of its incumbent's rebuilds itself: they are what it is about.
        own = on_trial or experiment.started.purpose == "calibration"
        emit = lab.emitter(experiment) if own else partial(lab.journal.emit, lab.journal.stream)
        side = await lab.bench.rebuilt(
            change.candidate,
            change.tree,
            emit,
            layout=layout,
            base=lab.state.started.base_commit,
            genome=change.genome,
            earlier=Earlier(
                attempts=experiment.attempts if own else {},
                cut_off=experiment.open_stages if own else {},
                artifact=lab.state.rebuilds.get((change.candidate, layout)),
            ),
        )
        if isinstance(side, Side):
            return side if on_trial else side.writing_to(lab.emitter(experiment))
        if on_trial:
            return side
        emit(side)
        raise IncumbentFailed(
            f"candidate {change.candidate} was built before and cannot be built {side.detail}; "
            "`aiopt log` shows the stage and its output"
        )
