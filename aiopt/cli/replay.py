"""`aiopt replay`: the same measurements under other weights or another rule."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import orjson
from attrs import fields

from aiopt.cli._options import Places, as_json, numbers, results
from aiopt.cli._places import find_campaign, find_log, read_state
from aiopt.cli._text import short, table
from aiopt.replay import CampaignState, Decision, Rescored, rescore
from aiopt.rules import RuleParams, vary
from aiopt.stats import percent
from aiopt.verdict import RULES
from aiopt.views import to_json

__all__ = ["replay"]


def _settable() -> list[str]:
    """Parameters of a rule that are plain numbers."""
    return sorted(a.name for a in fields(RuleParams) if isinstance(a.default, int | float))


@click.command(short_help="Rank and decide anew under other weights or rules.")
@click.argument("log", metavar=Places.LOG)
@results
@click.option("--campaign", metavar="NAME", help="Such as cmp-0002.  [the latest]")
@click.option(
    "--weights", callback=numbers, metavar="A=0.6,B=0.4", help="One weighted sum decides and ranks."
)
@click.option("--rule", metavar="NAME", help="Another decision rule.")
@click.option(
    "--set",
    "changes",
    callback=numbers,
    metavar="PAIRS=…",
    help="Other parameters of the rule, such as pairs=12,alpha=0.05.",
)
@as_json
def replay(
    log: str,
    results: Path,
    campaign: str | None,
    weights: Mapping[str, float] | None,
    rule: str | None,
    changes: Mapping[str, float] | None,
    as_json: bool,
) -> None:
    """Rank and decide anew under other weights, another rule or other parameters.

    Nothing is run. What cannot be known from the log, because it would have taken more pairs or
    other candidates, is said and not guessed.

    \b
    Examples:
      aiopt replay pyserver --weights p99_ms=0.6,peak_rss_mb=0.4
      aiopt replay results/pyserver/events.db --set alpha=0.05 --json
    """
    path = find_log(log, results)
    chosen = find_campaign(read_state(path), campaign, path)
    if rule is not None and rule not in RULES:
        raise click.UsageError(f"no rule {rule!r}; there are {', '.join(sorted(RULES))}")
    if weights is not None:
        weights = {name: float(weight) for name, weight in weights.items()}
    result = rescore(chosen, weights=weights, rule=rule, params=_params(chosen, changes))
    if as_json:
        click.echo(orjson.dumps(_json(result, path), option=orjson.OPT_SORT_KEYS).decode())
        return
    for line in _lines(result, chosen):
        click.echo(line)


def _params(campaign: CampaignState, changes: Mapping[str, float] | None) -> RuleParams | None:
    if not changes:
        return None
    known = _settable()
    unknown = sorted(changes.keys() - set(known))
    if unknown:
        raise click.UsageError(
            f"--set: no parameter {', '.join(unknown)}; there are {', '.join(known)}"
        )
    values: dict[str, Any] = dict(changes)
    return vary(campaign.params, **values)


def _json(result: Rescored, log: Path) -> dict[str, Any]:
    found: dict[str, Any] = to_json(result)
    for decision, value in zip(found["decisions"], result.decisions, strict=True):
        decision["flipped"] = value.flipped
    return {**found, "log": str(log)}


def _lines(result: Rescored, campaign: CampaignState) -> Iterator[str]:
    weights = ", ".join(f"{name} {weight:g}" for name, weight in result.weights.items())
    yield f"{short(result.campaign)}, rule {result.rule}, weights: {weights}"
    yield ""
    if result.ranking:
        yield from _ranking(result)
    else:
        yield "no candidate can be ranked"
    for experiment, reason in result.unranked:
        yield f"not ranked: {short(experiment)}: {reason}"
    yield ""
    if not result.decisions:
        yield "no decision was made yet"
        return
    flips = result.flips
    yield f"decisions: {len(result.decisions)}, flipped: {len(flips)}"
    for decision in result.decisions:
        if decision.flipped:
            yield f"  {_flip(decision)}"
    if result.parts_at is not None:
        yield f"the histories part at event {result.parts_at}"
        yield "what was proposed and measured after it is the logged history's, not the other's"
    yield from _unknown(result)


def _ranking(result: Rescored) -> Iterator[str]:
    rows = [
        (
            str(place),
            short(ranked.experiment),
            ranked.patch,
            f"{100 * percent(ranked.total):+.2f} %",
            f"{100 * percent(ranked.step.value):+.2f} %",
            f"[{_bound(ranked.step.low)}, {_bound(ranked.step.high)}]",
            str(ranked.step.pairs),
            f"without {', '.join(ranked.step.missing)}" if ranked.step.missing else "",
        )
        for place, ranked in enumerate(result.ranking, 1)
    ]
    head = ("", "experiment", "patch", "better in all", "own step", "95 % interval", "pairs", "")
    yield table(head, rows, right=[0, 3, 4, 6])


def _bound(value: float) -> str:
    text = f"{100 * percent(value):+.2f}"
    return text if abs(value) != float("inf") else "?"


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


def _unknown(result: Rescored) -> Iterator[str]:
    """What the log cannot tell."""
    for decision in result.decisions:
        if decision.needs_more and not decision.flipped:
            yield (
                f"not known: {short(decision.experiment)} {decision.patch} would have needed up "
                f"to {decision.needs_more} more pairs"
            )
    premises = [d for d in result.decisions if not d.same_premise]
    if premises:
        names = ", ".join(short(decision.experiment) for decision in premises)
        yield (
            f"not known: {names} would have been measured against another incumbent, so their "
            "effects on it were not measured"
        )
