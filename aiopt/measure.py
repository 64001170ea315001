"""The pairs: incumbent and candidate side by side, in the order of a
coin that is logged before the first of the two runs.

Each run starts everything anew. Nobody else builds or measures on the machine while a pair runs. A
pair is repeated, in the same order, only if it was interrupted or the incumbent itself failed in
it, never for its values.
"""

from collections.abc import Mapping
from pathlib import Path

from attrs import evolve, frozen

from aiopt.blobs import BlobStore
from aiopt.errors import AiOptError
from aiopt.events import (
    Arm,
    EvidenceCaptured,
    GateFailed,
    MetricUnreadable,
    PairScheduled,
    PairVoided,
    ProfilerUnavailable,
    RunMeasured,
)
from aiopt.ids import run_key
from aiopt.lifecycle import Built, Emit, Execution, Stages
from aiopt.metrics import Problem
from aiopt.protocols import (
    Backend,
    Failed,
    Inconclusive,
    Measured,
    NotAvailable,
    Profiler,
)
from aiopt.target import Target
from aiopt.verdict import Judge, Outcome

__all__ = [
    "IncumbentFailed",
    "Side",
    "judge_pairs",
    "outcome_of",
    "profile_runs",
    "run_once",
    "run_pair",
]

_INCUMBENT_TRIES = 3


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


async def judge_pairs(
    judge: Judge, target: Target, backend: Backend, sides: Mapping[Arm, Side], emit: Emit
) -> Outcome:
    """Run the pairs that the judge asks for until it has an outcome.

    Raises:
        IncumbentFailed: the incumbent failed in three attempts at one pair.
        SessionLost: the machinery went away.
    """
    failures = 0  # in a row; attempts that were cut off with their controller do not count
    while (pair := judge.next_pair()) is not None:
        told = await run_pair(pair, target, backend, sides, emit)
        judge.tell(*told)
        failures = failures + 1 if isinstance(told[-1], PairVoided) else 0
        if failures >= _INCUMBENT_TRIES:
            raise IncumbentFailed(
                f"the incumbent failed {failures} times in pair {pair.index} of workload "
                f"{pair.workload}; `aiopt log` shows the stage and its output"
            )
    outcome = judge.outcome
    assert outcome is not None
    return outcome


async def run_pair(
    pair: PairScheduled, target: Target, backend: Backend, sides: Mapping[Arm, Side], emit: Emit
) -> list[PairScheduled | RunMeasured | PairVoided | GateFailed]:
    """Both runs of a pair; returns the events that the judge needs, all of them already written."""
    told: list[PairScheduled | RunMeasured | PairVoided | GateFailed] = [pair]
    emit(pair)
    async with backend.measuring():
        order: tuple[Arm, Arm] = ("A", "B") if pair.order == "AB" else ("B", "A")
        for position, arm in enumerate(order, start=1):
            ran = await run_once(sides[arm], pair, arm)
            outcome = outcome_of(ran, target, pair, arm, position)
            emit(*outcome)
            told += [event for event in outcome if not isinstance(event, MetricUnreadable)]
            if not isinstance(outcome[-1], RunMeasured):
                break
    return told


async def run_once(
    side: Side, pair: PairScheduled, arm: Arm
) -> tuple[Execution, Mapping[str, float]]:
    """One run, with the state of the machine before it and what moved meanwhile."""
    label = run_key(pair.purpose, pair.workload, pair.index, pair.attempt, arm)
    before = await side.built.workspace.covariates()
    execution = await side.stages.execute(pair.workload, label)
    after = await side.built.workspace.covariates()
    changed = {
        f"{name}_delta": after[name] - value
        for name, value in before.items()
        if name in after and name.endswith(("_jiffies", "_count", "_total"))
    }
    return execution, {**before, **changed}


def outcome_of(
    ran: tuple[Execution, Mapping[str, float]],
    target: Target,
    pair: PairScheduled,
    arm: Arm,
    position: int,
) -> list[RunMeasured | MetricUnreadable | PairVoided | GateFailed]:
    """The events of one run: measured, or failed; the last one says which."""
    execution, covariates = ran
    if not execution.ok:
        return [_failure(pair, arm, execution.failed_stage, execution.detail, execution.log)]
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
        return [*events, _failure(pair, arm, "metrics", detail, execution.log)]
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
    pair: PairScheduled, arm: Arm, stage: str, detail: str, log: str | None
) -> GateFailed | PairVoided:
    """The candidate's failure makes it invalid; the incumbent's makes the pair void."""
    if arm == "B":
        return GateFailed(gate=stage, detail=f"{detail} (workload {pair.workload})", log=log)
    return PairVoided(
        purpose=pair.purpose,
        workload=pair.workload,
        index=pair.index,
        attempt=pair.attempt,
        reason=f"the incumbent failed in {stage}: {detail}",
    )


async def profile_runs(
    profilers: Mapping[str, Profiler],
    target: Target,
    backend: Backend,
    side: Side,
    emit: Emit,
    blobs: BlobStore,
    scratch: Path,
) -> None:
    """One run for each profiler, under the first workload; its timing is never used.

    Whatever keeps a profiler from giving evidence is an event with the reason, not a number and
    not an exception.
    """
    workload = target.main_workloads[0]
    for name, profiler in profilers.items():
        unavailable = await profiler.probe(side.built.workspace)
        if unavailable is not None:
            emit(_no_evidence(name, unavailable))
            continue
        output = "{run}/profile.out"
        async with backend.measuring():
            execution = await side.stages.execute(
                workload,
                f"profile:{name}",
                lambda command: profiler.wrap(command, output),  # noqa: B023
            )
        file = scratch / f"profile-{name}"
        try:
            await side.built.workspace.get(output, file)
            profile = file.read_bytes()
        except FileNotFoundError:
            reason = f"it wrote no profile; {execution.detail or 'the run itself was fine'}"
            emit(_no_evidence(name, Failed(reason=reason)))
            continue
        finally:
            file.unlink(missing_ok=True)
        result = profiler.parse(profile)
        if not isinstance(result, Measured):
            emit(_no_evidence(name, result))
            continue
        emit(
            EvidenceCaptured(
                profiler=name,
                arm="B",
                workload=workload,
                scalars=dict(result.scalars),
                stacks=blobs.put(result.stacks.encode()) if result.stacks else None,
                artifact=blobs.put(profile),
            )
        )


def _no_evidence(name: str, result: NotAvailable | Failed | Inconclusive) -> ProfilerUnavailable:
    match result:
        case NotAvailable():
            return ProfilerUnavailable(
                profiler=name, status="not_available", reason=result.reason, fix=result.fix
            )
        case Failed():
            return ProfilerUnavailable(profiler=name, status="failed", reason=result.reason)
        case Inconclusive():
            return ProfilerUnavailable(profiler=name, status="inconclusive", reason=result.reason)
