"""The pairs: incumbent and candidate side by side, in the order of a
coin that is logged before the first of the two runs.

Each run starts everything anew. Nobody else builds or measures on the machine while a pair runs. A
pair is repeated, in the same order, only if it was interrupted or the incumbent itself failed in
it, never for its values.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from attrs import evolve, frozen

from aiopt.errors import AiOptError
from aiopt.events import (
    Arm,
    GateFailed,
    MetricUnreadable,
    PairScheduled,
    PairVoided,
    RunMeasured,
)
from aiopt.ids import run_key
from aiopt.lifecycle import Built, Emit, Execution, Stages
from aiopt.metrics import Problem
from aiopt.protocols import Backend
from aiopt.rules import VoidRules
from aiopt.target import Target
from aiopt.verdict import Judge
from aiopt.voiding import void_of

__all__ = [
    "Arms",
    "IncumbentFailed",
    "PairRunner",
    "Side",
    "TwoSides",
    "moved",
    "outcome_of",
    "run_once",
]

T = TypeVar("T")

PairEvent = PairScheduled | RunMeasured | PairVoided | GateFailed

_TRIES = 3


class IncumbentFailed(AiOptError):
    """The incumbent's own workload fails, so nothing can be measured against it."""


@frozen(kw_only=True)
class Side:
    """One arm of an experiment: what was built, and the stages that run it."""

    built: Built
    stages: Stages

    def writing_to(self, emit: Emit) -> "Side":
        """The same side as part of another experiment, which its events then belong to."""
        return evolve(self, stages=self.stages.writing_to(emit))


class Arms(Protocol):
    """Where the two sides of a pair come from."""

    async def of(self, pair: PairScheduled) -> Mapping[Arm, Side] | GateFailed:
        """The sides of this pair; those of another layout are built when they are first needed.

        Where that fails for an arm on trial, the gate, which is not logged yet.

        Raises:
            IncumbentFailed: it fails for another arm.
        """
        ...


@frozen
class TwoSides:
    """The same two sides in every pair."""

    a: Side
    b: Side

    async def of(self, pair: PairScheduled) -> Mapping[Arm, Side]:
        """See `Arms.of`."""
        return {"A": self.a, "B": self.b}


@frozen(kw_only=True)
class PairRunner:
    """Runs the pairs that a `Judge` asks for."""

    target: Target
    backend: Backend
    arms: Arms
    emit: Emit
    rules: VoidRules
    """In force for these pairs."""
    warmup: int
    """Discarded pairs before the first one of each workload and layout."""
    on_trial: frozenset[Arm]
    """Arms whose failure makes the candidate invalid. The failure of another voids the pair."""
    voided: Callable[[bool], Awaitable[None]]
    """Told of each pair whether the machine voided it; waits where too many were."""

    async def until_outcome(self, judge: Judge[T], told: Callable[[], None] = lambda: None) -> T:
        """Run pairs until there is an outcome; `told` is called after each one.

        Raises:
            IncumbentFailed: an arm that cannot be to blame failed three times in one pair.
            SessionLost: the machinery went away.
        """
        warm: set[tuple[str, int]] = set()
        failures = 0  # in a row; attempts that were cut off with their controller do not count
        while (pair := judge.next_pair()) is not None:
            if (pair.workload, pair.layout) not in warm:
                warm.add((pair.workload, pair.layout))
                await self._warm_up(judge, pair)
                continue
            events = await self.run(pair)
            judge.tell(*events)
            told()
            last = events[-1]
            failures = failures + 1 if isinstance(last, PairVoided) and not last.rule else 0
            if failures >= _TRIES:
                raise IncumbentFailed(
                    f"the incumbent failed {failures} times in pair {pair.index} of workload "
                    f"{pair.workload}; `aiopt log` shows the stage and its output"
                )
            await self.voided(isinstance(last, PairVoided) and bool(last.rule))
        outcome = judge.outcome
        assert outcome is not None
        return outcome

    async def _warm_up(self, judge: Judge[T], pair: PairScheduled) -> None:
        for _ in range(self.warmup):
            attempt = sum(
                isinstance(event, PairScheduled)
                and (event.purpose, event.workload) == ("warmup", pair.workload)
                for event in judge.events
            )
            discarded = evolve(pair, purpose="warmup", index=0, attempt=attempt)
            events = await self.run(discarded, like=pair)
            judge.tell(*events)
            if isinstance(events[-1], GateFailed):
                return

    async def run(self, pair: PairScheduled, like: PairScheduled | None = None) -> list[PairEvent]:
        """Both runs of a pair; the events that a judge needs, all of them already written.

        `like` is the pair whose sides it warms up.
        """
        sides = await self.arms.of(like or pair)
        if isinstance(sides, GateFailed):
            self.emit(sides)
            return [sides]
        told: list[PairEvent] = [pair]
        self.emit(pair)
        first: RunMeasured | None = None
        async with self.backend.measuring():
            order: tuple[Arm, Arm] = ("A", "B") if pair.order == "AB" else ("B", "A")
            for position, arm in enumerate(order, start=1):
                ran = await run_once(sides[arm], pair, arm)
                outcome = outcome_of(ran, self.target, pair, arm, position, arm in self.on_trial)
                last = outcome[-1]
                if first is not None and isinstance(last, RunMeasured):
                    outcome += self._void(pair, first, last)
                first = last if isinstance(last, RunMeasured) else None
                self.emit(*outcome)
                told += [event for event in outcome if not isinstance(event, MetricUnreadable)]
                if first is None:
                    break
        return told

    def _void(
        self, pair: PairScheduled, first: RunMeasured, second: RunMeasured
    ) -> list[PairVoided]:
        """In one transaction with the second run, so that no crash makes the pair valid."""
        found = void_of(self.rules, first.covariates, second.covariates)
        if found is None or pair.purpose == "warmup":
            return []
        return [
            PairVoided(
                purpose=pair.purpose,
                workload=pair.workload,
                index=pair.index,
                attempt=pair.attempt,
                reason=found.detail,
                rule=found.rule,
                covariates=dict(first.covariates),
            )
        ]


