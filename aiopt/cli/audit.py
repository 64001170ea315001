"""`aiopt audit`: what a campaign's final source is worth, on pairs that nothing was chosen by."""

from pathlib import Path

import click

from aiopt.campaign import Campaign
from aiopt.cli._options import Places, as_json, results
from aiopt.cli._places import find_campaign, find_log, places_of, read_state
from aiopt.cli._report import audit_lines
from aiopt.cli._text import print_json, short
from aiopt.cli._work import check_lease, in_campaign
from aiopt.replay import CampaignState
from aiopt.views import audit_view

__all__ = ["audit"]


@click.command(short_help="Measure the result of a campaign on fresh pairs.")
@click.argument("log", metavar=Places.LOG)
@results
@click.option("--campaign", metavar="NAME", help="Such as cmp-0002.  [the latest]")
@click.option("--anew", is_flag=True, help="Measure again, though it was audited.")
@as_json
@click.pass_context
def audit(
    ctx: click.Context,
    /,
    log: str,
    results: Path,
    campaign: str | None,
    anew: bool,
    as_json: bool,
) -> None:
    """Measure the final source against the unmodified one on fresh pairs.

    Then each kept patch is taken out once, to see what it contributes. A campaign does this at its
    end by itself; here it is done for campaigns of `aiopt try` and for those that were stopped, or
    with --anew once more. What is done already is only printed.

    \b
    Examples:
      aiopt audit pyserver
      aiopt audit results/pyserver/events.db --campaign cmp-0002 --anew --json

    \b
    Exit codes: 0 measured; 3 nothing was kept, so there is nothing to audit;
    130 interrupted: the same command goes on.
    """
    path = find_log(log, results)
    check_lease(path)
    chosen = find_campaign(read_state(path), campaign, path)
    if chosen.kept and (anew or _is_due(chosen)):
        folder, home = places_of(log, path, chosen)
        chosen = _audited(folder, home, chosen.stream, anew, log)
    _print(chosen, path, as_json)
    ctx.exit(0 if chosen.kept else 3)


def _is_due(campaign: CampaignState) -> bool:
    view = audit_view(campaign)
    return view is None or view.ablation_due


def _audited(folder: Path, home: Path, stream: str, anew: bool, typed: str) -> CampaignState:
    async def work(campaign: Campaign) -> CampaignState:
        await campaign.audit(anew=anew)
        return campaign.state

    try:
        return in_campaign(folder, home, None, stream, work)
    except KeyboardInterrupt:
        again = f"aiopt audit {typed}{' --anew' if anew else ''}"
        click.echo(f"interrupted; `{again}` goes on", err=True)
        raise click.exceptions.Exit(130) from None


def _print(campaign: CampaignState, log: Path, as_json: bool) -> None:
    view = audit_view(campaign)
    kept = tuple(patch.name for patch in campaign.incumbent_genome)
    if as_json:
        print_json({"campaign": campaign.stream, "kept": kept, "audit": view, "log": str(log)})
    elif view is None:
        click.echo(f"{short(campaign.stream)}: nothing was kept, so there is nothing to audit")
    else:
        click.echo(f"{short(campaign.stream)} kept: {', '.join(kept)}")
        for line in audit_lines(view):
            click.echo(line)
