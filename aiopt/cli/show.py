"""`aiopt show`: campaigns, or one experiment with its patch, stages, pairs and verdict."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from aiopt.blobs import BlobStore, blobs_beside
from aiopt.cli._options import Places, as_json, results
from aiopt.cli._places import find_log, find_stream, read_state
from aiopt.cli._ranking import pareto_lines
from aiopt.cli._report import (
    budget_lines,
    calibration_table,
    effect_lines,
    look_lines,
    mechanism_lines,
    summary_lines,
)
from aiopt.cli._text import duration, print_json, short, status_text, table
from aiopt.errors import AiOptError
from aiopt.log import Log
from aiopt.replay import CampaignState, LogState
from aiopt.views import (
    ExperimentView,
    PairRow,
    StageRow,
    budget_view,
    evidence_lines,
    experiment_view,
    pareto_view,
    summary,
    to_json,
)

__all__ = ["show"]


@click.command(short_help="Show campaigns, candidates or one experiment.")
@click.argument("log", metavar=Places.LOG)
@click.argument("name", metavar="[EXPERIMENT|CAMPAIGN]", required=False)
@results
@click.option(
    "--stage-log",
    metavar="STAGE",
    help="Print what the stages of this name printed, and only that.",
)
@click.option(
    "--budget",
    is_flag=True,
    help="Print the error budget: what each candidate that was screened was charged.",
)
@click.option(
    "--pareto",
    is_flag=False,
    flag_value="",
    metavar="[A,B]",
    help="Print which candidates are the best of something: over these metrics, or the primaries.",
)
@as_json
def show(
    log: str,
    name: str | None,
    results: Path,
    stage_log: str | None,
    budget: bool,
    pareto: str | None,
    as_json: bool,
) -> None:
    """Show campaigns with their candidates, or everything about one experiment.

    \b
    Examples:
      aiopt show pyserver
      aiopt show pyserver exp-0007
      aiopt show pyserver exp-0007 --stage-log build
      aiopt show pyserver cmp-0002 --budget
      aiopt show pyserver --pareto
      aiopt show pyserver --pareto cpu_seconds,latency_p99_ms
    """
    path = find_log(log, results)
    state = read_state(path)
    stream = name
    if name is not None:
        stream = find_stream(name, [*state.campaigns, *state.campaign_of], "experiment or campaign")
    if stream is None or stream in state.campaigns:
        if stage_log is not None:
            raise click.UsageError("--stage-log needs an experiment, not a campaign")
        chosen = [c for c in state.campaigns.values() if stream in (None, c.stream)]
        if pareto is not None:
            _fronts(path, chosen, [*filter(None, pareto.split(","))], as_json)
            return
        (_budgets if budget else _campaigns)(path, chosen, as_json)
        return
    if pareto is not None:
        raise click.UsageError("--pareto is of a campaign, not of an experiment")
    if budget:
        raise click.UsageError("--budget belongs to a campaign, not to an experiment")
    view = _view(path, state, stream)
    store = BlobStore(blobs_beside(path))
    if stage_log is not None:
        _stage_log(view, store, stage_log, as_json)
    elif as_json:
        print_json({**to_json(view), "log": str(path), "patch_text": _patch(view, store)})
    else:
        for line in _lines(view, store):
            click.echo(line)


def _campaigns(path: Path, campaigns: Sequence[CampaignState], as_json: bool) -> None:
    found = [summary(campaign) for campaign in campaigns]
    if as_json:
        print_json({"log": str(path), "campaigns": found})
    else:
        _echo_all(path, [summary_lines(each) for each in found])


def _fronts(
    path: Path, campaigns: Sequence[CampaignState], metrics: Sequence[str], as_json: bool
) -> None:
    views = [pareto_view(campaign, metrics) for campaign in campaigns]
    if as_json:
        print_json({"log": str(path), "campaigns": [to_json(view) for view in views]})
        return
    for view in views:
        for line in pareto_lines(view):
            click.echo(line)


def _budgets(path: Path, campaigns: Sequence[CampaignState], as_json: bool) -> None:
    found = [budget_view(campaign) for campaign in campaigns]
    if as_json:
        print_json({"log": str(path), "budgets": found})
    else:
        _echo_all(path, [budget_lines(each) for each in found])


def _echo_all(path: Path, found: Sequence[Iterable[str]]) -> None:
    if not found:
        click.echo(f"{path}: no campaign yet")
    for place, lines in enumerate(found):
        if place:
            click.echo("")
        for line in lines:
            click.echo(line)


def _view(path: Path, state: LogState, stream: str) -> ExperimentView:
    with Log.open(path, readonly=True) as opened:
        events = [recorded.event for recorded in opened.read(stream=stream)]
    campaign = state.campaigns[state.campaign_of[stream]]
    return experiment_view(campaign, state.experiment(stream), events)


def _patch(view: ExperimentView, store: BlobStore) -> str | None:
    """The text of a candidate's own patch."""
    if not view.genome or view.purpose != "candidate":
        return None
    try:
        return store.get(view.genome[-1][1]).decode(errors="replace")
    except AiOptError as error:
        return f"({error})\n"


