"""Tables of one experiment, made of nothing but the events of its stream."""

from collections.abc import Iterable, Mapping

from attrs import frozen

from aiopt.events import (
    Event,
    GateFailed,
    GatePassed,
    LookTaken,
    MetricUnreadable,
    PairScheduled,
    PairVoided,
    RunMeasured,
    StageFinished,
    StageStarted,
)
from aiopt.rules import RuleParams
from aiopt.views.effects import percent_of

__all__ = [
    "GateRow",
    "LookRow",
    "PairRow",
    "StageRow",
    "gate_table",
    "look_table",
    "pair_table",
    "stage_table",
]


@frozen(kw_only=True)
class StageRow:
    """One stage that was started; `outcome` is `cut off` if nothing says how it ended."""

    stage: str
    run: str
    attempt: int
    outcome: str
    exit_code: int | None
    signal: int | None
    seconds: float | None
    cpu_seconds: float | None
    peak_rss_mb: float | None
    argv: tuple[str, ...]
    log: str | None
    """Blob with its output."""


def stage_table(events: Iterable[Event]) -> tuple[StageRow, ...]:
    """The stages in the order in which they were started."""
    started: list[StageStarted] = []
    finished: dict[tuple[str, int, str], list[StageFinished]] = {}
    for event in events:
        match event:
            case StageStarted():
                started.append(event)
            case StageFinished():
                key = (event.stage, event.attempt, event.run)
                finished.setdefault(key, []).append(event)
            case _:
                pass
    return tuple(_stage_row(stage, finished) for stage in started)


def _stage_row(
    stage: StageStarted, finished: Mapping[tuple[str, int, str], list[StageFinished]]
) -> StageRow:
    ends = finished.get((stage.stage, stage.attempt, stage.run), [])
    end = ends.pop(0) if ends else None
    return StageRow(
        stage=stage.stage,
        run=stage.run,
        attempt=stage.attempt,
        outcome=end.outcome if end else "cut off",
        exit_code=end.exit_code if end else None,
        signal=end.signal if end else None,
        seconds=end.seconds if end else None,
        cpu_seconds=end.cpu_seconds if end else None,
        peak_rss_mb=round(end.peak_rss_bytes / 1e6, 3) if end else None,
        argv=stage.argv,
        log=end.log if end else None,
    )


@frozen(kw_only=True)
class GateRow:
    """A yes/no check before measuring."""

    gate: str
    passed: bool
    detail: str
    log: str | None


def gate_table(events: Iterable[Event]) -> tuple[GateRow, ...]:
    """The checks in order."""
    found = []
    for event in events:
        match event:
            case GatePassed():
                found.append(GateRow(gate=event.gate, passed=True, detail="", log=None))
            case GateFailed():
                found.append(
                    GateRow(gate=event.gate, passed=False, detail=event.detail, log=event.log)
                )
            case _:
                pass
    return tuple(found)


@frozen(kw_only=True)
class PairRow:
    """One attempt at a pair: the samples of both arms, or why it does not count."""

    purpose: str
    workload: str
    index: int
    attempt: int
    order: str
    layout: int
    """Which neutral rebuild both arms were (of the purpose `layout`: arm B); 0: the plain build."""
    a: Mapping[str, tuple[float, ...]] | None
    """Of the incumbent; None: not measured."""
    b: Mapping[str, tuple[float, ...]] | None
    void: str
    unreadable: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether it counts."""
        return self.a is not None and self.b is not None and not self.void


def pair_table(events: Iterable[Event]) -> tuple[PairRow, ...]:
    """The pairs in the order in which they were scheduled."""
    events = tuple(events)
    runs: dict[tuple[str, str, int, int, str], RunMeasured] = {}
    voids: dict[tuple[str, str, int, int], str] = {}
    unreadable: dict[tuple[str, str, int, int], list[str]] = {}
    for event in events:
        match event:
            case RunMeasured():
                runs[*_pair_key(event), event.arm] = event
            case PairVoided():
                voids[_pair_key(event)] = event.reason
            case MetricUnreadable():
                text = f"{event.metric} ({event.arm}): {event.found}"
                unreadable.setdefault(_pair_key(event), []).append(text)
            case _:
                pass
    rows = []
    for event in events:
        if isinstance(event, PairScheduled):
            key = _pair_key(event)
            a, b = runs.get((*key, "A")), runs.get((*key, "B"))
            rows.append(
                PairRow(
                    purpose=event.purpose,
                    workload=event.workload,
                    index=event.index,
                    attempt=event.attempt,
                    order=event.order,
                    layout=event.layout,
                    a=a.metrics if a else None,
                    b=b.metrics if b else None,
                    void=voids.get(key, ""),
                    unreadable=tuple(unreadable.get(key, ())),
                )
            )
    return tuple(rows)


def _pair_key(
    event: PairScheduled | RunMeasured | PairVoided | MetricUnreadable,
) -> tuple[str, str, int, int]:
    return event.purpose, event.workload, event.index, event.attempt


@frozen(kw_only=True)
class LookRow:
    """One look at the pairs of a stage."""

    purpose: str
    workload: str
    metric: str
    pairs: int
    p: float
    level: float
    """It passes if p is at most this; 0 if no outcome could have passed."""
    used: float
    """Of the stage's level, this look included."""
    effect: float
    sd: float
    better_percent: float | None
    sd_percent: float
    action: str
    """pass, continue, futile (given up) or cap (undecided at the end)."""


def look_table(events: Iterable[Event], params: RuleParams) -> tuple[LookRow, ...]:
    """The looks in the order in which they were taken."""
    return tuple(
        LookRow(
            purpose=event.purpose,
            workload=event.workload,
            metric=event.metric,
            pairs=event.pairs,
            p=event.p,
            level=event.level,
            used=event.used,
            effect=event.effect,
            sd=event.sd,
            better_percent=percent_of(event.effect, params.direction_of(event.metric)),
            sd_percent=round(100 * event.sd, 4),
            action=event.action,
        )
        for event in events
        if isinstance(event, LookTaken)
    )
