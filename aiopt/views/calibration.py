"""The calibration that is in force, in numbers and in sentences: what can be proved on this
machine, and what that takes.
"""

from collections.abc import Iterator, Mapping, Sequence

from attrs import evolve, fields, frozen

from aiopt.calibration import Measured, calibration_pairs, guard_spread
from aiopt.events import CalibrationMeasured
from aiopt.pairs import Pair, pairs_by_purpose
from aiopt.replay import CampaignState, ExperimentState
from aiopt.rules import RuleParams, VoidRules
from aiopt.stats import percent
from aiopt.views._words import share, spell_time
from aiopt.views.effects import percent_of
from aiopt.voiding import rules_in_force

__all__ = ["CalibrationRow", "CalibrationView", "calibration_rows", "calibration_view"]

_HOPELESS = 1.5
"""The planner gives up beyond this effect (natural log)."""
_CHEAPER = 0.7
"""How much quieter another metric has to be: its pairs cost the square of that, about half."""
_TIME_UNITS = frozenset({"s", "sec", "second", "seconds", "ms", "us", "µs", "ns", "min", "h"})
_TIME_NAMES = ("_seconds", "_s", "_ms", "_us", "_ns", "_time")
_MEMORY_UNITS = frozenset({"b", "bytes", "kb", "mb", "gb", "kib", "mib", "gib"})
_MEMORY_NAMES = ("_bytes", "_kb", "_mb", "_gb")


@frozen(kw_only=True)
class CalibrationRow:
    """One objective or guard under one workload; effects are natural logs, also as percentages."""

    metric: str
    workload: str
    role: str
    pairs: int
    sd_pair: float
    """Robust standard deviation of the log ratio of one pair."""
    sd_percent: float
    mei_eff: float
    """The smallest gain that can be proved; of a guard its margin."""
    mei_eff_percent: float
    n1: int
    """Pairs of the screen; 0 for a guard."""
    n2: int
    """Pairs of the confirmation; of a guard those that show that it holds."""
    minutes: float | None
    """That the proof of `mei_eff` takes; None: the time of a pair is not known."""
    pairs_for_mei: int
    minutes_for_mei: float | None
    layout_sd: float | None
    warnings: tuple[str, ...]


@frozen(kw_only=True)
class CalibrationView:
    """What the incumbent against itself said of this machine."""

    experiment: str
    status: str
    """measured, or failed."""
    reason: str
    """Why it failed."""
    seconds: float
    """Wall time of its stages."""
    mei_percent: float
    """The smallest gain of interest: what the plan aims at."""
    rows: tuple[CalibrationRow, ...]
    void_rules_off: tuple[str, ...]
    """Rules on the machine's state by which no pair is voided."""
    sentences: tuple[str, ...]
    """The same for people."""


def calibration_view(campaign: CampaignState) -> CalibrationView | None:
    """The calibration by which candidates are judged now, or the later one that failed; None if
    none has ended.
    """
    experiment = _latest(campaign)
    if experiment is None:
        return None
    params, failure = campaign.params, experiment.failure
    view = CalibrationView(
        experiment=experiment.stream,
        status="measured" if failure is None else "failed",
        reason="",
        seconds=round(experiment.seconds, 3),
        mei_percent=percent_of(params.mei) or 0.0,
        rows=(),
        void_rules_off=(),
        sentences=(),
    )
    if failure is not None:
        reason = f"{failure.cause.replace('_', ' ')}: {failure.detail}"
        return evolve(view, reason=reason, sentences=(f"The calibration failed ({reason}).",))
    measured = pairs_by_purpose(experiment.facts)
    rows = calibration_rows(params, experiment)
    off = tuple(_off(params, measured))
    return evolve(
        view,
        rows=rows,
        void_rules_off=off,
        sentences=(
            *_sentences(campaign, measured, rows),
            *_void_sentences(params, measured, off),
        ),
    )