def _stage_log(view: ExperimentView, store: BlobStore, name: str, as_json: bool) -> None:
    rows = [row for row in view.stages if row.stage == name]
    if not rows:
        there = ", ".join(dict.fromkeys(row.stage for row in view.stages)) or "none"
        raise click.UsageError(f"{short(view.experiment)} had no stage {name!r}; it had {there}")
    for row in rows:
        text = store.get(row.log).decode(errors="replace") if row.log else ""
        if as_json:
            print_json({**to_json(row), "text": text})
            continue
        if len(rows) > 1:
            click.echo(f"== {row.stage} {row.run} attempt {row.attempt}: {row.outcome}")
        click.echo(text, nl=not text.endswith("\n") and bool(text))


def _lines(view: ExperimentView, store: BlobStore) -> Iterator[str]:
    yield f"{view.experiment}: {_what(view)}, {status_text(view.status)}"
    if view.reason:
        yield f"  {view.reason}"
    if view.hypothesis:
        yield f"  hypothesis: {view.hypothesis}"
    yield f"  candidate {view.candidate} against {view.incumbent}, in {view.environment}"
    if view.purpose == "candidate" and len(view.genome) > 1:
        yield f"  on top of {', '.join(name for name, _ in view.genome[:-1])}"
    yield from _statistics(view)
    for gate in view.gates:
        yield f"  gate {gate.gate}: {'passed' if gate.passed else f'failed: {gate.detail}'}"
    if view.calibration:
        yield ""
        yield from calibration_table(view.calibration)
    if view.effects:
        yield ""
        yield from effect_lines(view.effects)
    if view.looks:
        yield ""
        yield from look_lines(view.looks)
    if view.pairs:
        yield ""
        yield from _pair_lines(view.pairs)
    if view.evidence:
        yield ""
        for found in view.evidence:
            yield from evidence_lines(found)
    if view.mechanism or view.flags:
        yield ""
        yield from mechanism_lines(view.mechanism, view.flags)
    if view.stages:
        yield ""
        yield from _stage_lines(view.stages)
    patch = _patch(view, store)
    if patch is not None:
        yield ""
        yield patch.rstrip("\n")


def _what(view: ExperimentView) -> str:
    match view.purpose:
        case "candidate":
            return f"candidate {view.patch}"
        case "calibration":
            return f"calibration of {view.patch}"
        case "ablation":
            return f"ablation, without {view.patch}"
        case _:
            return view.purpose


def _statistics(view: ExperimentView) -> Iterator[str]:
    """What the verdict rests on, on one line."""
    parts = [
        f"decided in the {'confirmation' if view.stage == 'confirm' else view.stage}"
        if view.stage
        else "",
        "" if view.p_screen is None else f"p of the screen {view.p_screen:.2g}",
        "" if view.p_confirm is None else f"p of the confirmation {view.p_confirm:.2g}",
        "" if view.mei_eff_percent is None else f"provable from {view.mei_eff_percent:.1f} %",
        "" if view.needs is None else f"about {view.needs} pairs would tell",
        "" if view.charged is None else f"charged {view.charged:.2g} of the error budget",
    ]
    if any(parts):
        yield f"  {', '.join(part for part in parts if part)}"


def _pair_lines(pairs: tuple[PairRow, ...]) -> Iterator[str]:
    names = sorted({name for pair in pairs for arm in (pair.a, pair.b) for name in arm or {}})
    rows = []
    for pair in pairs:
        cells = []
        for name in names:
            a, b = (_samples((arm or {}).get(name)) for arm in (pair.a, pair.b))
            cells.append(f"{a} -> {b}")
        remarks = [
            f"rebuild {pair.layout}" if pair.layout else "",
            f"void: {pair.void}" if pair.void else "",
            *pair.unreadable,
        ]
        again = f".{pair.attempt}" if pair.attempt else ""
        place = f"{pair.index}{again}"
        rows.append(
            (
                pair.purpose,
                pair.workload,
                place,
                pair.order,
                *cells,
                "; ".join(filter(None, remarks)),
            )
        )
    head = ("pairs", "workload", "n", "order", *(f"{name} (A -> B)" for name in names), "")
    yield table(head, rows)


def _samples(values: tuple[float, ...] | None) -> str:
    return ",".join(f"{value:.6g}" for value in values) if values else "-"


def _stage_lines(stages: tuple[StageRow, ...]) -> Iterator[str]:
    rows = [
        (
            row.stage,
            row.run,
            row.outcome,
            "" if row.exit_code is None else str(row.exit_code),
            "" if row.seconds is None else duration(row.seconds),
            "" if row.cpu_seconds is None else duration(row.cpu_seconds),
            "" if row.peak_rss_mb is None else f"{row.peak_rss_mb:.0f}",
            (row.log or "")[:12],
        )
        for row in stages
    ]
    head = ("stage", "run", "outcome", "exit", "wall", "cpu", "peak MB", "log")
    yield table(head, rows, right=[3, 4, 5, 6])
