"""`aiopt run` and `aiopt resume`: a campaign from its beginning, or from where it stopped."""

from pathlib import Path
from typing import Any

import click

from aiopt.campaign import Campaign
from aiopt.cli._options import Places, as_json, budget, results, settings_options
from aiopt.cli._places import (
    find_campaign,
    find_log,
    find_target,
    log_of,
    places_of,
    read_state,
)
from aiopt.cli._report import summary_lines
from aiopt.cli._text import print_json, short
from aiopt.cli._work import check_lease, in_campaign, settings_from
from aiopt.ids import short_name
from aiopt.replay import CampaignState, LogState
from aiopt.settings import TRY, Settings
from aiopt.views import Summary, baseline_failed, is_finished, summary, to_json

__all__ = ["resume", "run", "unfinished"]


def unfinished(state: LogState) -> list[CampaignState]:
    """Campaigns of `aiopt run` that can go on, in order."""
    return [
        campaign
        for campaign in state.campaigns.values()
        if campaign.started.config.get("proposer") != TRY
        and not is_finished(campaign)
        and not baseline_failed(campaign)
    ]


@click.command(short_help="Search a target for patches that make it faster.")
@click.argument("target", metavar=Places.TARGET)
@results
@settings_options
@click.option("--strategy", metavar="NAME", help="What to build on next.  [greedy]")
@click.option("--proposer", metavar="NAME", help="What makes patches.  [pool]")
@click.option(
    "--budget",
    multiple=True,
    metavar="AMOUNT",
    callback=budget,
    help="When to stop proposing: 20 (candidates), 500r (runs), 30m, 2h; several may be given.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Candidates built side by side.  [1]")
@click.option("--new", is_flag=True, help="Begin another campaign though one is unfinished.")
@as_json
@click.pass_context
def run(
    ctx: click.Context, /, target: str, results: Path, new: bool, as_json: bool, **options: Any
) -> None:
    """Search a target for patches that make it faster.

    TARGET is a folder with a target.toml, or the name of one below ./targets or of an installed
    one. Progress is on standard error, the result on standard output. Ctrl-C stops in good order;
    `aiopt resume` goes on from there.

    \b
    Examples:
      aiopt run pyserver --budget 30m
      aiopt run targets/mine --set mei=0.05 --json
      aiopt run targets/mine --rule signed-rank --pairs 12

    \b
    Exit codes: 0 something was kept; 3 finished and nothing kept; 130 interrupted.
    """
    folder = find_target(target)
    log = log_of(folder, results)
    settings = settings_from(folder, options)
    if settings.proposer == TRY:
        raise click.UsageError("the proposer `try` belongs to `aiopt try`")
    check_lease(log)
    going = unfinished(read_state(log)) if log.is_file() and not new else []
    if going:
        raise click.UsageError(
            f"{short_name(going[-1].stream)} in {log} is unfinished: `aiopt resume {target}` goes "
            "on with it, --new begins another one"
        )
    _conclude(ctx, _search(target, log, folder, results, settings, None), log, as_json)


@click.command(short_help="Go on with a campaign that was interrupted.")
@click.argument("log", metavar=Places.LOG)
@results
@click.option("--campaign", metavar="NAME", help="Such as cmp-0002.  [the latest unfinished]")
@as_json
@click.pass_context
def resume(
    ctx: click.Context, log: str, results: Path, campaign: str | None, as_json: bool
) -> None:
    """Go on with a campaign that was interrupted.

    What its controller left running is killed, the pair that was cut off is measured again, and
    the settings are those that the campaign was begun with.

    \b
    Examples:
      aiopt resume pyserver
      aiopt resume results/pyserver/events.db --campaign cmp-0002

    \b
    Exit codes: as `aiopt run`; 2 if no campaign is unfinished.
    """
    path = find_log(log, results)
    check_lease(path)
    state = read_state(path)
    chosen = _chosen(state, campaign, path)
    folder, home = places_of(log, path, chosen)
    _conclude(ctx, _search(log, path, folder, home, None, chosen.stream), path, as_json)


def _chosen(state: LogState, name: str | None, log: Path) -> CampaignState:
    if name is None:
        going = unfinished(state)
        if not going:
            raise click.UsageError(
                f"no campaign in {log} is unfinished; "
                "`aiopt run` begins one, `aiopt show` lists them"
            )
        return going[-1]
    campaign = find_campaign(state, name, log)
    if campaign.started.config.get("proposer") == TRY:
        raise click.UsageError(f"{short(campaign.stream)} belongs to `aiopt try`, which goes on")
    if is_finished(campaign):
        raise click.UsageError(
            f"{short(campaign.stream)} is finished: {campaign.finished}; "
            "`aiopt run` begins another one"
        )
    return campaign


def _search(
    typed: str,
    log: Path,
    folder: Path,
    results: Path,
    settings: Settings | None,
    stream: str | None,
) -> Summary:
    async def search(campaign: Campaign) -> Summary:
        await campaign.run()
        return summary(campaign.state)

    try:
        return in_campaign(folder, results, settings, stream, search)
    except KeyboardInterrupt:
        click.echo(f"interrupted; `aiopt resume {typed}` goes on ({log})", err=True)
        raise click.exceptions.Exit(130) from None


def _conclude(ctx: click.Context, result: Summary, log: Path, as_json: bool) -> None:
    if as_json:
        print_json({**to_json(result), "log": str(log)})
    else:
        for line in summary_lines(result):
            click.echo(line)
        click.echo("")
        for line in _next(result, log):
            click.echo(line)
    ctx.exit(0 if result.kept else 3)


def _next(result: Summary, log: Path) -> list[str]:
    """What to type now."""
    rows = [row for row in result.candidates if row.experiment]
    kept = [row for row in rows if row.status == "keep"]
    lines = [f"log: {log}", "next:"]
    if rows:
        lines.append(f"  aiopt show {log} {short((kept or rows)[-1].experiment)}")
    metrics = sorted({effect.metric for row in rows for effect in row.primaries})
    if metrics:
        weights = ",".join(f"{name}={1 / len(metrics):.3g}" for name in metrics)
        lines.append(f"  aiopt replay {log} --weights {weights}")
    return [*lines, f"  aiopt export {log}"]