def _latest(campaign: CampaignState) -> ExperimentState | None:
    ended = [
        experiment
        for experiment in campaign.of_purpose("calibration")
        if experiment.outcome == "measured" or experiment.failure is not None
    ]
    return ended[-1] if ended else None


# ---- numbers ----


def calibration_rows(params: RuleParams, experiment: ExperimentState) -> tuple[CalibrationRow, ...]:
    """What one calibration found, objectives first."""
    measured = pairs_by_purpose(experiment.facts)
    seconds = {
        workload: _seconds(calibration_pairs(params, measured, workload))
        for workload in params.workloads
    }
    return tuple(_row(params, each, seconds[each.workload]) for each in experiment.calibration)


def _row(params: RuleParams, each: CalibrationMeasured, seconds: float | None) -> CalibrationRow:
    is_guard = each.role == "guard"
    gain = 100 * _margin(each.mei_eff) if is_guard else _gain(params, each)

    def minutes(pairs: int) -> float | None:
        return None if seconds is None else round(pairs * seconds / 60, 2)

    return CalibrationRow(
        metric=each.metric,
        workload=each.workload,
        role=each.role,
        pairs=each.pairs,
        sd_pair=each.sd_pair,
        sd_percent=round(100 * each.sd_pair, 4),
        mei_eff=each.mei_eff,
        mei_eff_percent=round(gain, 4),
        n1=each.n1,
        n2=each.n2,
        minutes=minutes(each.n1 + each.n2),
        pairs_for_mei=each.pairs_for_mei,
        minutes_for_mei=minutes(each.pairs_for_mei),
        layout_sd=each.layout_sd,
        warnings=each.warnings,
    )


def _margin(bound: float) -> float:
    """A margin as it was given, from the natural log of 1 + margin."""
    return percent(bound, "higher")


def _gain(params: RuleParams, each: CalibrationMeasured) -> float:
    return percent_of(each.mei_eff, params.direction_of(each.metric)) or 0.0


def _seconds(pairs: Sequence[Pair]) -> float | None:
    """Mean wall time of both runs of a pair, service and workload included."""
    taken = [
        pair.a.covariates["run_seconds"] + pair.b.covariates["run_seconds"]
        for pair in pairs
        if "run_seconds" in pair.a.covariates and "run_seconds" in pair.b.covariates
    ]
    return sum(taken) / len(taken) if taken else None


# ---- sentences ----


def _sentences(
    campaign: CampaignState, measured: Measured, rows: Sequence[CalibrationRow]
) -> Iterator[str]:
    params = campaign.params
    for workload in params.main:
        place = f"On this machine, workload {workload}: "
        spreads = _spreads(params, measured, workload)
        for row in rows:
            if (row.role, row.workload) == ("primary", workload):
                text = _provable(row)
                yield f"{place}{text}." if place else f"{_capital(text)}."
                place = ""
                yield from _interesting(campaign, row, spreads)
        yield from _quietest(spreads)
    for row in rows:
        if row.layout_sd is not None:
            yield (
                f"{row.metric} ({row.workload}): neutral rebuilds of the same source differ by "
                f"{share(row.layout_sd)}; confirmation rotates over {params.layout.rotate} of them."
            )
        planned = row.role == "primary" and row.mei_eff > params.mei
        # the first warning of such a plan says what the sentences above say with its numbers
        for warning in row.warnings[1:] if planned else row.warnings:
            yield f"{row.metric} ({row.workload}): {warning}."


def _provable(row: CalibrationRow) -> str:
    if row.mei_eff > _HOPELESS:
        return f"nothing can be proved of {row.metric}: its pairs differ by {share(row.sd_pair)}"
    return (
        f"the smallest gain in {row.metric} that can be proved is "
        f"{share(row.mei_eff_percent / 100)}; that takes about {row.n1 + row.n2} pairs"
        f"{_time(row.minutes)}"
    )


