"""`aiopt replay`: the same measurements under other weights or another rule."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from attrs import frozen

from aiopt.batch_rescoring import BatchRescored
from aiopt.cli._changes import check_changes
from aiopt.cli._choices import choice_lines, edges_of, toml_values
from aiopt.cli._options import Places, as_json, numbers, results, set_option
from aiopt.cli._places import choose_campaign, find_campaign, find_log, read_state
from aiopt.cli._ranking import first_lines, ranking_lines
from aiopt.cli._text import print_json, short
from aiopt.cli._what_if import axes_of, what_if_lines, what_if_progress
from aiopt.plain import to_json
from aiopt.quick_rescore import only_weights, quick_rescore
from aiopt.ranking import DEFAULT_FITNESS, FITNESSES
from aiopt.replay import CampaignState
from aiopt.rescoring import Decision, Rescored, rescore
from aiopt.rule_changes import with_changes
from aiopt.rules import RuleParams
from aiopt.verdict import RULES

if TYPE_CHECKING:
    from aiopt.rechoosing import Rechosen

__all__ = ["replay"]

_ALL = "all"
_OF_MEASURING = ("void.", "warmup", "audit_", "ablation_")
"""Parameters that say what is measured; decisions are made from what was."""


@click.command(short_help="Rank and decide anew under other weights or rules.")
@click.argument("log", metavar=Places.LOG)
@results
@click.option("--campaign", metavar="NAME", help="Such as cmp-0002.  [the latest]")
@click.option(
    "--weights", callback=numbers, metavar="A=0.6,B=0.4", help="One weighted sum decides and ranks."
)
@click.option(
    "--rule", metavar="NAME|all", help="Another decision rule; all: every rule, in one table."
)
@click.option(
    "--fitness",
    metavar="NAME",
    default=DEFAULT_FITNESS,
    show_default=True,
    help=f"What the ranking is by: {', '.join(FITNESSES)}.",
)
@click.option("--complete", is_flag=True, help="Rank only what has every signal with a weight.")
@click.option(
    "--guards",
    callback=numbers,
    metavar="A=0.05",
    help="Do not rank what has more of a profiler's scalar than its incumbent, by this share.",
)
@click.option(
    "--what-if",
    "axes",
    callback=axes_of,
    metavar="A,B|A=0:1:0.1,…",
    help="Over a grid of weights: what holds at each of them, and what does not.",
)
@click.option("--strategy", metavar="NAME", help="Another strategy: what it would have built on.")
@click.option("--seed", type=click.IntRange(min=0), help="Another seed of the strategy.")
@click.option(
    "--option",
    "strategy_options",
    multiple=True,
    callback=toml_values,
    metavar="NAME=VALUE",
    help="Of the strategy, as in aiopt.toml.",
)
@click.option(
    "--edges",
    multiple=True,
    callback=edges_of,
    metavar="MEASURE=E,E,…",
    help="Measures of map-elites with the edges of their bins.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Lines of each kind that are printed.",
)
@set_option
@as_json
def replay(
    log: str,
    results: Path,
    campaign: str | None,
    weights: Mapping[str, float] | None,
    rule: str | None,
    fitness: str,
    guards: Mapping[str, float] | None,
    complete: bool,
    axes: Mapping[str, Sequence[float] | None] | None,
    strategy: str | None,
    seed: int | None,
    strategy_options: Mapping[str, Any],
    edges: Mapping[str, Sequence[float]],
    top: int,
    as_json: bool,
    **options: Mapping[str, bool | int | float],
) -> None:
    """Rank and decide anew under other weights, another rule or other parameters.

    Nothing is run. What cannot be known from the log, because it would have taken more pairs or
    other candidates, is said and not guessed. A rule or parameters that were chosen after the
    outcomes were seen are marked as post hoc: no error level holds for them.

    With --strategy, --seed, --option or --edges, and with --weights if the campaign's strategy has
    some, a strategy is asked again at every proposal: choices, parents and elites that would be
    others are listed. (A log of more than 8 MiB under --weights alone: only with --strategy.)

    \b
    Examples:
      aiopt replay pyserver --weights p99_ms=0.6,peak_rss_mb=0.4
      aiopt replay pyserver --rule all
      aiopt replay pyserver --fitness seed-causal
      aiopt replay pyserver --weights 'cpu_seconds=1,callgrind:instructions=0.5'
      aiopt replay pyserver --guards 'offcpu:off_cpu_ms[L]=0.1'
      aiopt replay pyserver --what-if cpu_seconds,peak_rss_mb
      aiopt replay pyserver --strategy map-elites --edges peak_rss_mb=0.5,0.7,0.9,1.1
      aiopt replay pyserver --strategy genetic --option population=6 --seed 3
      aiopt replay results/pyserver/events.db --set mei=0.05 --json
    """
    changes = options["set"]
    path = find_log(log, results)
    if rule not in (None, _ALL, *RULES):
        raise click.UsageError(f"no rule {rule!r}; there are {', '.join(RULES)}, and {_ALL}")
    if weights is not None:
        weights = {name: float(weight) for name, weight in weights.items()}
    choosing = bool(strategy or seed is not None or strategy_options or edges)
    if choosing and rule == _ALL:
        raise click.UsageError("--rule all compares rules: without a strategy's options")
    if axes is not None:
        if weights or choosing or complete or rule == _ALL:
            problem = (
                "--what-if goes over weights itself: without --weights, --complete, --rule all"
            )
            raise click.UsageError(f"{problem}, and options of a strategy")
        _ask_everywhere(path, axes, campaign, rule, changes, fitness, guards, top, as_json)
        return
    if not choosing and only_weights(
        rule=rule, changes=changes, fitness=fitness, guards=guards, complete=complete
    ):
        quick = quick_rescore(
            path,
            choose=lambda streams: choose_campaign(streams, campaign, path),
            weights=weights,
        )
        if quick is not None:
            shown = _Shown.of(quick.whole()) if as_json else _first_of(quick, top)
            _show(shown, None, changes, path, top, as_json)
            return
    chosen = find_campaign(read_state(path), campaign, path)
    check_changes(changes, None if rule == _ALL else rule or chosen.started.rule)
    params = with_changes(chosen.params, changes) if changes else None
    if rule == _ALL:
        _compare(chosen, params, weights, path, as_json)
        return
    result = rescore(
        chosen,
        weights=weights,
        rule=rule,
        params=params,
        fitness=fitness,
        guards=guards,
        complete=complete,
    )
    rechosen = None
    if choosing or (weights and _has_weights(chosen)):
        from aiopt.api import rechoose

        rechosen = rechoose(
            path,
            campaign=chosen.stream,
            strategy=strategy,
            options=strategy_options,
            edges=edges,
            weights=weights,
            seed=seed,
        )
    _show(_Shown.of(result), rechosen, changes, path, top, as_json)


def _ask_everywhere(
    path: Path,
    axes: Mapping[str, Sequence[float] | None],
    campaign: str | None,
    rule: str | None,
    changes: Mapping[str, bool | int | float],
    fitness: str,
    guards: Mapping[str, float] | None,
    top: int,
    as_json: bool,
) -> None:
    from aiopt.api import what_if

    if changes:
        check_changes(changes, rule or find_campaign(read_state(path), campaign, path).started.rule)
    result = what_if(
        path,
        axes,
        campaign=campaign,
        rule=rule,
        changes=changes,
        fitness=fitness,
        guards=guards,
        progress=what_if_progress,
    )
    if as_json:
        print_json({**to_json(result), "log": str(path)})
        return
    for line in what_if_lines(result, top):
        click.echo(line)


def _has_weights(campaign: CampaignState) -> bool:
    """Whether its strategy would choose otherwise under other weights."""
    from aiopt import plugins
    from aiopt.settings import TRY

    config = campaign.started.config
    if config.get("proposer") == TRY:
        return False
    return hasattr(plugins.load("strategies", str(config["strategy"])).plugin, "weights")


@frozen(kw_only=True)
class _Shown:
    """What is printed of a result, and how much there is of each kind."""

    result: Rescored
    """All of it, or of a long log at least all flips and the first ones of every kind."""
    ranked: int
    unranked: int
    decisions: int
    open: int
    """Decisions of which it is not known what they would be."""
    strangers: int
    """Candidates that would have been measured against another incumbent."""

    @classmethod
    def of(cls, result: Rescored) -> "_Shown":
        return cls(
            result=result,
            ranked=len(result.ranking),
            unranked=len(result.unranked),
            decisions=len(result.decisions),
            open=sum(_is_open(decision) for decision in result.decisions),
            strangers=sum(not decision.same_premise for decision in result.decisions),
        )


def _first_of(quick: BatchRescored, top: int) -> _Shown:
    rows = {*quick.flips.tolist(), *quick.open[:top].tolist(), *quick.strangers[:top].tolist()}
    return _Shown(
        result=quick.part(
            quick.order[:top].tolist(), quick.unmeasured[:top].tolist(), sorted(rows)
        ),
        ranked=int(quick.order.size),
        unranked=int(quick.unmeasured.size),
        decisions=len(quick),
        open=int(quick.open.size),
        strangers=int(quick.strangers.size),
    )


def _is_open(decision: Decision) -> bool:
    return bool(decision.needs_more) and not decision.flipped


def _show(
    shown: _Shown,
    rechosen: "Rechosen | None",
    changes: Mapping[str, bool | int | float],
    log: Path,
    top: int,
    as_json: bool,
) -> None:
    if as_json:
        found = {**_json(shown.result, log), "rechosen": to_json(rechosen)}
        click.echo(orjson.dumps(found, option=orjson.OPT_SORT_KEYS).decode())
        return
    for line in _lines(shown, changes, top):
        click.echo(line)
    if rechosen is not None:
        click.echo("")
        for line in choice_lines(rechosen, top):
            click.echo(line)


def _compare(
    campaign: CampaignState,
    params: RuleParams | None,
    weights: Mapping[str, float] | None,
    log: Path,
    as_json: bool,
) -> None:
    from aiopt.cli._report import rules_lines
    from aiopt.views import compare_rules

    view = compare_rules(campaign, params, weights)
    if as_json:
        print_json({**to_json(view), "log": str(log)})
        return
    for line in rules_lines(view):
        click.echo(line)


def _json(result: Rescored, log: Path) -> dict[str, Any]:
    found: dict[str, Any] = to_json(result)
    for decision, value in zip(found["decisions"], result.decisions, strict=True):
        decision["flipped"] = value.flipped
    return {**found, "log": str(log)}


def _lines(shown: _Shown, changes: Mapping[str, bool | int | float], top: int) -> Iterator[str]:
    result = shown.result
    weights = ", ".join(f"{name} {weight:g}" for name, weight in result.weights.items())
    yield f"{short(result.campaign)}, rule {result.rule}, weights: {weights}"
    if result.post_hoc:
        yield (
            "post hoc: rule or parameters were chosen after the outcomes were seen, so the error "
            "level that they state does not hold"
        )
    idle = [name for name in changes if name.startswith(_OF_MEASURING)]
    if idle:
        yield f"{', '.join(idle)}: says what is measured, so no decision is changed by it"
    yield ""
    if result.ranking:
        yield from ranking_lines(result, shown.ranked, top)
    else:
        yield "no candidate can be ranked"
    not_ranked = (f"not ranked: {short(name)}: {reason}" for name, reason in result.unranked)
    yield from first_lines(not_ranked, shown.unranked, top)
    yield ""
    if not shown.decisions:
        yield "no decision was made yet"
        return
    flips = result.flips
    yield f"decisions: {shown.decisions}, flipped: {len(flips)}"
    yield from first_lines((f"  {_flip(decision)}" for decision in flips), len(flips), top)
    if result.parts_at is not None:
        yield f"the histories part at event {result.parts_at}"
        yield "what was proposed and measured after it is the logged history's, not the other's"
    yield from _unknown(shown, top)


def _flip(decision: Decision) -> str:
    text = (
        f"{short(decision.experiment)} {decision.patch}: {decision.logged.replace('_', ' ')} -> "
        f"{decision.replayed.replace('_', ' ')} (event {decision.seq})"
    )
    if decision.needs_more:
        text += f"; up to {decision.needs_more} more pairs would be needed"
    if not decision.same_premise:
        text += "; it was measured against another incumbent"
    return text


def _unknown(shown: _Shown, top: int) -> Iterator[str]:
    """What the log cannot tell."""
    decisions = shown.result.decisions
    lines = (
        f"not known: {short(decision.experiment)} {decision.patch} would have needed up "
        f"to {decision.needs_more} more pairs"
        for decision in decisions
        if _is_open(decision)
    )
    yield from first_lines(lines, shown.open, top)
    strangers = [short(d.experiment) for d in decisions if not d.same_premise]
    if strangers:
        names = ", ".join(strangers[:top])
        more = f" and {shown.strangers - top:,} more" if shown.strangers > top else ""
        yield (
            f"not known: {names}{more} would have been measured against another incumbent, so "
            "their effects on it were not measured"
        )