async def run_once(
    side: Side, pair: PairScheduled, arm: Arm
) -> tuple[Execution, Mapping[str, float]]:
    """One run, with the state of the machine before it and what moved meanwhile."""
    label = run_key(pair.purpose, pair.workload, pair.index, pair.attempt, arm)
    before = await side.built.workspace.covariates()
    started = time.monotonic()
    execution = await side.stages.execute(pair.workload, label)
    seconds = time.monotonic() - started
    after = await side.built.workspace.covariates()
    return execution, {**before, **moved(before, after), "run_seconds": seconds}


def moved(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """By how much the counters among the covariates have grown, as `<name>_delta`."""
    return {
        f"{name}_delta": after[name] - value
        for name, value in before.items()
        if name in after and name.endswith(("_jiffies", "_count", "_total"))
    }


def outcome_of(
    ran: tuple[Execution, Mapping[str, float]],
    target: Target,
    pair: PairScheduled,
    arm: Arm,
    position: int,
    may_be_invalid: bool,
) -> list[RunMeasured | MetricUnreadable | PairVoided | GateFailed]:
    """The events of one run: measured, or failed; the last one says which.

    `may_be_invalid`: a failure of this arm is the candidate's own; otherwise the pair is void.
    """
    execution, covariates = ran
    if not execution.ok:
        return [
            _failure(pair, may_be_invalid, execution.failed_stage, execution.detail, execution.log)
        ]
    problems = [*execution.problems, *_not_positive(execution, target)]
    events: list[RunMeasured | MetricUnreadable | PairVoided | GateFailed] = [
        MetricUnreadable(
            metric=problem.metric,
            found=problem.found or problem.why,
            purpose=pair.purpose,
            workload=pair.workload,
            index=pair.index,
            attempt=pair.attempt,
            arm=arm,
            log=execution.log,
        )
        for problem in problems
    ]
    needed = {
        name
        for name, metric in target.metrics.items()
        if metric.role != "info" or metric.kind == "digest"
    }
    blocking = [p for p in problems if p.metric in needed or not p.metric]
    if blocking:
        detail = "; ".join(str(problem) for problem in blocking)
        return [*events, _failure(pair, may_be_invalid, "metrics", detail, execution.log)]
    events.append(
        RunMeasured(
            purpose=pair.purpose,
            workload=pair.workload,
            index=pair.index,
            attempt=pair.attempt,
            arm=arm,
            position=position,
            metrics=dict(execution.metrics),
            texts=dict(execution.texts),
            covariates=dict(covariates),
            log=execution.log,
        )
    )
    return events


def _not_positive(execution: Execution, target: Target) -> list[Problem]:
    """What is compared by ratio must be above 0; a 0 is a failed reading, not a record."""
    problems = []
    for name, metric in target.metrics.items():
        by_ratio = metric.role == "primary" or (metric.role == "guard" and metric.limit is None)
        lowest = min(execution.metrics.get(name, (1.0,)))
        if by_ratio and lowest <= 0:
            why = "must be above 0: it is compared by ratio"
            problems.append(Problem(name, f"{lowest:g}", None, why))
    return problems


def _failure(
    pair: PairScheduled, may_be_invalid: bool, stage: str, detail: str, log: str | None
) -> GateFailed | PairVoided:
    """The candidate's failure makes it invalid; the incumbent's makes the pair void."""
    if may_be_invalid:
        return GateFailed(gate=stage, detail=f"{detail} (workload {pair.workload})", log=log)
    return PairVoided(
        purpose=pair.purpose,
        workload=pair.workload,
        index=pair.index,
        attempt=pair.attempt,
        reason=f"the incumbent failed in {stage}: {detail}",
    )