def _interesting(
    campaign: CampaignState, row: CalibrationRow, spreads: Mapping[str, float]
) -> Iterator[str]:
    """What a gain that is wanted would take, and which other metric would be cheaper."""
    params = campaign.params
    if row.mei_eff <= params.mei:
        return
    clauses = []
    if row.mei_eff <= _HOPELESS:
        gain = share(percent(params.mei, params.direction_of(row.metric)))
        clauses.append(
            f"a gain of {gain} would take about {row.pairs_for_mei} pairs"
            f"{_time(row.minutes_for_mei)}, and cannot be proved with this plan"
        )
    quieter = _quieter(campaign, row, spreads)
    if quieter is not None:
        clauses.append(
            f"{quieter} would make it cheaper: its pairs differ by {share(spreads[quieter])}, "
            f"those of {row.metric} by {share(row.sd_pair)}"
        )
    if clauses:
        yield f"{_capital('; '.join(clauses))}."


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _time(minutes: float | None) -> str:
    return "" if minutes is None else f", {spell_time(60 * minutes)}"


def _spreads(params: RuleParams, measured: Measured, workload: str) -> Mapping[str, float]:
    """How much every numeric metric differs between the runs of a pair, if that is known."""
    found = {
        name: guard_spread(params, measured, name, workload)
        for name, metric in params.metrics.items()
        if metric.kind == "number"
    }
    return {name: spread for name, spread in found.items() if spread is not None}


def _quieter(
    campaign: CampaignState, row: CalibrationRow, spreads: Mapping[str, float]
) -> str | None:
    """The quietest metric that could be a primary in place of this one: of the same kind (a time
    for a time), better in the same direction, and no primary yet. One that never differs counts
    something, and is left out.
    """
    params = campaign.params
    kind, direction = _kind(campaign, row.metric), params.direction_of(row.metric)
    others = {
        name: spread
        for name, spread in spreads.items()
        if params.metrics[name].role != "primary"
        and params.metrics[name].direction == direction
        and _kind(campaign, name) == kind
        and 0 < spread < _CHEAPER * row.sd_pair
    }
    return min(others, key=lambda name: others[name], default=None)


def _kind(campaign: CampaignState, metric: str) -> str:
    """What a metric measures, by its unit or else its name; empty if neither says."""
    declared = campaign.started.spec.get("metrics", {}).get(metric, {})
    unit, name = str(declared.get("unit", "")).lower(), metric.lower()
    if unit in _TIME_UNITS or (not unit and name.endswith(_TIME_NAMES)):
        return "time"
    if unit in _MEMORY_UNITS or (not unit and name.endswith(_MEMORY_NAMES)):
        return "memory"
    return unit


def _quietest(spreads: Mapping[str, float]) -> Iterator[str]:
    """Of those that differ at all."""
    differing = {name: spread for name, spread in spreads.items() if spread > 0}
    if differing and len(spreads) > 1:
        name = min(differing, key=lambda name: differing[name])
        yield f"{name} is the quietest metric ({share(differing[name])})."


# ---- void rules ----


def _off(params: RuleParams, measured: Measured) -> Iterator[str]:
    in_force, _ = rules_in_force(params.void, _all(measured))
    for name in _rule_names():
        if not getattr(in_force, name):
            yield name


def _rule_names() -> list[str]:
    return [attribute.name for attribute in fields(VoidRules) if attribute.name != "pause"]


def _all(measured: Measured) -> list[Pair]:
    return [
        pair
        for (purpose, _), pairs in measured.items()
        if purpose == "calibration"
        for pair in pairs
    ]


def _void_sentences(params: RuleParams, measured: Measured, off: Sequence[str]) -> Iterator[str]:
    for warning in rules_in_force(params.void, _all(measured))[1]:
        yield f"{_capital(warning)}."
    chosen = [name for name in off if not getattr(params.void, name)]
    if chosen:
        yield f"Switched off by the settings, so that they void no pair: {', '.join(chosen)}."
